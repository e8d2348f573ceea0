"""Whether the engine is ready, and later whether it makes progress: checked without disturbing it.

The engine's ``/health`` generates a token. If that takes more than 20 s the engine counts itself unhealthy
and no longer drains on SIGTERM (``tokenizer_manager.py``, 0.5.23), and under a long prefill it may well take
longer. So a ready engine is watched from outside: its metrics (``/metrics``) show whether requests run and
whether tokens are generated, its output shows whether it computes. ``/health`` is requested only of an idle
engine, and of a busy one without progress for a long time.
"""

from __future__ import annotations

import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from minimax_metal.common.metrics import samples
from minimax_metal.common.web import fetch

PROBE_PAUSE_SECONDS: Final = 1.0
"""Seconds between two requests to the health URL while the engine starts."""
PROBE_TIMEOUT_SECONDS: Final = 60.0
"""Time limit of one health request. The engine gives its own generation 20 s; giving up earlier would prove
nothing.
"""
FIGURES_TIMEOUT_SECONDS: Final = 20.0
BODY_BYTES: Final = 8 << 20
"""Maximum bytes of an answer; the engine's metrics have some 200 KB."""
MOST: Final = 1e15
"""Largest count of requests or tokens; larger values, and non-numbers, are ignored."""
LONGEST_LINE: Final = 20_000
STRIKES: Final = 3
"""Consecutive failed checks that count as a hang."""

BUSY: Final = ("sglang:num_running_reqs", "sglang:num_queue_reqs")
MOVING: Final = (
    "sglang:generation_tokens_total",
    "sglang:prompt_tokens_total",
    "sglang:num_used_tokens",
    "sglang:num_requests_total",
    "sglang:num_aborted_requests_total",
)
"""Metrics of which one changes when the engine makes progress: also while a long prompt is read in chunks."""


def context_for(url: str) -> ssl.SSLContext | None:
    """For TLS to the engine: its certificate is not verified, since it is on this host."""
    if not url.startswith("https:"):
        return None
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def ask(url: str, timeout: float, context: ssl.SSLContext | None = None) -> tuple[str, str]:
    """Return the status of one request as a short text (``200``, ``port closed``, ``no answer``), and the
    body of a 200.

    The body is cut at :data:`BODY_BYTES`, and a slow answer ends with ``timeout``. Whatever a server answers,
    nothing is raised.
    """
    try:
        status, body = fetch(url, seconds=timeout, limit=BODY_BYTES, context=context or context_for(url))
    except ConnectionRefusedError:
        return "port closed", ""
    except TimeoutError:
        return "no answer", ""
    except OSError as error:
        return type(error).__name__, ""
    return str(status), body.decode("utf-8", "replace") if 200 <= status < 300 else ""


class HealthProbe(threading.Thread):
    """Requests the health URL until it answers 200; a thread, so that the engine's end is noticed."""

    def __init__(self, url: str, pause: float = PROBE_PAUSE_SECONDS) -> None:
        super().__init__(name="health", daemon=True)
        self.url = url
        self.pause = pause
        self.ready = threading.Event()
        self.halted = threading.Event()
        self.last = "not checked yet"
        self.context = context_for(url)

    def run(self) -> None:
        """Request until ready or halted."""
        while not self.halted.is_set():
            self.last, _ = ask(self.url, PROBE_TIMEOUT_SECONDS, self.context)
            if self.last == "200":
                self.ready.set()
                return
            self.halted.wait(self.pause)


@dataclass(frozen=True, slots=True)
class Figures:
    """The result of reading ``/metrics`` once."""

    busy: bool
    moving: tuple[float, ...]
    running: int
    queued: int


def parse_figures(text: str) -> Figures | None:
    """Return the metrics of a scrape; None if it lacks the engine's.

    Anything that is not a finite number (``NaN``, ``1e999``, HTML), or impossible as a count, is skipped.
    """
    values: dict[str, float] = {}
    for name, _, value in samples(text, "sglang:"):
        values[name] = values.get(name, 0.0) + value
    if not any(name in values for name in BUSY):
        return None
    running, queued = (int(values.get(name, 0.0)) for name in BUSY)
    return Figures(bool(running or queued), tuple(values.get(name, 0.0) for name in MOVING), running, queued)


@dataclass
class Judge:
    """Judges a series of checks: pure except for the clock it is given.

    ``patience``: seconds without progress, while there is work, before ``/health`` is requested.
    """

    patience: float
    strikes: int = 0
    seen: tuple[tuple[float, ...], int] | None = None
    moved: float | None = None
    note: str = ""

    def look(
        self,
        now: float,
        answered: bool,
        figures: Figures | None,
        worked: int,
        healthy: Callable[[], bool],
    ) -> bool:
        """Process one check; return whether the engine hangs.

        ``answered`` is whether its HTTP server answered, ``worked`` how many lines showed that it computes,
        ``healthy`` requests a token.
        """
        seen = (figures.moving if figures else (), worked)
        if self.moved is None or seen != self.seen:
            self.seen, self.moved, self.strikes, self.note = seen, now, 0, ""
            return False
        idle = figures is not None and not figures.busy
        if answered and not idle and now - self.moved < self.patience:
            return False
        if answered and healthy():
            self.strikes, self.note = 0, ""
            self.moved = now
            return False
        self.strikes += 1
        quiet = f"no progress for {now - self.moved:.0f} s"
        self.note = f"{'no token' if answered else 'no answer'}, {quiet}, {self.strikes} of {STRIKES}"
        return self.strikes >= STRIKES


@dataclass
class Watch:
    """Checks a ready engine from a separate thread, so that a slow answer blocks nothing."""

    ready_url: str
    interval: float
    patience: float
    worked: Callable[[], int]
    hung: threading.Event = field(default_factory=threading.Event)
    halted: threading.Event = field(default_factory=threading.Event)
    figures: Figures | None = None
    note: str = ""

    def start(self) -> None:
        """Start."""
        threading.Thread(target=self.run, name="watch", daemon=True).start()

    def run(self) -> None:
        """Check until the engine hangs or the watch is halted."""
        judge = Judge(self.patience)
        context = context_for(self.ready_url)
        metrics = urllib.parse.urljoin(self.ready_url, "/metrics")
        while not self.halted.wait(self.interval):
            try:
                if self.look(judge, context, metrics):
                    self.hung.set()
                    return
            except Exception as error:
                # If the watch ended silently, a hang would never be noticed: report the error and continue.
                self.note = f"the health check failed ({type(error).__name__}), retrying"

    def look(self, judge: Judge, context: ssl.SSLContext | None, metrics: str) -> bool:
        """Check once; return whether the engine hangs."""
        status, text = ask(metrics, FIGURES_TIMEOUT_SECONDS, context)
        # Without metrics any answer of the server counts, even a 404.
        answered = status.isdigit()
        self.figures = parse_figures(text) if status == "200" else None
        hangs = judge.look(
            time.monotonic(),
            answered,
            self.figures,
            self.worked(),
            lambda: ask(self.ready_url, PROBE_TIMEOUT_SECONDS, context)[0] == "200",
        )
        self.note = judge.note
        return hangs

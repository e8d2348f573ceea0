"""Whether the engine is ready, and later whether it still gets on: asked so that asking harms nothing.

The engine's ``/health`` generates a token. When that takes more than 20 s it counts itself unhealthy and no
longer drains on SIGTERM (``tokenizer_manager.py``, 0.5.23), and under a long prefill it may well take longer.
So a ready engine is watched from outside: its figures (``/metrics``) say whether requests run and whether
tokens come, its output says whether it computes. ``/health`` is asked of an engine that has nothing to do,
and of one that has had work and shown no progress for a long time.
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
"""Between two questions to the health URL while the engine starts."""
PROBE_TIMEOUT_SECONDS: Final = 60.0
"""One health call. The engine gives its own generation 20 s; giving up before it does would prove nothing."""
FIGURES_TIMEOUT_SECONDS: Final = 20.0
BODY_BYTES: Final = 8 << 20
"""Read of an answer at most: the engine's metrics have some 200 KB."""
MOST: Final = 1e15
"""No count of requests or tokens is larger; what is, or is not a number, is not read."""
LONGEST_LINE: Final = 20_000
STRIKES: Final = 3
"""Failed looks in a row that make a hang."""

BUSY: Final = ("sglang:num_running_reqs", "sglang:num_queue_reqs")
MOVING: Final = (
    "sglang:generation_tokens_total",
    "sglang:prompt_tokens_total",
    "sglang:num_used_tokens",
    "sglang:num_requests_total",
    "sglang:num_aborted_requests_total",
)
"""Figures of which one changes when the engine gets on: also while a long prompt is read in pieces."""


def context_for(url: str) -> ssl.SSLContext | None:
    """For TLS to the engine: its certificate is not verified, since it is this host's own."""
    if not url.startswith("https:"):
        return None
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def ask(url: str, timeout: float, context: ssl.SSLContext | None = None) -> tuple[str, str]:
    """The status of one call in a few words (``200``, ``port closed``, ``no answer``), and the body of a 200.

    The body is cut at :data:`BODY_BYTES`, and what comes drop by drop ends with ``timeout``. Whatever
    a server answers, nothing is raised.
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
    """Asks the health URL until it answers 200; a thread, so that the engine's death is noticed meanwhile."""

    def __init__(self, url: str, pause: float = PROBE_PAUSE_SECONDS) -> None:
        super().__init__(name="health", daemon=True)
        self.url = url
        self.pause = pause
        self.ready = threading.Event()
        self.halted = threading.Event()
        self.last = "not asked yet"
        self.context = context_for(url)

    def run(self) -> None:
        """Ask until ready or halted."""
        while not self.halted.is_set():
            self.last, _ = ask(self.url, PROBE_TIMEOUT_SECONDS, self.context)
            if self.last == "200":
                self.ready.set()
                return
            self.halted.wait(self.pause)


@dataclass(frozen=True, slots=True)
class Figures:
    """What one look at ``/metrics`` says."""

    busy: bool
    moving: tuple[float, ...]
    running: int
    queued: int


def parse_figures(text: str) -> Figures | None:
    """The figures of a scrape; none where the engine's are not in it.

    What is not a finite number (``NaN``, ``1e999``, HTML) is passed over, as is what no count can
    be.
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
    """Makes a verdict of looks: pure but for the clock it is given.

    ``patience``: seconds without progress, while there is work, before the engine is asked.
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
        """One look; returns whether the engine hangs.

        ``answered`` is whether its HTTP server answered, ``worked`` how many lines said that it computes,
        ``healthy`` asks it for a token.
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
    """Looks at a ready engine from a thread of its own, so that a slow answer holds nothing up."""

    ready_url: str
    interval: float
    patience: float
    worked: Callable[[], int]
    hung: threading.Event = field(default_factory=threading.Event)
    halted: threading.Event = field(default_factory=threading.Event)
    figures: Figures | None = None
    note: str = ""

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self.run, name="watch", daemon=True).start()

    def run(self) -> None:
        """Look until the engine hangs or the watch is halted."""
        judge = Judge(self.patience)
        context = context_for(self.ready_url)
        metrics = urllib.parse.urljoin(self.ready_url, "/metrics")
        while not self.halted.wait(self.interval):
            try:
                if self.look(judge, context, metrics):
                    self.hung.set()
                    return
            except Exception as error:
                # A watch that ends in silence would never see a hang: it says so and looks again.
                self.note = f"the watch failed ({type(error).__name__}), looking again"

    def look(self, judge: Judge, context: ssl.SSLContext | None, metrics: str) -> bool:
        """Look once; return whether the engine hangs."""
        status, text = ask(metrics, FIGURES_TIMEOUT_SECONDS, context)
        # Without figures any answer of the server will do; a 404 is one.
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

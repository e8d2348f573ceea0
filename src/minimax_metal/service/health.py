"""Whether the engine is ready, and later whether it still gets on: asked so that asking harms nothing.

The engine's ``/health`` generates a token. When that takes more than 20 s it counts itself unhealthy and no
longer drains on SIGTERM (``tokenizer_manager.py``, 0.5.23), and under a long prefill it may well take longer.
So a ready engine is watched from outside: its figures (``/metrics``) say whether requests run and whether
tokens come, its output says whether it computes. ``/health`` is asked of an engine that has nothing to do,
and of one that has had work and shown no progress for a long time.
"""

from __future__ import annotations

import http.client
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from minimax_metal.common.metrics import samples

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


def opener_for(url: str) -> urllib.request.OpenerDirector:
    """What asks the engine: no proxy, and its certificate is not verified, since it is this host's own."""
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if url.startswith("https:"):
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        handlers.append(urllib.request.HTTPSHandler(context=context))
    return urllib.request.build_opener(*handlers)


def ask(opener: urllib.request.OpenerDirector, url: str, timeout: float) -> tuple[str, str]:
    """The status of one call in a few words (``200``, ``port closed``, ``no answer``), and the body.

    The body is cut at :data:`BODY_BYTES`, and what comes drop by drop ends with ``timeout``. Whatever
    a server answers, nothing is raised.
    """
    deadline = time.monotonic() + timeout
    try:
        with opener.open(url, timeout=timeout) as response:
            body = bytearray()
            while len(body) < BODY_BYTES and (block := response.read1(1 << 16)):
                body += block
                if time.monotonic() > deadline:
                    return "no answer", ""
            return str(response.status), body.decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        error.close()
        return str(error.code), ""
    except TimeoutError:
        return "no answer", ""
    except (OSError, http.client.HTTPException, ValueError, LookupError, ArithmeticError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ConnectionRefusedError):
            return "port closed", ""
        return ("no answer" if isinstance(reason, TimeoutError) else type(reason).__name__), ""


class HealthProbe(threading.Thread):
    """Asks the health URL until it answers 200; a thread, so that the engine's death is noticed meanwhile."""

    def __init__(self, url: str, pause: float = PROBE_PAUSE_SECONDS) -> None:
        super().__init__(name="health", daemon=True)
        self.url = url
        self.pause = pause
        self.ready = threading.Event()
        self.halted = threading.Event()
        self.last = "not asked yet"
        self.opener = opener_for(url)

    def run(self) -> None:
        """Ask until ready or halted."""
        while not self.halted.is_set():
            self.last, _ = ask(self.opener, self.url, PROBE_TIMEOUT_SECONDS)
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
        opener = opener_for(self.ready_url)
        metrics = urllib.parse.urljoin(self.ready_url, "/metrics")
        while not self.halted.wait(self.interval):
            try:
                if self.look(judge, opener, metrics):
                    self.hung.set()
                    return
            except Exception as error:
                # A watch that ends in silence would never see a hang: it says so and looks again.
                self.note = f"the watch failed ({type(error).__name__}), looking again"

    def look(self, judge: Judge, opener: urllib.request.OpenerDirector, metrics: str) -> bool:
        """Look once; return whether the engine hangs."""
        status, text = ask(opener, metrics, FIGURES_TIMEOUT_SECONDS)
        # Without figures any answer of the server will do; a 404 is one.
        answered = status.isdigit()
        self.figures = parse_figures(text) if status == "200" else None
        hangs = judge.look(
            time.monotonic(),
            answered,
            self.figures,
            self.worked(),
            lambda: ask(opener, self.ready_url, PROBE_TIMEOUT_SECONDS)[0] == "200",
        )
        self.note = judge.note
        return hangs

"""Waiting for busy sources, and a bandwidth limit; both apply to all threads of a pull."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Gate:
    """Pauses all threads while a source asks to wait, so that they don't flood it."""

    backoff: float = 2.0
    limit: float = 60.0
    lock: threading.Lock = field(default_factory=threading.Lock)
    until: float = 0.0
    refusals: int = 0

    def refused(self, after: float | None) -> float:
        """Note a refusal; return the seconds that all threads wait.

        The requested time, else a doubling pause; a little more at random, so that a fleet does not return at
        the same moment.
        """
        with self.lock:
            now = time.monotonic()
            if now >= self.until:  # several threads are refused at the same moment: that counts once
                self.refusals += 1
            pause = min(self.limit, self.backoff * 2 ** (self.refusals - 1)) if after is None else after
            pause *= 1 + random.random() / 10  # noqa: S311  no secret hangs on it
            self.until = max(self.until, now + pause)
            return self.until - now

    def passed(self) -> None:
        """Note a request that was served."""
        with self.lock:
            self.refusals = 0

    def wait(self, halted: threading.Event) -> None:
        """Return when requests are allowed again, or when ``halted`` is set."""
        while (left := self.until - time.monotonic()) > 0 and not halted.is_set():
            halted.wait(min(left, 1.0))


@dataclass
class Throttle:
    """Shares ``rate`` bytes per second among threads; 0 means no limit."""

    rate: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)
    ready: float = 0.0
    sleep: Callable[[float], None] = time.sleep

    def take(self, size: int) -> None:
        """Return when ``size`` more bytes are allowed."""
        if self.rate <= 0:
            return
        with self.lock:
            now = time.monotonic()
            # Unused bandwidth of the last second is lost: no burst after a pause.
            self.ready = max(self.ready, now - 1.0) + size / self.rate
            left = self.ready - now
        if left > 0:
            self.sleep(left)

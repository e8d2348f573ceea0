"""One attempt at a source, as a separate process that is monitored, and ended if it hangs."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.sizes import spell_bytes
from minimax_metal.host.weights.progress import Options, PullError, Reporter, spell_seconds
from minimax_metal.host.weights.publish import check_space
from minimax_metal.host.weights.request import ACCEPT_UNPROVED, Request, Source

CRAWL: Final = 1 << 20
"""Minimum bytes during a pull's patience (15 minutes by default): 1.2 kB/s."""


@dataclass(slots=True)
class Outcome:
    """How one attempt ended."""

    done: bool = False
    reason: str = "the attempt ended without a reason"
    permanent: bool = False
    space: bool = False
    verified: int = 0
    fetched: int = 0
    gained: int = 0
    """New bytes of the model on this host."""
    peers: int = 0
    """Fetched bytes that other hosts of the fleet sent."""
    crawled: bool = False
    """Whether it was ended because almost nothing arrived for a long time."""
    enough: int = 1
    """New bytes from which on an attempt counts as fruitful."""

    @property
    def brought(self) -> bool:
        """Whether it was fruitful: then it does not count against its source."""
        return not self.crawled and (self.verified > 0 or self.gained >= self.enough)


class Watch:
    """Runs one attempt as a process, follows its events, ends it when it hangs."""

    def __init__(self, request: Request, source: Source, options: Options, reporter: Reporter) -> None:
        self.request = request
        self.source = source
        self.options = options
        self.reporter = reporter
        self.proof = request.stated()
        self.outcome = Outcome()
        self.total: int | None = None
        self.files = 0
        self.have = self.begun = 0
        self.waiting = ""
        self.pause = 0.0
        self.silence = 3 * options.stall + 60
        """Seconds without an event after which the attempt hangs, regardless of its own connection checks."""
        self.hashed = 0
        self.slow_since, self.slow_from = time.monotonic(), 0
        """Start of the period in which new bytes are counted, and the count at its start."""
        self.samples: deque[tuple[float, int]] = deque(maxlen=256)

    def run(self) -> Outcome:
        """Run the attempt until its end."""
        job = {
            "name": self.request.name,
            "staging": str(self.request.staging),
            "source": self.source.as_dict(),
            "workers": self.options.workers,
            "pause": min(1.0, self.options.backoff),
            "stall": self.options.stall,
            "patience": self.options.patience,
            "rate": self.options.rate,
            "share": None if self.request.share is None else self.request.share.as_dict(),
            "proof": None if self.proof is None else self.proof.as_dict(),
            "accept_unhashed": self.request.accept_unhashed,
            "accept_unproved": ACCEPT_UNPROVED in self.request.accept,
            "expected": self.request.expected,
        }
        child = subprocess.Popen(
            [sys.executable, "-m", "minimax_metal.host.weights.fetch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        try:
            if child.stdin is None or child.stdout is None:
                raise PullError("the attempt has no pipes")
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(json.dumps(job) + "\n")
                child.stdin.flush()
            events: queue.Queue[Mapping[str, Any] | None] = queue.Queue()
            reader = threading.Thread(target=_read_events, args=(child.stdout, events.put), daemon=True)
            reader.start()
            self._follow(events)
        finally:
            _end(child)
        return self.outcome

    def _follow(self, events: queue.Queue[Mapping[str, Any] | None]) -> None:
        """Process events until the attempt has ended."""
        self.reporter.state("pulling", f"asking {self.source}")
        last_event = time.monotonic()
        next_line = next_status = time.monotonic() + min(1.0, self.options.interval)
        while True:
            try:
                event = events.get(timeout=min(1.0, self.options.interval))
            except queue.Empty:
                pass
            else:
                if event is None:
                    return
                last_event = time.monotonic()
                if self._take(event):
                    return
            now = time.monotonic()
            self.samples.append((now, self.have))
            if now - last_event >= max(self.silence, self.pause):
                self.outcome.reason = f"{self.source}: the attempt hung for {now - last_event:.0f} s"
                return
            if self._crawls(now):
                self.outcome.crawled = True
                self.outcome.reason = (
                    f"{self.source}: less than {spell_bytes(CRAWL)} came in {self.patience:.0f} s"
                )
                return
            if now >= next_status and self.total is not None:
                loud = now >= next_line
                self.reporter.state(
                    "pulling", self.describe(), silent=not loud, bytes=self.have, total=self.total
                )
                next_status = now + min(2.0, self.options.interval)
                if loud:
                    next_line = now + self.options.interval

    @property
    def patience(self) -> float:
        """Seconds in which some bytes must arrive; hosts that share also wait for one another."""
        return self.options.patience * (1 if self.request.share is None else 4)

    def _crawls(self, now: float) -> bool:
        """Return whether almost nothing arrives: a source that sends an occasional byte is never silent."""
        moved = self.outcome.fetched + self.hashed
        left = (self.total or 0) - self.have
        if self.total is None or self.waiting or left <= 0 or moved - self.slow_from >= min(CRAWL, left):
            self.slow_since, self.slow_from = now, moved
        return now - self.slow_since >= self.patience

    def _take(self, event: Mapping[str, Any]) -> bool:
        """Handle one event; return whether it was the last."""
        kind = event.get("event")
        if kind == "listed":
            self.total, self.files = int(event["bytes"]), int(event["files"])
            self.have = self.begun = self.total - int(event["needed"])
            self.outcome.enough = min(CRAWL, max(1, self.total // 100))
            check_space(self.request, int(event["needed"]), self.options.spare)
        elif kind == "progress":
            self.have, self.outcome.fetched = int(event["have"]), int(event["fetched"])
            self.outcome.gained = self.have - self.begun
            self.outcome.peers, self.hashed = int(event.get("peers", 0)), int(event.get("hashed", 0))
            self.waiting, self.pause = "", 0.0
        elif kind == "verified":
            self.outcome.verified += 1
        elif kind == "damaged":
            self.reporter.say(f"{event['reason']}; fetching it again")
        elif kind == "note":
            self.reporter.say(str(event["text"]))
        elif kind == "retry":
            self.reporter.say(f"{event['reason']}; continuing {event['path']} at byte {event['offset']}")
        elif kind == "waiting":
            self.pause = float(event["seconds"]) + self.silence
            waiting = f"{event['reason']}: waiting {spell_seconds(float(event['seconds']))}"
            if waiting != self.waiting:
                self.reporter.say(waiting)
            self.waiting = waiting
        elif kind == "failed":
            self.outcome.reason = str(event["reason"])
            self.outcome.permanent, self.outcome.space = bool(event["permanent"]), bool(event["space"])
            return True
        elif kind == "done":
            self.outcome.done, self.outcome.fetched = True, int(event["fetched"])
            self.outcome.peers = int(event.get("peers", 0))
            return True
        return False

    def describe(self) -> str:
        """Return the line of progress: percent, size, rate, time left."""
        total = self.total or 0
        have = max(0, min(self.have, total))
        if total and have >= total:
            return f"100 % of {spell_bytes(total)}, verifying {self.files} files"
        # Cut, not rounded: 100 % must be exact.
        share = int(1000 * have / total) / 10 if total else 100.0
        line = f"{share:.1f} % ({spell_bytes(have)} of {spell_bytes(total)})"
        if self.waiting:
            return f"{line}, {self.waiting}"
        since = self.samples[-1][0] - 30 if self.samples else 0.0
        recent = [sample for sample in self.samples if sample[0] >= since]
        if len(recent) > 1 and recent[-1][0] - recent[0][0] >= 2.0:  # a shorter period gives no reliable rate
            rate = (recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0])
            if rate > 0:
                line += f", {spell_bytes(rate)}/s, {spell_seconds((total - have) / rate)} left"
            else:
                line += ", waiting"
        if self.outcome.peers:
            line += f", {spell_bytes(self.outcome.peers)} so far from other hosts"
        return line


def _read_events(stream: IO[str], put: Callable[[Mapping[str, Any] | None], None]) -> None:
    """Pass the attempt's events on, None at its end."""
    for line in stream:
        try:
            event = read_json(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            put(event)
    put(None)


def _end(child: subprocess.Popen[str]) -> None:
    """End an attempt's process and all its children."""
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    try:
        child.wait(timeout=1.0)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()

"""Reading claimed pieces from the origin."""

from __future__ import annotations

import hashlib
import threading
import time
from typing import TYPE_CHECKING, Final

from minimax_metal.host.weights.attempt import LEAST, RETRIES
from minimax_metal.host.weights.errors import SourceError, transport_error
from minimax_metal.host.weights.manifest import DamagedFileError
from minimax_metal.host.weights.share.board import PATIENCE, Claim
from minimax_metal.host.weights.share.pieces import PieceFile

if TYPE_CHECKING:
    from minimax_metal.host.weights.share.swarm import SharedAttempt

REST: Final = 30.0
"""Seconds after which a failed origin is retried, while other hosts deliver available pieces."""

VAIN: Final = 3
"""Consecutive failures of an origin without a piece in between, before it is given up for this attempt."""

IDLE: Final = 1.0
"""Seconds after which an idle thread checks by itself, without any news."""
LOOKS: Final = 3
"""Checks of every other host after which simultaneous claims have been heard."""
LAG: Final = 4
"""Multiple of the usual time to wait for a check."""


class OriginReader:
    """The part of an attempt that reads from the origin; shared by its threads."""

    def __init__(self, attempt: SharedAttempt) -> None:
        self.attempt = attempt
        self.lock = threading.Lock()
        self.again = 0.0
        """When a failed origin is retried."""
        self.vain = 0
        """Failures of the origin since its last piece for this host."""

    def close(self, error: SourceError) -> None:
        """Read nothing from the origin for now, and report it."""
        it = self.attempt
        if error.space:
            it.fail(error)
            return
        with it.changed:
            told, it.board.origin = not it.board.origin, False
            if not told:
                self.vain += 1
            over = error.permanent or self.vain >= VAIN
            it.shut = error
            it.changed.notify_all()
        self.again = float("inf") if over else time.monotonic() + REST
        if not told:
            it.log.post(["origin", False])
            tried = f" ({self.vain} times without a piece, giving up on it)" if over and self.vain > 1 else ""
            it.say("note", text=f"{error}{tried}; asking the other hosts")

    def _reopen(self) -> None:
        it = self.attempt
        with self.lock:
            if it.board.origin or time.monotonic() < self.again:
                return
            with it.changed:
                it.board.origin = True
            it.log.post(["origin", True])

    def work(self) -> None:
        """Claim and read, one claim after the other."""
        it = self.attempt
        while not it.halted.is_set():
            self._reopen()
            with it.changed:
                claim = it.board.next_claim(time.monotonic())
                if claim is None:
                    # News wakes it; a host that does not read the origin now need not check by itself.
                    if not it.halted.is_set():
                        it.changed.wait(0.1 if it.board.streams() else IDLE)
                    continue
            it.log.post(["claim", claim.key, claim.first, claim.last, claim.generation])
            try:
                if not claim.taken_over or self._stands(claim):
                    self._read(claim)
            except SourceError as error:
                if not it.halted.is_set():
                    self.close(error)
            except OSError as error:
                it.fail(transport_error("the staging directory", error))
            with it.changed:
                left = [piece for piece in claim.pieces if it.board.flight.get(piece) == ""]
                it.board.release(claim)
                it.changed.notify_all()
            if left:
                it.log.post(["drop", claim.key, left[0][1], left[-1][1]])

    def _stands(self, claim: Claim) -> bool:
        """Wait until everybody has heard of the claim; return whether it is ours.

        On busy hosts a check takes longer than it should: if it is another's turn, checks are counted, not
        only seconds.
        """
        it = self.attempt
        with it.changed:
            mine = it.board.turn((claim.key, claim.first)) == it.share.me
            looks = {} if mine else it.board.looks()
        until = time.monotonic() + LOOKS * LAG * it.share.poll
        it.halted.wait(LOOKS * it.share.poll)
        with it.changed:
            while (
                not it.board.heard_since(looks, LOOKS) and time.monotonic() < until and not it.halted.is_set()
            ):
                it.changed.wait(it.share.poll)
            return it.board.stands(claim, time.monotonic())

    def _read(self, claim: Claim) -> None:
        """Read a claim, with as many connections as needed; raises :class:`SourceError`."""
        it = self.attempt
        run = _Run(it, it.stores[claim.key], claim, self)
        try:
            self._receive(run)
        finally:
            run.forget()

    def _receive(self, run: _Run) -> None:
        it, fruitless = self.attempt, 0
        while run.offset < run.end and not it.halted.is_set() and not run.superseded():
            before = run.offset
            try:
                it.gate.wait(it.halted)
                run.receive()
            except SourceError as error:
                if error.permanent:
                    raise
                if error.busy:
                    it._be_patient(error)
                    continue
                fruitless = 0 if run.offset - before >= LEAST else fruitless + 1
                if fruitless >= RETRIES:
                    raise
                it.say("retry", path=run.store.entry.path, reason=str(error), offset=run.offset)
                it.halted.wait(it.pause * 2 ** max(0, fruitless - 1))


class _Run:
    """Incoming bytes of a claim; ``offset``: where the next one belongs."""

    def __init__(
        self, attempt: SharedAttempt, store: PieceFile, claim: Claim, reader: OriginReader | None = None
    ) -> None:
        self.attempt, self.store, self.reader = attempt, store, reader
        self.number = claim.first
        self.offset = store.span(claim.first)[0]
        self.end = store.span(claim.last)[1]
        self.sha256 = hashlib.sha256()
        self.claim, self.begun = claim, time.monotonic()

    def superseded(self) -> bool:
        """Return whether another host has the piece by now, or claimed it at the same time and has
        precedence.
        """
        if (self.store.key, self.number) in self.attempt.board.available:
            return True
        now = time.monotonic()
        # The host whose turn it is has precedence. Later, a second claim takes over one that lasts too long.
        if not self.claim.taken_over or now - self.begun > PATIENCE / 2:
            return False
        with self.attempt.changed:
            return not self.attempt.board.stands(self.claim, now)

    def forget(self) -> None:
        """Count the bytes of an incomplete piece as lost: its next reader starts it again."""
        if self.offset < self.end and self.number not in self.store.have:
            self.attempt._lose(self.offset - self.store.span(self.number)[0])

    def receive(self) -> None:
        """Receive the data of one connection; raise :class:`SourceError` if it ends too early."""
        it, entry = self.attempt, self.store.entry
        with it.origin.open(entry, self.offset, self.end) as body:
            it.gate.passed()
            if body.total is not None and body.total != entry.size:
                raise SourceError(f"{entry.path} has {body.total} bytes at the source, expected {entry.size}")
            position, heeded = body.start, body.start == self.offset
            if not heeded:
                with it.changed:
                    it.board.ranges = False
            for block in body.blocks:
                if it.halted.is_set() or self.superseded():
                    return
                it.served = time.monotonic()
                it.throttle.take(len(block))
                with it.lock:
                    it.fetched += len(block)
                news = block[max(0, self.offset - position) :]
                position += len(block)
                if position > entry.size:
                    raise SourceError(
                        f"{entry.path} is longer at the source than the {entry.size} bytes expected"
                    )
                self._put(memoryview(news)[: self.end - self.offset])
                if self.offset >= self.end and (not heeded or position > self.end):
                    return
        if self.offset < self.end:
            raise SourceError(
                f"the connection ended after {self.offset} of {entry.size} bytes of {entry.path}"
            )

    def _put(self, news: memoryview) -> None:
        """Write bytes piece by piece, and report each complete one."""
        it = self.attempt
        while news:
            begin, end = self.store.span(self.number)
            part = news[: end - self.offset]
            here = self.number in self.store.have
            if not here:
                self.store.write(part, self.offset)
                with it.lock:
                    it.have += len(part)
            self.sha256.update(part)
            self.offset += len(part)
            news = news[len(part) :]
            if self.offset < end:
                continue
            found, self.sha256 = self.sha256.hexdigest(), hashlib.sha256()
            number, self.number = self.number, self.number + 1
            stated = self.store.entry.sha256 if self.store.pieces == 1 else None
            if stated is not None and found != stated:
                path = self.store.entry.path
                it._lose(end - begin)
                self.number, self.offset = number, begin
                error = DamagedFileError(f"{path} has sha256 {found[:12]}…, expected {stated[:12]}…")
                it.say("damaged", path=path, reason=str(error))
                it.count_damage(path, error)
                raise SourceError(str(error))
            if self.reader is not None:
                self.reader.vain = 0
            if not here:
                it.keep((self.store.key, number), found, it.share.me)

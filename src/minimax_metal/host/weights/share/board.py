"""Which host reads which piece from the origin, and from whom to get the others: decisions only.

No clock, no thread, no network: the caller passes news and the time, so that every case can be simulated. A
piece is (key of its file, number). Rules:

* Pieces are dealt out in turn to the hosts that may read from the origin: the first ``cap`` by name that
  pull, answer and can reach it. A host with none of its own left takes over pieces from the end.
* A host claims a piece before it reads it. Others leave it alone while the claimer is alive and not much
  slower than usual. A claim's time starts once, and is extended only by received pieces.
* An announced piece is taken from any host that announced it, by the announced hash. A host whose bytes don't
  match its announcement is avoided; one that announces and does not send is left out for a while.
* If the pieces of a whole file do not have the file's hash, the file gets a new generation: one host alone
  reads it, so that the culprit is known if it fails again.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from minimax_metal.host.weights.share.facts import (
    OVERDUE,
    PATIENCE,
    SETTLING,
    STREAMS,
    STRIKES,
    WINDOW,
    Claim,
    File,
    Offer,
    Piece,
)
from minimax_metal.host.weights.share.heard import Heard

__all__ = ["OVERDUE", "PATIENCE", "STRIKES", "WINDOW", "Board", "Claim", "File", "Offer", "Piece"]


class Board(Heard):
    """One host's knowledge of a shared pull, and its next steps."""

    def readers(self) -> list[str]:
        """Return the hosts that may read from the origin now."""
        able = [
            name
            for name in self.names
            if (self._reads_here() if name == self.me else self._reads(self.others[name]))
        ]
        return able[: self.cap]

    def streams(self) -> int:
        """Return how many pieces this host may read from the origin in parallel."""
        readers = self.readers()
        if self.me not in readers:
            return 0
        return min(self.workers, max(1, -(-STREAMS // len(readers))))

    def turn(self, piece: Piece) -> str | None:
        """Return the host whose turn a piece is, if any host reads."""
        readers = self.readers()
        return readers[self._turn(piece) % len(readers)] if readers else None

    def next_claim(self, now: float) -> Claim | None:
        """Return what to read from the origin next, noted as in progress; None if it is others' turn."""
        self.clock = max(self.clock, now)
        readers = self.readers()
        if readers != self._dealt:
            self._dealt, self._dealt_since = readers, now
        if self.me not in readers or sum(not peer for peer in self.flight.values()) >= self.streams():
            return None
        own = next(
            (
                piece
                for piece in self.missing
                if readers[self._turn(piece) % len(readers)] == self.me and self._free(piece, now)
            ),
            None,
        )
        if own is not None:
            # Others may not have seen yet that the set of readers has changed.
            return self._claim(own, now, taken_over=now - self._dealt_since < SETTLING)
        last = list(
            itertools.islice(
                (piece for piece in reversed(self.missing) if self._free(piece, now)), len(readers)
            )
        )
        if not last:
            return None
        return self._claim(self.random.choice(last), now, taken_over=True)

    def _claim(self, piece: Piece, now: float, *, taken_over: bool) -> Claim:
        key, first = piece
        last = first
        if self._in_one_go(key):
            numbers = [
                number
                for number in range(self.files[key].pieces)
                if (key, number) in self.missing and self._free((key, number), now)
            ]
            first, last = numbers[0], numbers[-1]
        claim = Claim(key, first, last, self.generations.get(key, 0), taken_over)
        for one in claim.pieces:
            if one in self.missing:
                self.flight.setdefault(one, "")
                self.suspect.pop(one, None)  # the data there is about to be overwritten
        return claim

    def _turn(self, piece: Piece) -> int:
        """Return a number that decides, modulo the number of readers, whose turn a piece is."""
        return self.index[(piece[0], 0) if self._in_one_go(piece[0]) else piece]

    def stands(self, claim: Claim, now: float) -> bool:
        """Return whether a claim that was taken over holds.

        Of several hosts the one whose turn it was has it, else the first by name.
        """

        def order(name: str, piece: Piece) -> tuple[bool, int]:
            return self.turn(piece) != name, self.rank[name]

        return not any(
            order(name, piece) < order(self.me, piece)
            for name, other in self.others.items()
            for piece in claim.pieces
            if self._claims(other, piece, now)
        )

    def looks(self) -> dict[str, int]:
        """Return how often each host with valid claims has answered."""
        return {name: other.looks for name, other in self.others.items() if self._reads(other)}

    def heard_since(self, looks: Mapping[str, int], times: int) -> bool:
        """Return whether each of these hosts has answered some more times, or its claims don't count now."""
        found = self.looks()
        return all(found[name] >= before + times for name, before in looks.items() if name in found)

    def release(self, claim: Claim) -> None:
        """Give up the rest of a claim."""
        for piece in claim.pieces:
            if self.flight.get(piece) == "":
                del self.flight[piece]

    def next_offer(self, now: float) -> Offer | None:
        """Return what to take from whom next, noted as in progress; None if there is nothing for now."""
        back = any(self.clock < other.out_until <= now for other in self.others.values())
        self.clock = max(self.clock, now)
        if back:
            self._refresh()
        candidates: list[tuple[Piece, list[str]]] = []
        for piece in self.available:
            if piece in self.flight:
                continue
            holders = [
                name
                for name, other in self.others.items()
                if other.busy_until <= now and self._usable(other, piece)
            ]
            if holders:
                candidates.append((piece, holders))
                if len(candidates) >= WINDOW:
                    break
        if not candidates:
            return None
        piece, holders = self.random.choice(candidates)
        return self._offer(piece, holders, now)

    def _offer(self, piece: Piece, holders: list[str], now: float) -> Offer:
        key = piece[0]
        single = self.files[key].pieces == 1 and self.files[key].stated is not None
        with_hash = [name for name in holders if piece in self.others[name].have]
        if with_hash or single:
            peer = self.random.choice(with_hash or holders)
            _, sha256, reader = self.others[peer].have.get(piece, (0, self.files[key].stated, peer))
        else:
            # The piece's hash is not published: take the whole file from one host, so that its sender is
            # known.
            kept = self.sticky.get(key)
            peer = kept if kept is not None and kept in holders else self.random.choice(holders)
            self.sticky[key] = peer
            sha256, reader = None, peer
        self.flight[piece] = peer
        self.suspect.pop(piece, None)
        return Offer(piece, peer, sha256, reader)

    def done(self) -> bool:
        """Return whether every file is verified here."""
        return len(self.whole) == len(self.files)

    def hopeless(self) -> bool:
        """Return whether nobody can deliver the missing pieces: no answering host can reach the origin."""
        if self.origin or self.flight:
            return False
        if any(other.alive and other.complete and other.strikes < STRIKES for other in self.others.values()):
            return False
        return not self.available and not any(self._reads(other) for other in self.others.values())

    def watched(self) -> list[str]:
        """Return the hosts to listen to.

        All of a small fleet. Of a large one those whose turn at the origin it is or comes next, and some at
        doubling distances, so that everybody has few listeners and all news still spreads.
        """
        if len(self.names) <= 2 * self.cap:
            return [name for name in self.names if name != self.me]
        first: list[str] = []
        for name in self.names:
            other = self.others.get(name)
            if other is None or not (other.complete or not other.origin):
                first.append(name)
            if len(first) >= self.cap + 2:
                break
        here, count = self.rank[self.me], len(self.names)
        steps = itertools.takewhile(lambda step: step < count, (1 << power for power in range(count)))
        far = [self.names[(here + step) % count] for step in steps]
        return sorted({*first, *far} - {self.me})

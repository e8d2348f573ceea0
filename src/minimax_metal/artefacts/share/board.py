"""Who reads which piece from the origin, and from whom the others are taken: decisions only.

No clock, no thread, no network: the caller says what it heard and what time it is, so that every case can be
played through. A piece is (key of its file, number). Rules:

* Pieces are dealt out in turn to the hosts that may read from the origin: the first ``cap`` by name that
  pull, are heard from and can read it. A host with nothing of its own left takes over pieces from the end.
* Whoever is about to read a piece has claimed it; others leave it alone while the claimer lives and is not
  much slower than pieces usually come.
* What is there is taken from any host that announced it, by the hash that it announced. A host whose bytes
  are not what it announced is avoided.
* When the pieces of a whole file do not have the file's hash, the file gets a new generation: it is then read
  by one host alone, so that it is known whose fault it was if that goes wrong, too.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

Piece = tuple[str, int]

STREAMS: Final = 16
"""Pieces read from the origin at a time, all hosts together: two each of eight. With more, more would have
to be passed on when the last comes in."""
STRIKES: Final = 3
"""Times a host may send other bytes than it announced before nothing is taken from it any more."""
WINDOW: Final = 32
"""Pieces others have, among which the next is chosen by chance, so that hosts take different ones."""
OVERDUE: Final = 4.0
"""A claim that lasts this many times as long as pieces usually take does not count any more."""
SETTLING: Final = 1.0
"""Seconds after a change among the readers in which every claim is treated like one that is taken over."""
PATIENCE: Final = 10.0
"""Seconds that every claim lasts at least."""


@dataclass(frozen=True, slots=True)
class File:
    """A file in pieces: ``key`` is the same on all hosts for the same bytes under the same path."""

    key: str
    path: str
    size: int
    pieces: int
    stated: str | None = None
    """SHA-256 of the whole, where the source states it."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Pieces ``first`` to ``last`` of a file, to be read from the origin in one go."""

    key: str
    first: int
    last: int
    generation: int
    taken_over: bool
    """It may be somebody else's turn: to be claimed first, and read when nobody else did the same."""

    @property
    def pieces(self) -> list[Piece]:
        """The pieces one by one."""
        return [(self.key, number) for number in range(self.first, self.last + 1)]


@dataclass(frozen=True, slots=True)
class Offer:
    """A piece to be taken from ``peer``; ``sha256`` is what it said of it, ``reader`` who read it first."""

    piece: Piece
    peer: str
    sha256: str | None
    reader: str


@dataclass(slots=True)
class Other:
    """What is known of another host."""

    alive: bool = False
    """It answers."""
    looks: int = 0
    """How often it answered."""
    pulling: bool = False
    """Its pull is at work: its claims count."""
    complete: bool = False
    """It holds the verified model."""
    origin: bool = True
    """It can read the origin, as far as it said."""
    have: dict[Piece, tuple[int, str, str]] = field(default_factory=dict)
    """Piece -> generation, SHA-256, first reader."""
    whole: set[str] = field(default_factory=set)
    claims: dict[Piece, tuple[int, float]] = field(default_factory=dict)
    """Piece -> generation, when it was heard."""
    strikes: int = 0
    busy_until: float = 0.0
    avoided: set[str] = field(default_factory=set)
    """Files that are not taken from it."""


class Board:
    """Everything one host knows of a shared pull."""

    def __init__(
        self,
        me: str,
        names: Iterable[str],
        files: Sequence[File],
        *,
        cap: int = 8,
        workers: int = 8,
        seed: int | None = None,
    ) -> None:
        self.me = me
        self.names = sorted({me, *names})
        self.rank = {name: number for number, name in enumerate(self.names)}
        self.files = {file.key: file for file in files}
        self.cap = max(1, cap)
        self.workers = max(1, workers)
        self.origin = True
        """Whether this host can read the origin, as far as it knows."""
        self.trusted = True
        """Whether the others take what this host has."""
        self.distrust: dict[str, set[str]] = {}
        """Host -> those that take nothing from it any more."""
        self.ranges = True
        """Whether the origin answers with the part of a file that was asked for."""
        self.others = {name: Other() for name in self.names if name != me}
        self.generations: dict[str, int] = {}
        self.mine: dict[Piece, tuple[str, str]] = {}
        """Piece that is here -> SHA-256, first reader."""
        self.whole: set[str] = set()
        self.suspect: dict[Piece, str] = {}
        """Pieces of a file that went wrong, still on the disk: good again when announced with this hash."""
        self.flight: dict[Piece, str] = {}
        """Piece on its way -> where from; ``""`` is the origin."""
        self.senders: dict[Piece, str] = {}
        self.sticky: dict[str, str] = {}
        """File whose pieces nobody stated hashes of -> the one host it is taken from."""
        self.index: dict[Piece, int] = {}
        self.missing: dict[Piece, None] = {}
        self.available: dict[Piece, None] = {}
        """Missing pieces that somebody announced."""
        self._dealt: list[str] = []
        self._dealt_since = 0.0
        self.typical = 0.0
        """Seconds from a claim to the announcement, on average."""
        self.random = random.Random(seed)  # noqa: S311  spreads load, keeps no secret
        for file in sorted(files, key=lambda file: file.path):
            for number in range(file.pieces):
                self.index[file.key, number] = len(self.index)
                self.missing[file.key, number] = None

    # What happened here

    def have(self, piece: Piece, sha256: str, reader: str, sender: str = "") -> None:
        """Note a piece that is here and as it was announced; ``sender`` is empty when the origin sent it."""
        self.flight.pop(piece, None)
        self.suspect.pop(piece, None)
        self.mine[piece] = (sha256, reader)
        self.senders[piece] = sender
        self.missing.pop(piece, None)
        self.available.pop(piece, None)

    def verified(self, key: str) -> None:
        """Note a file whose whole hash is right."""
        self.whole.add(key)
        for number in range(self.files[key].pieces):
            self.flight.pop((key, number), None)
            self.suspect.pop((key, number), None)
            self.missing.pop((key, number), None)
            self.available.pop((key, number), None)

    def disputed(self, key: str) -> list[str]:
        """Begin a file anew whose pieces do not make up its hash; return the hosts that are to blame."""
        generation = self.generations.get(key, 0)
        self.generations[key] = generation + 1
        self.whole.discard(key)
        blamed: set[str] = set()
        pieces = [(key, number) for number in range(self.files[key].pieces)]
        for piece in pieces:
            if piece not in self.mine:
                continue
            sha256, reader = self.mine.pop(piece)
            sender = self.senders.pop(piece, "")
            # Whoever sent bytes that nobody had stated a hash of; and the one host that read all of it.
            if sender and sender == self.sticky.get(key):
                blamed.add(sender)
            elif generation > 0 and reader != self.me:
                blamed.add(reader)
            self.suspect[piece] = sha256
        self.sticky.pop(key, None)
        for name in blamed & self.others.keys():
            self.others[name].avoided.add(key)
            self.others[name].strikes += 1
        missing = {**dict.fromkeys(pieces), **self.missing}
        self.missing = dict.fromkeys(sorted(missing, key=self.index.__getitem__))
        self._refresh()
        return sorted(blamed)

    def failed(self, piece: Piece) -> None:
        """Note that a piece did not come."""
        self.flight.pop(piece, None)

    def wrong(self, offer: Offer) -> bool:
        """Note that a host sent other bytes than it had announced; return whether it is trusted no more."""
        self.flight.pop(offer.piece, None)
        other = self.others[offer.peer]
        other.strikes += 1
        other.avoided.add(offer.piece[0])
        self._refresh()
        return other.strikes == STRIKES

    def busy(self, peer: str, until: float) -> None:
        """Note that a host has its hands full, or did not answer, until a time."""
        self.others[peer].busy_until = max(until, self.others[peer].busy_until)

    def gone(self, offer: Offer) -> None:
        """Note that a host does not have what it announced any more."""
        self.flight.pop(offer.piece, None)
        other = self.others[offer.peer]
        other.have.pop(offer.piece, None)
        other.whole.discard(offer.piece[0])
        other.complete = False
        self._refresh()

    # What others said

    def met(self, peer: str, *, pulling: bool) -> None:
        """Note that a host answers; without its pull at work its claims count nothing."""
        other = self.others[peer]
        other.alive = True
        other.looks += 1
        if not pulling:
            other.claims.clear()
        other.pulling = pulling

    def reborn(self, peer: str) -> None:
        """Note that a host's pull began anew: it will say again what it has."""
        other = self.others[peer]
        other.have.clear()
        other.whole.clear()
        other.claims.clear()
        other.origin, other.complete = True, False
        self._refresh()

    def lost(self, peer: str) -> None:
        """Note that a host does not answer any more."""
        other = self.others[peer]
        other.alive = other.pulling = other.complete = False
        other.have.clear()
        other.whole.clear()
        other.claims.clear()
        self._refresh()

    def completed(self, peer: str, keys: Iterable[str]) -> None:
        """Note that a host holds the verified model, with these of the files."""
        other = self.others[peer]
        other.alive, other.pulling, other.complete = True, False, True
        other.claims.clear()
        other.have.clear()
        other.whole = set(keys)
        self._refresh()

    def claimed(self, peer: str, claim: Claim, now: float) -> None:
        """Note what a host is about to read from the origin."""
        for piece in claim.pieces:
            self.others[peer].claims[piece] = (claim.generation, now)

    def dropped(self, peer: str, key: str, first: int, last: int) -> None:
        """Note that a host gave a claim up."""
        for number in range(first, last + 1):
            self.others[peer].claims.pop((key, number), None)

    def announced(
        self, peer: str, piece: Piece, sha256: str, generation: int, reader: str, now: float
    ) -> bool:
        """Note that a host has a piece; return whether it is one that is suspect here and now cleared."""
        other = self.others[peer]
        claim = other.claims.pop(piece, None)
        if claim is not None:
            took = max(0.0, now - claim[1])
            self.typical = took if not self.typical else 0.9 * self.typical + 0.1 * took
        if piece not in self.index:
            return False
        other.have[piece] = (generation, sha256, reader)
        if piece in self.missing and self._usable(other, piece):
            self.available.setdefault(piece)
            return piece not in self.flight and self.suspect.get(piece) == sha256
        return False

    def announced_whole(self, peer: str, key: str) -> None:
        """Note that a host has a file whose whole hash is right."""
        if key not in self.files:
            return
        other = self.others[peer]
        other.whole.add(key)
        for number in range(self.files[key].pieces):
            other.claims.pop((key, number), None)
            if (key, number) in self.missing and self._usable(other, (key, number)):
                self.available.setdefault((key, number))

    def distrusted(self, peer: str, whom: str) -> None:
        """Note that a host takes nothing from another any more.

        When two say so (one, where there is no other) it is so: nobody waits for what that host reads, and it
        reads nothing from the origin, since nobody would take it.
        """
        self.distrust.setdefault(whom, set()).add(peer)
        if len(self.distrust[whom]) < min(2, len(self.others)):
            return
        if whom == self.me:
            self.trusted = False
        elif whom in self.others:
            self.others[whom].strikes = max(STRIKES, self.others[whom].strikes)
            self._refresh()

    def can_read(self, peer: str, origin: bool) -> None:
        """Note whether a host can read the origin."""
        self.others[peer].origin = origin

    # What to do

    def readers(self) -> list[str]:
        """Return the hosts that may read from the origin now."""
        able = [
            name
            for name in self.names
            if (self._reads_here() if name == self.me else self._reads(self.others[name]))
        ]
        return able[: self.cap]

    def streams(self) -> int:
        """Return how many pieces this host may read from the origin at a time."""
        readers = self.readers()
        if self.me not in readers:
            return 0
        return min(self.workers, max(1, -(-STREAMS // len(readers))))

    def turn(self, piece: Piece) -> str | None:
        """Return the host whose turn a piece is, if anybody reads."""
        readers = self.readers()
        return readers[self._turn(piece) % len(readers)] if readers else None

    def next_claim(self, now: float) -> Claim | None:
        """Return what to read from the origin next, noted as on its way; None when it is others' turn."""
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
            # Others may not have seen yet that the pieces are dealt out among other hosts than before.
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
                self.suspect.pop(one, None)  # what lies there is about to be written over
        return claim

    def _in_one_go(self, key: str) -> bool:
        """Return whether a file is read by one host alone, from its beginning."""
        return self.generations.get(key, 0) > 0 or not self.ranges

    def _turn(self, piece: Piece) -> int:
        """Return a number that says, counted round among the readers, whose turn a piece is."""
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
        """Return how often each host whose claims count has answered."""
        return {name: other.looks for name, other in self.others.items() if self._reads(other)}

    def heard_since(self, looks: Mapping[str, int], times: int) -> bool:
        """Return whether each of these hosts has answered some times more, or its claims do not count now."""
        found = self.looks()
        return all(found[name] >= before + times for name, before in looks.items() if name in found)

    def release(self, claim: Claim) -> None:
        """Give up what is left of a claim."""
        for piece in claim.pieces:
            if self.flight.get(piece) == "":
                del self.flight[piece]

    def next_offer(self, now: float) -> Offer | None:
        """Return what to take from whom next, noted as on its way; None when there is nothing for now."""
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
            # Nobody states the piece's hash: the whole file from one host, so that it is known whose it was.
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
        """Return whether nobody can bring what is missing: the origin is shut for all who answer."""
        if self.origin or self.flight:
            return False
        if any(other.alive and other.complete and other.strikes < STRIKES for other in self.others.values()):
            return False
        return not self.available and not any(self._reads(other) for other in self.others.values())

    def watched(self) -> list[str]:
        """Return the hosts to listen to.

        All of a small fleet. Of a large one those whose turn at the origin it is or comes next, and some at
        doubling distances, so that everybody is listened to by few and everything still comes by.
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

    def _reads_here(self) -> bool:
        """Return whether this host reads from the origin: not while others do and take nothing from it."""
        return self.origin and (self.trusted or not any(map(self._reads, self.others.values())))

    def _reads(self, other: Other) -> bool:
        return other.alive and other.pulling and other.origin and other.strikes < STRIKES

    def _claims(self, other: Other, piece: Piece, now: float) -> bool:
        """Return whether a host's claim to a piece counts."""
        claim = other.claims.get(piece)
        if claim is None or not self._reads(other) or piece[0] in other.avoided:
            return False
        generation, since = claim
        lasts = max(PATIENCE, OVERDUE * self.typical)
        if self._in_one_go(piece[0]):
            lasts *= self.files[piece[0]].pieces
        return generation >= self.generations.get(piece[0], 0) and now - since < lasts

    def _free(self, piece: Piece, now: float) -> bool:
        """Return whether a missing piece is nobody's so far."""
        return (
            piece not in self.flight
            and piece not in self.available
            and not any(self._claims(other, piece, now) for other in self.others.values())
        )

    def _usable(self, other: Other, piece: Piece) -> bool:
        """Return whether a piece can be taken from a host."""
        if not other.alive or other.strikes >= STRIKES or piece[0] in other.avoided:
            return False
        if piece[0] in other.whole:
            return True
        found = other.have.get(piece)
        if found is None or found[0] < self.generations.get(piece[0], 0):
            return False
        reader = self.others.get(found[2])
        return reader is None or piece[0] not in reader.avoided

    def _refresh(self) -> None:
        """Find anew which missing pieces somebody has; keeps the order in which they were announced."""
        others = [other for other in self.others.values() if other.alive and (other.have or other.whole)]
        found = {piece for piece in self.missing if any(self._usable(other, piece) for other in others)}
        self.available = {piece: None for piece in [*self.available, *self.missing] if piece in found}

"""One host's knowledge of a shared pull: events here, and what the others announced. No decisions.

Announcements are never trusted beyond what is possible: numbers are checked against the files, names against
the fleet, a claim's time starts once, and a host that announces without sending is left out.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from minimax_metal.host.weights.share.facts import (
    BUSY,
    CLAIMS,
    DISTRUSTED,
    FRUITLESS,
    GENERATIONS,
    LEFT_OUT,
    ONE_GO,
    OVERDUE,
    PATIENCE,
    REFUSALS,
    STRIKES,
    USUAL,
    Claim,
    File,
    Held,
    Offer,
    Other,
    Piece,
)


class Heard:
    """One host's knowledge of a shared pull."""

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
        """Whether the others accept this host's pieces."""
        self.distrust: dict[str, set[str]] = {}
        """Host -> those that no longer take anything from it."""
        self.ranges = True
        """Whether the origin supports range requests."""
        self.others = {name: Other() for name in self.names if name != me}
        self.generations: dict[str, int] = {}
        self.mine: dict[Piece, tuple[str, str]] = {}
        """Piece on this host -> SHA-256, first reader."""
        self.whole: set[str] = set()
        self.suspect: dict[Piece, str] = {}
        """Pieces of a file that went wrong, still on the disk: good again when announced with this hash."""
        self.flight: dict[Piece, str] = {}
        """Piece in progress -> its source; ``""`` is the origin."""
        self.senders: dict[Piece, str] = {}
        self.sticky: dict[str, str] = {}
        """File without published piece hashes -> the one host it is taken from."""
        self.index: dict[Piece, int] = {}
        self.missing: dict[Piece, None] = {}
        self.available: dict[Piece, None] = {}
        """Missing pieces that somebody announced."""
        self._dealt: list[str] = []
        self._dealt_since = 0.0
        self.typical = 0.0
        """Seconds from a claim to the announcement, on average."""
        self.usual = 0.0
        """Seconds to take a piece from another host, on average."""
        self.clock = 0.0
        """The latest time that was passed in."""
        self.came = 0.0
        """When another host last sent a piece."""
        self.random = random.Random(seed)  # noqa: S311  spreads load, keeps no secret
        for file in sorted(files, key=lambda file: file.path):
            for number in range(file.pieces):
                self.index[file.key, number] = len(self.index)
                self.missing[file.key, number] = None

    # Events on this host

    def have(self, piece: Piece, sha256: str, reader: str, sender: str = "") -> None:
        """Note a piece on this host that matches its announcement; ``sender`` is empty if it came from the
        origin.
        """
        if sender:
            self.came = self.clock
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
        """Restart a file whose pieces do not make up its hash; return the hosts to blame."""
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
            # The host that sent bytes without a published hash; and the one host that read all of it.
            if sender and sender == self.sticky.get(key):
                blamed.add(sender)
            elif generation > 0 and sender:
                # The reader, if it announced this itself or is not listened to; else the host that named it.
                named = self.others.get(reader)
                said = None if named is None else named.have.get(piece)
                right = named is not None and (not named.alive if said is None else said[1] == sha256)
                blamed.add(reader if right else sender)
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
        """Note that a piece did not arrive."""
        self.flight.pop(piece, None)

    def wrong(self, offer: Offer) -> bool:
        """Note that a host sent other bytes than it had announced; return whether it has lost all trust."""
        self.flight.pop(offer.piece, None)
        other = self.others[offer.peer]
        other.strikes += 1
        other.avoided.add(offer.piece[0])
        self._refresh()
        return other.strikes == STRIKES

    def delivered(self, peer: str, seconds: float) -> None:
        """Note that a host sent a correct piece, and its duration."""
        other = self.others[peer]
        other.fruitless = other.outs = 0
        other.busy_since = None
        self.usual = seconds if not self.usual else 0.9 * self.usual + 0.1 * seconds

    def undelivered(self, offer: Offer, now: float) -> float | None:
        """Note that a host did not send what it announced; return for how long it is left out, if it is."""
        self.clock = max(self.clock, now)
        self.flight.pop(offer.piece, None)
        other = self.others[offer.peer]
        other.failed[offer.piece] = other.failed.get(offer.piece, 0) + 1
        other.fruitless += 1
        other.busy_until = max(now + 1.0, other.busy_until)
        seconds = None
        if other.fruitless >= FRUITLESS and other.out_until <= now:
            seconds = min(600.0, LEFT_OUT * 2**other.outs)
            other.outs += 1
            other.out_until, other.fruitless, other.busy_since = now + seconds, FRUITLESS - 1, None
        self._refresh()
        return seconds

    def busy(self, offer: Offer, until: float, now: float) -> float | None:
        """Note that a host is busy until a time; like :meth:`undelivered` if it always is."""
        other = self.others[offer.peer]
        other.busy_until = max(until, other.busy_until)
        if other.busy_since is None:
            other.busy_since = now
        if now - other.busy_since > BUSY:
            other.busy_since = None
            return self.undelivered(offer, now)
        self.flight.pop(offer.piece, None)
        return None

    def time_to_take(self, size: int, least_rate: float, least: float) -> float:
        """Return the seconds that a piece may take from another host.

        Args:
            size: bytes of the piece.
            least_rate: sufficient bytes per second while usual durations are unknown.
            least: minimum seconds for any piece.
        """
        return max(least, USUAL * self.usual if self.usual else size / least_rate)

    def gone(self, offer: Offer) -> None:
        """Note that a host no longer has what it announced."""
        self.flight.pop(offer.piece, None)
        other = self.others[offer.peer]
        other.have.pop(offer.piece, None)
        other.whole.discard(offer.piece[0])
        other.complete = False
        self._refresh()

    # Announcements of other hosts

    def met(self, peer: str, *, pulling: bool) -> None:
        """Note that a host answers; if its pull is not running, its claims don't count."""
        other = self.others[peer]
        other.alive = True
        other.looks += 1
        if not pulling:
            other.claims.clear()
        other.pulling = pulling

    def reborn(self, peer: str) -> None:
        """Note that a host's pull restarted: it will announce its pieces again."""
        other = self.others[peer]
        other.have.clear()
        other.whole.clear()
        other.claims.clear()
        other.failed.clear()
        other.origin, other.complete = True, False
        self._refresh()

    def lost(self, peer: str) -> None:
        """Note that a host no longer answers."""
        other = self.others[peer]
        other.alive = other.pulling = other.complete = False
        other.have.clear()
        other.whole.clear()
        other.claims.clear()
        self._refresh()

    def completed(self, peer: str, keys: Iterable[str]) -> None:
        """Note that a host has the verified model, with these of the files."""
        other = self.others[peer]
        other.alive, other.pulling, other.complete = True, False, True
        other.claims.clear()
        other.have.clear()
        other.whole = set(keys)
        self._refresh()

    def claimed(self, peer: str, claim: Claim, now: float) -> None:
        """Note what a host is about to read from the origin.

        A claim's time starts once: repeating it, without having read, extends nothing.
        """
        self.clock = max(self.clock, now)
        file = self.files.get(claim.key)
        if file is None or not 0 <= claim.first <= claim.last < file.pieces:
            return
        if not 0 <= claim.generation <= GENERATIONS:
            return
        other = self.others[peer]
        for piece in claim.pieces:
            held = other.claims.get(piece)
            if held is not None and held.generation >= claim.generation:
                continue
            other.spent[piece] = other.spent.get(piece, 0) + 1
            if other.spent[piece] <= CLAIMS + self.generations.get(claim.key, 0):
                other.claims[piece] = Held(claim.generation, now, claim.first, claim.last)

    def dropped(self, peer: str, key: str, first: int, last: int) -> None:
        """Note that a host gave up a claim."""
        file = self.files.get(key)
        if file is not None:
            for number in range(max(0, first), min(last, file.pieces - 1) + 1):
                self.others[peer].claims.pop((key, number), None)

    def announced(
        self, peer: str, piece: Piece, sha256: str, generation: int, reader: str, now: float
    ) -> bool:
        """Note that a host has a piece; return whether it is one that is suspect here and now cleared."""
        self.clock = max(self.clock, now)
        if piece not in self.index or not 0 <= generation <= GENERATIONS:
            return False
        if reader not in self.rank:
            return False
        other = self.others[peer]
        held = other.claims.pop(piece, None)
        if held is not None:
            took = max(0.0, now - held.since)
            self.typical = took if not self.typical else 0.9 * self.typical + 0.1 * took
            for number in range(piece[1] + 1, held.last + 1):
                # The rest of what is read in one go: its time restarts with each piece that arrives.
                if (rest := other.claims.get((piece[0], number))) is not None and rest.last == held.last:
                    rest.since, rest.progress = now, True
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
        """Note that a host no longer takes anything from another.

        If two say so (one, if there is no other) it holds: nobody waits for that host's reads, and it reads
        nothing from the origin, since nobody would take it.
        """
        if whom not in self.rank:
            return
        self.distrust.setdefault(whom, set()).add(peer)
        if len(self.distrust[whom]) < min(2, len(self.others)):
            return
        if whom == self.me:
            self.came = self.clock if self.trusted else self.came
            self.trusted = False
        elif whom in self.others:
            self.others[whom].strikes = max(STRIKES, self.others[whom].strikes)
            self._refresh()

    def can_read(self, peer: str, origin: bool) -> None:
        """Note whether a host can read the origin."""
        self.others[peer].origin = origin

    def _reads_here(self) -> bool:
        """Return whether this host reads from the origin: not while others do and distrust it.

        That holds for as long as they deliver what it lacks.
        """
        if not self.origin or self.trusted:
            return self.origin
        bring = any(self._reads(other) and not other.outs for other in self.others.values())
        return not bring or self.clock - self.came > DISTRUSTED

    def _reads(self, other: Other) -> bool:
        return other.alive and other.pulling and other.origin and other.strikes < STRIKES

    def _claims(self, other: Other, piece: Piece, now: float) -> bool:
        """Return whether a host's claim to a piece counts."""
        held = other.claims.get(piece)
        if held is None or not self._reads(other) or piece[0] in other.avoided:
            return False
        lasts = max(PATIENCE, OVERDUE * self.typical)
        if self._in_one_go(piece[0]) and not held.progress:
            lasts = max(lasts, min(ONE_GO, lasts * self.files[piece[0]].pieces))
        return held.generation >= self.generations.get(piece[0], 0) and now - held.since < lasts

    def _free(self, piece: Piece, now: float) -> bool:
        """Return whether a missing piece is not in progress anywhere."""
        return (
            piece not in self.flight
            and piece not in self.available
            and not any(self._claims(other, piece, now) for other in self.others.values())
        )

    def _usable(self, other: Other, piece: Piece) -> bool:
        """Return whether a piece can be taken from a host."""
        if not other.alive or other.strikes >= STRIKES or piece[0] in other.avoided:
            return False
        if other.out_until > self.clock or other.failed.get(piece, 0) >= REFUSALS:
            return False
        if piece[0] in other.whole:
            return True
        found = other.have.get(piece)
        if found is None or found[0] < self.generations.get(piece[0], 0):
            return False
        reader = self.others.get(found[2])
        return reader is None or piece[0] not in reader.avoided

    def _refresh(self) -> None:
        """Update which missing pieces other hosts have; keeps the order of announcements."""
        others = [other for other in self.others.values() if other.alive and (other.have or other.whole)]
        found = {piece for piece in self.missing if any(self._usable(other, piece) for other in others)}
        self.available = {piece: None for piece in [*self.available, *self.missing] if piece in found}

    def _in_one_go(self, key: str) -> bool:
        """Return whether a file is read by one host alone, from its beginning."""
        return self.generations.get(key, 0) > 0 or not self.ranges

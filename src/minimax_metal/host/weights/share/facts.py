"""What a shared pull is about: files, pieces, claims, and what is known of another host."""

from __future__ import annotations

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
ONE_GO: Final = 600.0
"""Seconds that a claim to a whole file lasts without a first piece of it, at most."""
CLAIMS: Final = 3
"""Times a host's claim to the same piece counts: who claims again without having read begins no new time."""
GENERATIONS: Final = 64
"""More generations of a file than this are nobody's honest word."""
FRUITLESS: Final = 3
"""Takes from one host in a row that bring nothing, after which it is left out for a while."""
REFUSALS: Final = 2
"""Takes of one piece from one host that bring nothing, after which it is not asked for that piece again."""
LEFT_OUT: Final = 15.0
"""Seconds for which a host is left out, doubled each time, ten minutes at most."""
BUSY: Final = 60.0
"""Seconds for which a host may have its hands full and send nothing, before that counts as fruitless."""
USUAL: Final = 8.0
"""A take that lasts this many times as long as takes usually do is given up."""
DISTRUSTED: Final = 60.0
"""Seconds without a byte from others after which a host that they distrust reads the origin all the same."""


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


@dataclass(slots=True)
class Held:
    """A piece that another host has claimed."""

    generation: int
    since: float
    """When the claim was heard first; later, when the piece before it of the same claim was announced."""
    first: int
    last: int
    progress: bool = False
    """Whether any piece of the same claim was announced."""


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
    claims: dict[Piece, Held] = field(default_factory=dict)
    spent: dict[Piece, int] = field(default_factory=dict)
    """Piece -> how often this host claimed it."""
    failed: dict[Piece, int] = field(default_factory=dict)
    """Piece -> takes from this host that brought nothing."""
    fruitless: int = 0
    """Takes in a row that brought nothing."""
    outs: int = 0
    """How often it was left out."""
    out_until: float = 0.0
    busy_since: float | None = None
    strikes: int = 0
    busy_until: float = 0.0
    avoided: set[str] = field(default_factory=set)
    """Files that are not taken from it."""

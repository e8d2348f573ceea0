"""The data of a shared pull: files, pieces, claims, and knowledge of other hosts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

Piece = tuple[str, int]

STREAMS: Final = 16
"""Pieces read from the origin in parallel by all hosts together: two each for eight. With more, more would
have to be passed on when the last one arrives.
"""
STRIKES: Final = 3
"""Times a host may send other bytes than it announced before nothing is taken from it any longer."""
WINDOW: Final = 32
"""Number of available pieces among which the next is chosen at random, so that hosts take different ones."""
OVERDUE: Final = 4.0
"""A claim that lasts this many times as long as pieces usually take no longer counts."""
SETTLING: Final = 1.0
"""Seconds after a change of readers in which every claim is treated like one that was taken over."""
PATIENCE: Final = 10.0
"""Minimum seconds of a claim."""
ONE_GO: Final = 600.0
"""Maximum seconds of a claim to a whole file without a first piece of it."""
CLAIMS: Final = 3
"""Times a host's claim to the same piece counts: a repeated claim without reading gets no new time."""
GENERATIONS: Final = 64
"""A file never honestly has more generations than this."""
FRUITLESS: Final = 3
"""Consecutive fruitless takes from one host, after which it is left out for a while."""
REFUSALS: Final = 2
"""Fruitless takes of one piece from one host, after which it is not asked for that piece again."""
LEFT_OUT: Final = 15.0
"""Seconds for which a host is left out, doubled each time, ten minutes at most."""
BUSY: Final = 60.0
"""Seconds for which a host may be busy and send nothing, before that counts as fruitless."""
USUAL: Final = 8.0
"""A take that lasts this many times as long as usual is given up."""
DISTRUSTED: Final = 60.0
"""Seconds without a byte from others after which a host that they distrust reads the origin anyway."""


@dataclass(frozen=True, slots=True)
class File:
    """A file in pieces: ``key`` is the same on all hosts for the same bytes under the same path."""

    key: str
    path: str
    size: int
    pieces: int
    stated: str | None = None
    """SHA-256 of the whole, if the source publishes it."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Pieces ``first`` to ``last`` of a file, to be read from the origin in one go."""

    key: str
    first: int
    last: int
    generation: int
    taken_over: bool
    """It may be another host's turn: claim first, and read if nobody else did the same."""

    @property
    def pieces(self) -> list[Piece]:
        """The pieces one by one."""
        return [(self.key, number) for number in range(self.first, self.last + 1)]


@dataclass(slots=True)
class Held:
    """A piece that another host has claimed."""

    generation: int
    since: float
    """When the claim was first heard; later, when the previous piece of the same claim was announced."""
    first: int
    last: int
    progress: bool = False
    """Whether any piece of the same claim was announced."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A piece to take from ``peer``; ``sha256`` is its announced hash, ``reader`` the host that read it
    first.
    """

    piece: Piece
    peer: str
    sha256: str | None
    reader: str


@dataclass(slots=True)
class Other:
    """Knowledge of another host."""

    alive: bool = False
    """It answers."""
    looks: int = 0
    """How often it answered."""
    pulling: bool = False
    """Its pull is running: its claims count."""
    complete: bool = False
    """It has the verified model."""
    origin: bool = True
    """It can read the origin, according to itself."""
    have: dict[Piece, tuple[int, str, str]] = field(default_factory=dict)
    """Piece -> generation, SHA-256, first reader."""
    whole: set[str] = field(default_factory=set)
    claims: dict[Piece, Held] = field(default_factory=dict)
    spent: dict[Piece, int] = field(default_factory=dict)
    """Piece -> how often this host claimed it."""
    failed: dict[Piece, int] = field(default_factory=dict)
    """Piece -> fruitless takes from this host."""
    fruitless: int = 0
    """Consecutive fruitless takes."""
    outs: int = 0
    """How often it was left out."""
    out_until: float = 0.0
    busy_since: float | None = None
    strikes: int = 0
    busy_until: float = 0.0
    avoided: set[str] = field(default_factory=set)
    """Files that are not taken from it."""

"""Run uv and apt for a bundle: they ask mirrors, which may send without end or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from minimax_metal.common import program
from minimax_metal.common.errors import UserError

SECONDS: Final = 1800.0
"""Longest that a mirror may take for lists and metadata; the files themselves are fetched by the bundle."""
BYTES: Final = 256 << 20
"""Most of an output: apt's list of all packages of an archive has some tens of MB."""


def run(words: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> program.Answer:
    """Run a program to its end; return its answer, also where it failed.

    Raises:
        UserError: it takes longer than :data:`SECONDS`, or says more than :data:`BYTES`.
    """
    done = program.run(words, seconds=SECONDS, limit=BYTES, environment=environment)
    if done.timed_out or done.cut:
        name = Path(words[0]).name
        found = f"more than {BYTES >> 20} MB from {name}" if done.cut else f"no end of {name}"
        raise UserError(
            f"found {found} within {SECONDS / 60:.0f} min, expected an answer; check the mirrors it asks, "
            "then run the same command again"
        )
    return done

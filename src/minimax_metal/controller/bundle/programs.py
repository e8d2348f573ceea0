"""Run uv and apt for a bundle: they contact mirrors, which may never finish an answer or never send one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from minimax_metal.common import program
from minimax_metal.common.errors import UserError

SECONDS: Final = 1800.0
"""Maximum time for a mirror to send lists and metadata; the bundle itself fetches the files."""
BYTES: Final = 256 << 20
"""Maximum size of an output: apt's list of all packages of an archive has some tens of MB."""


def run(words: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> program.Answer:
    """Run a program until it ends; return its result, even if it failed.

    Raises:
        UserError: it takes longer than :data:`SECONDS`, or prints more than :data:`BYTES`.
    """
    done = program.run(words, seconds=SECONDS, limit=BYTES, environment=environment)
    if done.timed_out or done.cut:
        name = Path(words[0]).name
        found = f"more than {BYTES >> 20} MB of output from {name}" if done.cut else f"{name} still running"
        raise UserError(
            f"found {found} after {SECONDS / 60:.0f} min, expected an answer; check the mirrors it "
            "asks, then run the same command again"
        )
    return done

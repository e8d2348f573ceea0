"""Why an adoption found nothing: reported so that the reader understands the reason."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from minimax_metal.common.text import one_line
from minimax_metal.host.weights.examine import examine
from minimax_metal.host.weights.manifest import Entry

SHOWN: Final = 4


def saw(directory: Path, places: Sequence[Path], entries: Sequence[Entry]) -> str:
    """Return the contents of a directory named for adoption, and why they are useless.

    Args:
        directory: as the user named it.
        places: the searched directories below it.
        entries: the files of the model.
    """
    if not directory.exists():
        return "it does not exist"
    if not directory.is_dir():
        return "it is not a directory"
    try:
        names = sorted(path.name for path in directory.iterdir())
    except OSError as error:
        return f"it can't be read ({error.strerror})"
    if not names:
        return "it is empty"
    best = max(places, key=lambda place: _known(place, entries), default=directory)
    known = _known(best, entries)
    if not known:
        return f"none of the model's {len(entries)} files is in it, but {_some(names)}{_problems(best)}"
    below = "" if best == directory else f" in {one_line(str(best.relative_to(directory)), 200)}"
    wrong = [
        (entry, size) for entry in entries if (size := _size(best / entry.path)) not in {None, entry.size}
    ]
    text = f"{known} of the model's {len(entries)} files are in it by name{below}"
    if wrong:
        entry, size = max(wrong, key=lambda one: one[0].size)
        text += f", {len(wrong)} with another size, e.g. {entry.path} has {size} bytes, expected {entry.size}"
    return text + _problems(best)


def _problems(place: Path) -> str:
    """Return what the files themselves show: unfinished downloads, pointers, another model."""
    with contextlib.suppress(OSError):
        found = examine(place)
        if found.problems:
            return f"; {found.line(2)}"
    return ""


def _known(place: Path, entries: Sequence[Entry]) -> int:
    return sum(_size(place / entry.path) is not None for entry in entries)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(one_line(name, 80) for name in names[:SHOWN]) + more

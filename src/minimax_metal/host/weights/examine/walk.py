"""File system and configuration data of a directory, for its examination."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def files_below(root: Path) -> Iterator[tuple[tuple[str, ...], frozenset[str]]]:
    """Yield every file below a directory as its components, with the names beside it; links stay links.

    A link to a directory is followed, but not twice into the same one.
    """
    seen: set[tuple[int, int]] = set()
    stack: list[tuple[str, ...]] = [()]
    while stack:
        here = stack.pop()
        folder = root.joinpath(*here)
        try:
            status = folder.stat()
        except OSError:
            yield here, frozenset()
            continue
        if (status.st_dev, status.st_ino) in seen or len(here) > 12:
            continue
        seen.add((status.st_dev, status.st_ino))
        try:
            names = sorted(path.name for path in folder.iterdir())
        except OSError:
            if not here:
                raise
            yield here, frozenset()
            continue
        beside = frozenset(names)
        for name in names:
            # Not Path.is_dir, which raises for a folder that may be listed but not entered.
            if os.path.isdir(folder / name):  # noqa: PTH112
                if here or name not in {".git", "__pycache__", ".minimax-metal"}:
                    stack.append((*here, name))
            else:
                yield (*here, name), beside


def holes_of(descriptor: int, size: int) -> int:
    """Return the bytes of a file that were never written; 0 if its file system does not report them."""
    holes = position = 0
    with contextlib.suppress(OSError):
        for _ in range(10_000):
            if position >= size:
                break
            hole = os.lseek(descriptor, position, os.SEEK_HOLE)
            if hole >= size:
                break
            try:
                position = os.lseek(descriptor, hole, os.SEEK_DATA)
            except OSError:
                position = size
            holes += position - hole
    return holes


def code_of(configuration: Mapping[str, Any]) -> set[str]:
    """Return the code files that a configuration loads from the model's own directory."""
    found: set[str] = set()
    auto_map = configuration.get("auto_map")
    for value in auto_map.values() if isinstance(auto_map, dict) else ():
        for one in value if isinstance(value, list) else [value]:
            # "repository--module.Class" loads it from elsewhere.
            if isinstance(one, str) and re.fullmatch(
                r"[A-Za-z_][A-Za-z0-9_]{0,100}\.[A-Za-z0-9_.]{1,100}", one
            ):
                found.add(f"{one.partition('.')[0]}.py")
    return found

"""What lies in directories of a host, for module metal_facts: rooms, weights, engine environments.

Directories change while they are read (a pull renames and removes files): what is gone by now is left out.
"""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def names_in(directory: str | Path) -> list[str]:
    """Return the names in a directory, in order; none where it can't be read, or is gone by now."""
    try:
        return sorted(path.name for path in Path(directory).iterdir())
    except OSError:
        return []


def disk(path: str) -> dict[str, Any]:
    """Return total and free bytes of the file system that holds a path or its nearest existing parent."""
    for place in (Path(path), *Path(path).parents):
        try:
            status = os.statvfs(place)
            device = place.stat().st_dev
        except (FileNotFoundError, NotADirectoryError):
            continue
        return {
            "path": str(place),
            "total_bytes": status.f_blocks * status.f_frsize,
            "free_bytes": status.f_bavail * status.f_frsize,
            "device": device,
        }
    raise FileNotFoundError(2, "No such directory", path)


def disks(paths: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the room at each path; of one that can't be read, why not."""
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        try:
            found[path] = disk(path)
        except OSError as error:
            found[path] = {"path": path, "error": error.strerror or str(error)}
    return found


def stored_weights(directory: str) -> dict[str, int]:
    """Return the bytes stored under each ORGANISATION/NAME/REVISION, unfinished pulls among them.

    A pull that goes on meanwhile renames and removes files: what is gone by now counts nothing.
    """
    sizes = {}
    for organisation in names_in(directory):
        for name in names_in(Path(directory, organisation)):
            for revision in names_in(Path(directory, organisation, name)):
                path = Path(directory, organisation, name, revision)
                # Whoever pulls owns the directory above: a link there may lead to all of the host.
                if path.is_dir() and not path.is_symlink():
                    sizes[str(path)] = tree_bytes(path)
    return sizes


def tree_bytes(directory: Path) -> int:
    """Return the bytes of the files below a directory, as far as they are there when they are looked at."""
    total = 0
    for parent, _directories, files in os.walk(directory):
        for name in files:
            try:
                total += Path(parent, name).lstat().st_size
            except OSError:
                continue  # it went away meanwhile
    return total


def engine_environments(directory: str) -> list[str]:
    """Return the directories that hold an engine's Python."""
    return [
        str(Path(directory, name))
        for name in names_in(directory)
        if Path(directory, name, "bin", "python").exists()
    ]


def adoptable(directories: Iterable[str], weights_directory: str) -> dict[str, int]:
    """Return, by directory, the bytes of the files that a link can put below the weights directory.

    That takes the same file system, and a file that all may read and only its owner may write. One that has
    several names counts once.
    """
    device = disk(weights_directory)["device"]
    sizes = {}
    for directory in directories:
        seen = {}
        for parent, _directories, files in os.walk(directory):
            for name in files:
                try:
                    status = Path(parent, name).lstat()
                except OSError:
                    continue  # it went away meanwhile
                shared = status.st_mode & stat.S_IROTH and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
                if stat.S_ISREG(status.st_mode) and status.st_dev == device and shared:
                    seen[status.st_ino] = status.st_size
        sizes[directory] = sum(seen.values())
    return sizes

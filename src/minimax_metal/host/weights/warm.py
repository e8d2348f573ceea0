"""``metal warm``: read a directory's files into the page cache, for a later reader.

Exit status: 0 read, 1 a file could not be read, 2 usage.
"""

from __future__ import annotations

import argparse
import os
import stat
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from minimax_metal.common.errors import UserError

BLOCK: Final = 8 * 1024 * 1024
"""Bytes per read: large enough for a disk, small enough for a quick stop."""


@dataclass(frozen=True, slots=True)
class Warmed:
    """The result."""

    bytes: int
    files: int
    failed: tuple[str, ...]
    """One line for each unreadable file."""


def warm(directory: Path, threads: int, stop: threading.Event | None = None) -> Warmed:
    """Read every file below ``directory``, the largest first, ``threads`` in parallel.

    The data is discarded: the kernel keeps it in memory until the memory is needed.

    Raises:
        UserError: there is no such directory.
    """
    if not directory.is_dir():
        raise UserError(f"found no directory {directory}, expected a model's weights; pull them first")
    stop = stop or threading.Event()
    # An adopted file is a link to its former place; its target is read.
    sizes = _sizes(directory)
    files = sorted(sizes, key=lambda path: (-sizes[path], path))
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="warm") as pool:
        read = list(pool.map(lambda path: _read(path, stop), files))
    numbers = [one for one in read if isinstance(one, int)]
    return Warmed(sum(numbers), len(numbers), tuple(one for one in read if isinstance(one, str)))


def _sizes(directory: Path) -> dict[Path, int]:
    """Return the sizes of all regular files below a directory; unreadable ones are skipped."""
    found = {}
    for parent, _, names in os.walk(directory):
        for name in names:
            path = Path(parent, name)
            with suppress(OSError):
                status = path.stat()
                if stat.S_ISREG(status.st_mode):
                    found[path] = status.st_size
    return found


def _read(path: Path, stop: threading.Event) -> int | str:
    """Return how many bytes were read, or why the file could not be."""
    buffer = memoryview(bytearray(BLOCK))
    total = 0
    try:
        with path.open("rb", buffering=0) as file:
            while not stop.is_set() and (count := file.readinto(buffer)):
                total += count
    except OSError as error:
        return f"{path}: {error.strerror}"
    return total


def main(argv: Sequence[str]) -> int:
    """Read a directory's files into the page cache."""
    parser = argparse.ArgumentParser(
        prog="metal warm", description="Read weights into the page cache before the engine does."
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument(
        "--threads", type=int, default=8, metavar="N", help="files read in parallel (%(default)s)"
    )
    arguments = parser.parse_args(argv)
    if arguments.threads < 1:
        raise UserError(f"found --threads {arguments.threads}, expected 1 or more")
    begun = time.monotonic()
    done = warm(arguments.directory, arguments.threads)
    seconds = max(time.monotonic() - begun, 0.001)
    print(
        f"read {done.bytes / 1e9:.1f} GB in {done.files} files in {seconds:.0f} s "
        f"({done.bytes / 1e9 / seconds:.1f} GB/s)"
    )
    for line in done.failed:
        print(f"metal warm: {line}", file=sys.stderr)
    return 1 if done.failed else 0

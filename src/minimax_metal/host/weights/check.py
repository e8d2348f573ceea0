"""``metal weights verify``: read every byte of a model directory again, at disk speed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from minimax_metal.host.weights.manifest import FOLDER, DamagedFileError, Entry, Manifest, verify


@dataclass(frozen=True, slots=True)
class Verification:
    """The result: a line per damaged file, files that are not in the manifest, bytes, seconds."""

    damaged: tuple[str, ...]
    strangers: tuple[str, ...]
    bytes: int
    seconds: float


def workers_by_default() -> int:
    """Return how many files are read in parallel: one per core (which hashes 1-2 GB/s), 16 at most."""
    return max(1, min(16, len(os.sched_getaffinity(0))))


def reread(
    directory: Path,
    manifest: Manifest,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    interval: float = 5.0,
) -> Verification:
    """Read and hash every file of a manifest.

    Args:
        directory: the model directory.
        manifest: its expected contents.
        workers: files read in parallel.
        progress: called with the bytes read and the total, every ``interval`` seconds.
        interval: seconds.
    """
    begun = time.monotonic()
    lock, done, ended = threading.Lock(), 0, threading.Event()

    def count(size: int) -> None:
        nonlocal done
        with lock:
            done += size

    def one(entry: Entry) -> str | None:
        try:
            verify(directory, entry, count)
        except DamagedFileError as error:
            return str(error)
        except OSError as error:
            return f"{entry.path} can't be read: {error.strerror}"
        return None

    def tell() -> None:
        while not ended.wait(interval):
            progress(done, manifest.bytes)

    teller = threading.Thread(target=tell, name="progress", daemon=True)
    teller.start()
    try:
        with ThreadPoolExecutor(workers or workers_by_default(), thread_name_prefix="verify") as pool:
            # Largest first, so that the last to finish is small.
            found = list(pool.map(one, sorted(manifest.files, key=lambda entry: -entry.size)))
    finally:
        ended.set()
        teller.join()
    known = {entry.path for entry in manifest.files}
    strangers = sorted(
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if not path.is_dir() and path.relative_to(directory).parts[0] != FOLDER
        if path.relative_to(directory).as_posix() not in known
    )
    damaged = tuple(sorted(line for line in found if line is not None))
    return Verification(damaged, tuple(strangers), done, time.monotonic() - begun)

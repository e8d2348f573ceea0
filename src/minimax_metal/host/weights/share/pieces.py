"""A file that arrives in pieces, in any order and from several hosts in parallel.

Every piece is hashed while it is written, and noted if its hash is right. The hash of the whole file follows:
as soon as the pieces from the beginning on exist they are read back, from the page cache, and hashed in
order; a file of one piece is not read back. What an earlier process left is read once: a piece that no longer
matches its note (the machine lost power) is fetched again.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from minimax_metal.common.documents import digits
from minimax_metal.common.files import write_atomic
from minimax_metal.host.weights.manifest import FOLDER, DamagedFileError, Entry
from minimax_metal.host.weights.part import PARTS, Part

_BLOCK: Final = 1 << 20


def key_of(identity: str, path: str) -> str:
    """Return the key of a file: the same for the same bytes under the same path, on all hosts."""
    return hashlib.sha256(f"{identity}\0{path}".encode()).hexdigest()[:32]


def count(size: int, piece: int) -> int:
    """Return how many pieces a file has; an empty one has one."""
    return max(1, -(-size // piece))


class PieceFile:
    """One incoming file in pieces of ``piece`` bytes; ``have``: number -> SHA-256 of existing ones."""

    def __init__(self, staging: Path, identity: str, entry: Entry, piece: int) -> None:
        self.entry = entry
        self.piece = piece
        self.key = key_of(identity, entry.path)
        self.pieces = count(entry.size, piece)
        self.path = staging / FOLDER / PARTS / self.key
        self.notes = self.path.with_name(f"{self.key}.pieces")
        self.have: dict[int, str] = {}
        self.lock = threading.Lock()
        self._staging, self._identity = staging, identity
        self._file = -1
        self._hashing = threading.Lock()
        self._start_over()

    def _start_over(self) -> None:
        self._hashed = 0
        self._sha256 = hashlib.sha256()
        self._git: Any = None
        if self.entry.git_oid is not None:
            self._git = hashlib.sha1(f"blob {self.entry.size}\0".encode(), usedforsecurity=False)

    def span(self, number: int) -> tuple[int, int]:
        """Return where a piece begins and ends, as offsets in the file."""
        return number * self.piece, min(self.entry.size, (number + 1) * self.piece)

    def present(self) -> int:
        """Return the total bytes of existing pieces."""
        return sum(end - begin for begin, end in map(self.span, list(self.have)))

    def staged(self) -> int:
        """Return the bytes that seem to exist, according to the notes."""
        noted = self._noted()
        if noted is None:
            return Part.staged(self._staging, self._identity, self.entry)
        return sum(end - begin for begin, end in map(self.span, noted)) if self.path.exists() else 0

    def open(self) -> None:
        """Open the file for writing."""
        if self._file < 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._file = os.open(self.path, flags, 0o644)

    def close(self) -> None:
        """Close it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def recall(self, read: Callable[[int], None] = lambda _: None) -> None:
        """Use what an earlier process left, each piece only if it still matches its note.

        Args:
            read: called with the number of bytes after every block, for progress.
        """
        if not self.path.exists():
            self.notes.unlink(missing_ok=True)
            return
        noted = self._noted()
        if noted is None:
            noted = self._from_sequential(read)
        self.open()
        for number, sha256 in sorted(noted.items()):
            begin, end = self.span(number)
            if self._digest(begin, end, read) == sha256:
                self.have[number] = sha256
        self._write_notes()

    def _noted(self) -> dict[int, str] | None:
        """Return the noted pieces; None if this was not a file in pieces of this size."""
        try:
            lines = self.notes.read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            return None
        if not lines or lines[0] != f"piece {self.piece}":
            return {}
        found = {}
        for line in lines[1:]:
            first, _, sha256 = line.partition(" ")
            number = digits(first)
            if number is not None and number < self.pieces and len(sha256) == 64:
                found[number] = sha256
        return found

    def _from_sequential(self, read: Callable[[int], None]) -> dict[int, str]:
        """Return the complete pieces of a file that a pull without sharing left, from its beginning on."""
        with Part.open(self._staging, self._identity, self.entry) as part:
            part.recall(read)
            good = part.offset
        self.path.with_name(f"{self.key}.marks").unlink(missing_ok=True)
        self.open()
        found = {}
        for number in range(self.pieces):
            begin, end = self.span(number)
            if end <= good:
                found[number] = self._digest(begin, end, lambda _: None)
        return found

    def _digest(self, begin: int, end: int, read: Callable[[int], None]) -> str:
        """Hash a part of the file; continues the whole hash if that part is next."""
        sha256 = hashlib.sha256()
        for block in self._blocks(begin, end):
            sha256.update(block)
            read(len(block))
        return sha256.hexdigest()

    def _blocks(self, begin: int, end: int) -> Iterable[memoryview]:
        memory = memoryview(bytearray(min(_BLOCK, max(1, end - begin))))
        while begin < end:
            size = os.preadv(self._file, [memory[: min(len(memory), end - begin)]], begin)
            if not size:
                return
            yield memory[:size]
            begin += size

    def write(self, block: bytes | memoryview, offset: int) -> None:
        """Write bytes at an offset."""
        view = memoryview(block)
        while view:
            written = os.pwrite(self._file, view, offset)
            view, offset = view[written:], offset + written

    def keep(self, number: int, sha256: str) -> None:
        """Note a complete piece, with its hash."""
        with self.lock:
            new = not self.have
            self.have[number] = sha256
            if new:
                self._write_notes()
                return
            with self.notes.open("a", encoding="ascii") as notes:
                notes.write(f"{number} {sha256}\n")

    def _write_notes(self) -> None:
        lines = [f"piece {self.piece}", *(f"{number} {sha256}" for number, sha256 in self.have.items())]
        # A crash in between must not lose existing pieces.
        write_atomic(self.notes, "\n".join(lines) + "\n")

    def advance(self) -> bool:
        """Hash the pieces that continue what is hashed; return whether the whole file is.

        One of several threads does it, for all.
        """
        while not self._whole() and self._hashed in self.have:
            if not self._hashing.acquire(blocking=False):
                return False
            try:
                while self._hashed in self.have and not self._whole():
                    if self.pieces > 1 or self._git is not None:
                        begin, end = self.span(self._hashed)
                        for block in self._blocks(begin, end):
                            self._sha256.update(block)
                            if self._git is not None:
                                self._git.update(block)
                    self._hashed += 1
            finally:
                self._hashing.release()
        return self._whole()

    def _whole(self) -> bool:
        return self._hashed >= self.pieces

    def dispute(self) -> int:
        """Discard all pieces: together they are not the file; return their number of bytes."""
        with self.lock:
            lost = self.present()
            self.have.clear()
            self.notes.unlink(missing_ok=True)
            self._start_over()
            return lost

    def finish(self, target: Path) -> Entry:
        """Check the whole hash, flush the bytes to the disk, give the file its name; return its entry.

        Raises:
            DamagedFileError: the bytes are not the file's.
        """
        entry = self.entry
        found = self._sha256.hexdigest()
        if self.pieces == 1 and self._git is None:
            found = self.have[0]
        if entry.sha256 is not None and found != entry.sha256:
            raise DamagedFileError(f"{entry.path} has sha256 {found[:12]}…, expected {entry.sha256[:12]}…")
        if self._git is not None and self._git.hexdigest() != entry.git_oid:
            raise DamagedFileError(
                f"{entry.path} has git id {self._git.hexdigest()[:12]}…, expected {str(entry.git_oid)[:12]}…"
            )
        os.ftruncate(self._file, entry.size)
        os.fsync(self._file)
        self.path.replace(target)
        self.notes.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.with_name(f"{self.key}.marks").unlink(missing_ok=True)
        return replace(entry, sha256=found)

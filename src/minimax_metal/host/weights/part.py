"""A partly received file: its bytes, and their hash.

Bytes are hashed as they are written, so that a complete file is never read again. A partial file of an
earlier process is read once to restore its hash (no library exports the inner state of a SHA-256). Beside it
is a small file of marks, the hash of everything before an offset, every :data:`STEP` bytes. Data that does
not match its mark, such as blocks that a power cut left empty, is cut off and fetched again, as is everything
after the last mark if the machine has rebooted since: that loses the last bytes, not the file. A pull that is
stopped cleanly, as before the driver's reboot, flushes them, and loses nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from minimax_metal.common.documents import digits
from minimax_metal.host.weights.manifest import FOLDER, DamagedFileError, Entry

STEP: Final = 16 << 20
"""Bytes between two marks."""
PARTS: Final = "parts"
_BLOCK: Final = 4 << 20
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


class Part:
    """One incoming file; ``offset``: bytes that are received and hashed."""

    def __init__(self, path: Path, entry: Entry) -> None:
        self.path = path
        self.marks = path.with_name(f"{path.name}.marks")
        self.entry = entry
        self.offset = 0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        self._next = STEP
        self._sha256 = hashlib.sha256()
        # Git's object id of a file: SHA-1 over a header with its length, then its bytes.
        self._git = None
        if entry.git_oid is not None:
            self._git = hashlib.sha1(f"blob {entry.size}\0".encode(), usedforsecurity=False)

    @classmethod
    @contextlib.contextmanager
    def open(cls, staging: Path, identity: str | None, entry: Entry) -> Iterator[Part]:
        """Open the partial file of an entry.

        Args:
            staging: the staging directory.
            identity: the same identity means the same bytes; None for a file that can't be resumed.
            entry: size and hashes from the source.
        """
        path = cls._place(staging, identity, entry.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if identity is None:
            path.unlink(missing_ok=True)
        part = cls(path, entry)
        try:
            yield part
        finally:
            os.close(part._file)

    @classmethod
    def staged(cls, staging: Path, identity: str | None, entry: Entry) -> int:
        """Return how many bytes of a file exist already, not hashed yet."""
        if identity is None:
            return 0
        try:
            return min(entry.size, cls._place(staging, identity, entry.path).stat().st_size)
        except OSError:
            return 0

    @staticmethod
    def _place(staging: Path, identity: str | None, path: str) -> Path:
        """Return the same path for the same bytes from any source: another one continues where this one
        ended.
        """
        name = hashlib.sha256(f"{identity}\0{path}".encode()).hexdigest()[:32]
        return staging / FOLDER / PARTS / name

    def recall(self, read: Callable[[int], None] = lambda _: None) -> int:
        """Hash what an earlier process left; return the number of untrusted bytes cut off.

        Args:
            read: called with the number of bytes after every block, for progress.
        """
        found = min(os.fstat(self._file).st_size, self.entry.size)
        marks, boot, flushed = self._marks()
        good = self._state()
        sound = boot == boot_id() or flushed == found
        while self.offset < found:
            block = os.pread(
                self._file, min(_BLOCK, found - self.offset, self._next - self.offset), self.offset
            )
            if not block:
                break
            self._hash(block)
            read(len(block))
            if self.offset < self._next:
                continue
            self._next += STEP
            if (mark := marks.get(self.offset)) is not None:
                if mark != self._sha256.hexdigest():
                    sound = False
                    break
                good = self._state()
        if not sound:
            # After a reboot the data after the last mark is not trusted.
            self.offset, self._next, self._sha256, self._git = good
        os.ftruncate(self._file, self.offset)
        if boot != boot_id():
            self._add_mark(f"boot {boot_id()}")
        return found - self.offset

    def _marks(self) -> tuple[dict[int, str], str, int]:
        """Return offset -> hash, the boot id of the last bytes, and how many bytes a stop flushed."""
        marks: dict[int, str] = {}
        boot, flushed = "", -1
        with contextlib.suppress(OSError):
            for line in self.marks.read_text(encoding="ascii", errors="replace").splitlines():
                first, _, second = line.partition(" ")
                if first == "boot":
                    boot = second
                elif first == "flushed" and (number := digits(second)) is not None:
                    flushed = number
                elif len(second) == 64 and (number := digits(first)) is not None:
                    marks[number] = second
        return marks, boot, flushed

    def _add_mark(self, line: str) -> None:
        with self.marks.open("a", encoding="ascii") as marks:
            marks.write(f"{line}\n")

    def _state(self) -> tuple[int, int, Any, Any]:
        git = None if self._git is None else self._git.copy()
        return self.offset, self._next, self._sha256.copy(), git

    def _hash(self, block: bytes | memoryview) -> None:
        self._sha256.update(block)
        if self._git is not None:
            self._git.update(block)
        self.offset += len(block)

    def write(self, block: bytes) -> None:
        """Append bytes."""
        view = memoryview(block)
        while view:
            # Up to the next mark at most, so that a mark is the hash of exactly what precedes it.
            step = view[: self._next - self.offset]
            written = os.pwrite(self._file, step, self.offset)
            self._hash(step[:written])
            view = view[written:]
            if self.offset == self._next:
                self._next += STEP
                self._add_mark(f"{self.offset} {self._sha256.hexdigest()}")

    def finish(self, target: Path) -> Entry:
        """Check the hash, flush the bytes to the disk, give the file its name; return the verified entry.

        Raises:
            DamagedFileError: the bytes are not the file's.
        """
        entry, found = self.entry, self._sha256.hexdigest()
        if self.offset != entry.size:
            raise DamagedFileError(f"{entry.path} has {self.offset} bytes, expected {entry.size}")
        if entry.sha256 is not None and found != entry.sha256:
            raise DamagedFileError(f"{entry.path} has sha256 {found[:12]}…, expected {entry.sha256[:12]}…")
        if self._git is not None and self._git.hexdigest() != entry.git_oid:
            raise DamagedFileError(
                f"{entry.path} has git id {self._git.hexdigest()[:12]}…, expected {str(entry.git_oid)[:12]}…"
            )
        os.fsync(self._file)
        self.path.replace(target)
        self.marks.unlink(missing_ok=True)
        return replace(entry, sha256=found)

    def restart(self) -> None:
        """Start again, with nothing."""
        os.ftruncate(self._file, 0)
        self.marks.unlink(missing_ok=True)
        self.offset, self._next, self._sha256 = 0, STEP, hashlib.sha256()
        if self._git is not None:
            self._git = hashlib.sha1(f"blob {self.entry.size}\0".encode(), usedforsecurity=False)

    def discard(self) -> None:
        """Remove it."""
        self.path.unlink(missing_ok=True)
        self.marks.unlink(missing_ok=True)


def flush(staging: Path) -> None:
    """Flush all partial files of an ended pull, and note it: the machine may be about to shut down."""
    for marks in (staging / FOLDER / PARTS).glob("*.marks"):
        with contextlib.suppress(OSError), marks.with_suffix("").open("rb") as part:
            os.fsync(part.fileno())
            with marks.open("a", encoding="ascii") as file:
                file.write(f"flushed {os.fstat(part.fileno()).st_size}\n")
                file.flush()
                os.fsync(file.fileno())


def boot_id() -> str:
    """Return the id of this boot; empty if the kernel does not provide one."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""

"""A cache's kernels as a tar archive, and back: only files below a directory are extracted."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Final

from minimax_metal.common.errors import UserError
from minimax_metal.common.files import directory_beneath, new_file, read_beneath

NOT_KERNELS: Final = frozenset({"huggingface", "modelscope"})
"""Directories of a cache with a model's files or code of its repository: no kernels."""
NO_KERNEL: Final = (".lock", ".log", ".part", ".tmp")
"""Suffixes of compilers' own files, or unfinished ones."""
MARKER: Final = "precompiled-"
"""Name of a marker that all kernels of a launch command exist; it comes last."""
LARGEST: Final = 1 << 30
"""Maximum bytes of one kernel; the largest of DeepGEMM's and FlashInfer's libraries have some tens of
megabytes.
"""
BYTES: Final = 64 << 30
"""Maximum bytes of all kernels in an archive."""
FILES: Final = 500_000
LATEST: Final = 1 << 33
"""Latest time in seconds since 1970; file systems accept no time far beyond it."""


def is_kernel(place: PurePosixPath) -> bool:
    """Return whether a path below a cache is worth sharing."""
    return bool(place.parts) and not NOT_KERNELS & set(place.parts) and not place.name.endswith(NO_KERNEL)


def kernels(directory: Path) -> Iterator[Path]:
    """Yield the files of a cache that are worth sharing, as paths below it; markers come last.

    Links are skipped: they point to places on this host. So are pipes, and files that a compiler is still
    writing. A cache that is itself a link yields nothing: otherwise its owner could have the whole host
    searched.
    """
    if directory.is_symlink():
        return
    markers = []
    for parent, directories, files in os.walk(directory):
        directories[:] = sorted(name for name in directories if name not in NOT_KERNELS)
        for name in sorted(files):
            path = Path(parent, name)
            if name.endswith(NO_KERNEL):
                continue
            with contextlib.suppress(OSError):
                if stat.S_ISREG(path.lstat().st_mode):
                    found = path.relative_to(directory)
                    if found.name == found.as_posix() and name.startswith(MARKER):
                        markers.append(found)
                    else:
                        yield found
    yield from markers


def stream(directory: Path, output: IO[bytes]) -> int:
    """Write a cache's kernels as a tar archive; return the number of files."""
    count = 0
    with tarfile.open(fileobj=output, mode="w|") as tar:
        for name in kernels(directory):
            # A kernel that a compiler replaced meanwhile is left out: a host that lacks it compiles it.
            with contextlib.suppress(OSError):
                status = (directory / name).lstat()
                content = read_beneath(directory, name.as_posix(), LARGEST)
                member = tarfile.TarInfo(name.as_posix())
                member.size, member.mtime = len(content), int(status.st_mtime)
                member.mode = status.st_mode & 0o755
                tar.addfile(member, io.BytesIO(content))
                count += 1
    return count


class Limited(io.RawIOBase):
    """A stream that ends with an error after a number of bytes."""

    def __init__(self, source: IO[bytes], limit: int) -> None:
        self.source, self.left = source, limit

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Return up to ``size`` bytes.

        Raises:
            ValueError: the limit is exceeded.
        """
        block = self.source.read(size)
        self.left -= len(block)
        if self.left < 0:
            raise ValueError("more data than a host's kernels can have")
        return block


def members(
    source: IO[bytes] | io.RawIOBase, mode: str, name: str
) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Yield the kernels in an archive, as new members of a tar archive with their content.

    Raises:
        UserError: it can't be read, or contains anything but files below a directory.
    """
    count = 0
    try:
        with tarfile.open(fileobj=source, mode=mode, errorlevel=2) as tar:  # type: ignore[call-overload]
            for member in tar:
                place = PurePosixPath(member.name)
                parts = place.parts
                if not member.isreg() or place.is_absolute() or ".." in parts or not is_kernel(place):
                    raise UserError(
                        f"found {member.name!r} in {name}, expected only kernel files; remove the archive"
                    )
                count += 1
                if member.size > LARGEST or count > FILES:
                    raise UserError(
                        f"found more data in {name} than a host's kernels can have; remove the archive"
                    )
                content = tar.extractfile(member)
                fresh = tarfile.TarInfo(place.as_posix())
                fresh.size, fresh.mode = member.size, member.mode & 0o755
                fresh.mtime = max(0, min(int(member.mtime), LATEST))
                yield fresh, content.read() if content is not None else b""
    except (tarfile.TarError, EOFError, zlib.error, ValueError, OverflowError, MemoryError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(
            f"{name} can't be read ({error}), expected an archive of a host's kernels; remove it"
        ) from None


def add(source: IO[bytes] | io.RawIOBase, mode: str, name: str, directory: Path) -> int:
    """Add an archive's kernels to a cache as this process's user, never replacing a file.

    Raises:
        UserError: as :func:`members`.
        OSError: the cache can't be written.
    """
    added = 0
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    with directory_beneath(directory.resolve()) as root:
        for member, content in members(source, mode, name):
            place = PurePosixPath(member.name)
            if _within(root, place, member, content):
                added += 1
    return added


def _within(root: int, place: PurePosixPath, member: tarfile.TarInfo, content: bytes) -> bool:
    """Write one kernel below an open directory; return whether it was missing."""
    try:
        with directory_beneath(root, place.parent, create=0o755) as folder:
            with contextlib.suppress(FileNotFoundError):
                os.lstat(place.name, dir_fd=folder)
                return False
            with new_file(folder, place.name, member.mode | 0o600) as descriptor:
                with os.fdopen(descriptor, "wb", closefd=False) as file:
                    file.write(content)
                os.utime(descriptor, (member.mtime, member.mtime))
            return True
    except FileExistsError:
        return False

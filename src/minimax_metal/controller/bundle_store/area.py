"""A bundle's directory, accessed by descriptors: nothing in it can lead out of it.

Anybody who carries the disk, or writes to it, may leave links, pipes and devices in a bundle. Each name is
opened component by component without following links, only regular files are read, and new files are renamed
into place beneath the directory.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Final

from minimax_metal.common.errors import UserError
from minimax_metal.common.files import directory_beneath, open_beneath

PARTIAL: Final = ".partial"
BLOCK: Final = 1 << 20


class Area:
    """One directory, held open."""

    def __init__(self, directory: Path) -> None:
        """Open the directory. The name may contain links: the user chose it."""
        self.directory = directory.resolve()
        self.root = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close it."""
        os.close(self.root)

    def __enter__(self) -> Area:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, path: str) -> int:
        """Open a regular file for reading; return its descriptor.

        Raises:
            OSError: it does not exist, is not a regular file, or is reached through a link.
        """
        descriptor = open_beneath(self.root, path)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "not a regular file", path)
        return descriptor

    def size(self, path: str) -> int | None:
        """Return the size of a regular file, or None if there is none."""
        try:
            descriptor = self.open(path)
        except OSError:
            return None
        try:
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def write(self, name: str, *, keep: bool = False) -> int:
        """Open a file among the unfinished ones for writing; return its descriptor.

        Args:
            name: one component.
            keep: append to the existing content, if it is a regular file with no other name.
        """
        with directory_beneath(self.root, PARTIAL, create=0o755) as partial:
            if keep:
                with suppress(OSError):
                    flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                    descriptor = os.open(name, flags, dir_fd=partial)
                    found = os.fstat(descriptor)
                    if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
                        return descriptor
                    os.close(descriptor)
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=partial)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            return os.open(name, flags, 0o644, dir_fd=partial)

    def discard(self, name: str) -> None:
        """Delete an unfinished file."""
        with suppress(OSError), directory_beneath(self.root, PARTIAL) as partial:
            os.unlink(name, dir_fd=partial)

    def place(self, name: str, path: str) -> None:
        """Give an unfinished file its name in the bundle."""
        target = PurePosixPath(path)
        with (
            directory_beneath(self.root, PARTIAL) as partial,
            directory_beneath(self.root, target.parent, create=0o755) as parent,
        ):
            os.rename(name, target.name, src_dir_fd=partial, dst_dir_fd=parent)

    def unlink(self, path: str) -> None:
        """Delete a file of the bundle, or anything else of that name; a link is deleted, not its target."""
        target = PurePosixPath(path)
        with (
            suppress(FileNotFoundError, NotADirectoryError),
            directory_beneath(self.root, target.parent) as parent,
        ):
            os.unlink(target.name, dir_fd=parent)

    def prune(self, keep: Collection[str]) -> None:
        """Delete everything except the files to keep, and empty directories; no link is followed."""
        for folder, directories, files, descriptor in os.fwalk(
            ".", topdown=False, follow_symlinks=False, dir_fd=self.root
        ):
            base = PurePosixPath(folder)
            for name in files:
                if (base / name).as_posix() not in keep:
                    os.unlink(name, dir_fd=descriptor)
            for name in directories:
                kind = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
                if not stat.S_ISDIR(kind):
                    os.unlink(name, dir_fd=descriptor)
                elif name != "lost+found":
                    with suppress(OSError):  # not empty
                        os.rmdir(name, dir_fd=descriptor)


@contextmanager
def area(directory: Path) -> Iterator[Area]:
    """Open a directory temporarily; errors are reported in one line.

    Raises:
        UserError: it can't be opened, or a name in it leads out of it.
    """
    try:
        opened = Area(directory)
    except OSError as error:
        raise UserError(
            f"found {directory} that can't be opened ({error.strerror}), expected a bundle's "
            "directory; fix the path"
        ) from None
    try:
        yield opened
    except OSError as error:
        named = error.filename or "a name"
        if error.errno in {errno.ELOOP, errno.ENOTDIR, errno.EINVAL, errno.EISDIR}:
            said = "is a link, or not a plain file or directory"
            advice = "expected only plain files and directories; delete it, or name another directory"
        else:
            said, advice = (
                f"can't be used ({error.strerror})",
                "expected to read and write it; look at the disk",
            )
        raise UserError(f"found {named} in {directory} that {said}, {advice}") from None
    finally:
        opened.close()


def copy_bytes(source: int, target: int, size: int) -> Iterator[bytes]:
    """Copy at most ``size`` + 1 bytes between descriptors; yield each block, so that it can be hashed."""
    left = size + 1
    while left > 0 and (block := os.read(source, min(BLOCK, left))):
        view = memoryview(block)
        while view:
            view = view[os.write(target, view) :]
        left -= len(block)
        yield block

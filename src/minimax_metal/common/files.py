"""Atomic file writes, and access to names below a directory that another user may write to.

A program that runs as root must not follow a name inside a directory of a less trusted user, who can make any
component of the name a link to a file of root's. Either do the work as that user
(:mod:`minimax_metal.common.privileges`), or open the file with :func:`open_beneath`, which refuses links in
every component, and continue with the descriptor.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Final

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_LINKS: Final = 40
"""As many as the kernel follows (path_resolution(7))."""
_HERE: Final = -100
"""``AT_FDCWD``."""
_RENAME_EXCHANGE: Final = 2
"""rename(2), linux/fs.h."""


class TooLargeError(OSError):
    """A file is larger than the limit for reading it."""


def write_atomic(
    path: Path, content: bytes | str, mode: int = 0o644, owner: tuple[int, int] | None = None
) -> None:
    """Write a file so that a reader finds the old content or the new one, also after a crash.

    The directory must belong to the writing user: names in it are trusted. A link at ``path`` is replaced,
    not followed.

    Args:
        path: the file; its directory exists.
        content: text is written as UTF-8.
        mode: permissions, whatever the umask is; set before the first byte is written.
        owner: uid and gid.
    """
    data = content.encode() if isinstance(content, str) else content
    part = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            with os.fdopen(descriptor, "wb", closefd=False) as stream:
                if owner is not None:
                    os.fchown(descriptor, *owner)
                os.fchmod(descriptor, mode)
                stream.write(data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    sync_directory(path.parent)


def link_atomic(path: Path, target: str) -> None:
    """Make ``path`` a link to ``target``; a reader finds the old link or the new one, also after a crash.

    The directory must belong to the writing user, as for :func:`write_atomic`.
    """
    part = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}")
    part.symlink_to(target)
    try:
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    sync_directory(path.parent)


def exchange(one: Path, other: Path) -> bool:
    """Atomically swap two names on one file system; return False if that is not supported here.

    NFS and some others refuse ``RENAME_EXCHANGE`` (rename(2)), and a unit's sandbox may refuse the library.

    Raises:
        OSError: a name is missing, or may not be changed.
    """
    try:
        import ctypes

        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (ImportError, MemoryError, OSError, AttributeError):
        return False
    if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def sync_directory(directory: Path) -> None:
    """Flush the names in a directory, so that they survive a loss of power."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # some file systems (NFS, FUSE) can't do this
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bounded(path: Path, limit: int) -> bytes:
    """Return a regular file's bytes; a pipe or a device is refused without blocking.

    Raises:
        TooLargeError: it has more than ``limit`` bytes.
        OSError: it is not a regular file, or can't be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return _read_and_close(descriptor, str(path), limit)


def read_head(path: Path, limit: int) -> bytes:
    """Return at most the first ``limit`` bytes of a regular file; a pipe or a device is refused without
    blocking.

    Raises:
        OSError: it is not a regular file, or can't be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return stream.read(limit)


def _read_and_close(descriptor: int, name: str, limit: int) -> bytes:
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", name)
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise TooLargeError(errno.EFBIG, f"more than {limit} bytes", name)
    return content


def _components(relative: str | PurePosixPath) -> tuple[str, ...]:
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in str(path):
        raise OSError(errno.EINVAL, "not a name below the directory", str(path))
    return path.parts


@contextmanager
def directory_beneath(
    root: Path | int, relative: str | PurePosixPath = "", *, create: int | None = None
) -> Iterator[int]:
    """Open a directory below ``root`` without following a link in any component; yield its descriptor.

    Args:
        root: a directory (its own last component may not be a link either), or an open descriptor of one.
        relative: components below it; none for the root itself.
        create: mode for missing directories; by default they are an error.

    Raises:
        OSError: ``ELOOP`` or ``ENOTDIR`` if a component is a link or not a directory.
    """
    parts = _components(relative) if str(relative) not in {"", "."} else ()
    current = os.dup(root) if isinstance(root, int) else os.open(root, _DIRECTORY)
    try:
        for part in parts:
            if create is not None:
                with suppress(FileExistsError):
                    os.mkdir(part, create, dir_fd=current)
            following = os.open(part, _DIRECTORY, dir_fd=current)
            os.close(current)
            current = following
        yield current
    finally:
        os.close(current)


@contextmanager
def directory_by_name(path: Path, *, create: int | None = None) -> Iterator[int]:
    """Open a directory by its absolute name as a careful root does; yield its descriptor.

    A link on the way is followed only where nobody else could have put it: in a directory that belongs to
    root or to this process's user and that nobody else may write to, or that is sticky, as /tmp is, for a
    link of root's own. From the first other directory on, a link is an error.

    Args:
        path: absolute.
        create: mode for directories that are missing; by default they are an error.

    Raises:
        OSError: ``ELOOP`` where a link is not followed; ``ENOENT`` where a directory is missing.
    """
    if not path.is_absolute():
        raise OSError(errno.EINVAL, "not an absolute path", str(path))
    pending = [part for part in reversed(path.parts) if part != "/"]
    current, trusted, links = os.open("/", _DIRECTORY), True, 0
    try:
        while pending:
            part = pending.pop()
            trusted = trusted and _only_ours(current, part)
            target = _link_in(current, part)
            if target is not None:
                links += 1
                if not trusted or links > _LINKS:
                    raise OSError(errno.ELOOP, "a link that somebody else could have put there", str(path))
                pending += [one for one in reversed(PurePosixPath(target).parts) if one != "/"]
                if target.startswith("/"):
                    os.close(current)
                    current = os.open("/", _DIRECTORY)
                continue
            if create is not None and part != "..":
                with suppress(FileExistsError):
                    os.mkdir(part, create, dir_fd=current)
            following = os.open(part, _DIRECTORY, dir_fd=current)
            os.close(current)
            current = following
        yield current
    finally:
        os.close(current)


def _only_ours(directory: int, name: str) -> bool:
    """Return whether only root or this process's user can have put what has a name in a directory."""
    ours, status = {0, os.geteuid()}, os.fstat(directory)
    if status.st_uid not in ours or not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return status.st_uid in ours
    if not status.st_mode & stat.S_ISVTX:
        return False
    try:  # as in /tmp: others can't rename it
        return os.stat(name, dir_fd=directory, follow_symlinks=False).st_uid in ours
    except FileNotFoundError:
        return False


def _link_in(directory: int, name: str) -> str | None:
    """Return where a link points; None where the name is not a link."""
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError as error:
        if error.errno in {errno.EINVAL, errno.ENOENT}:
            return None
        raise


def open_beneath(
    root: Path | int, relative: str | PurePosixPath, flags: int = os.O_RDONLY, mode: int = 0o644
) -> int:
    """Open a file below ``root`` without following a link in any component; return its descriptor.

    A pipe does not block the open (``O_NONBLOCK``); the caller checks the type with ``os.fstat``.

    Raises:
        OSError: ``ELOOP`` if a component is a link.
    """
    path = PurePosixPath(*_components(relative))
    with directory_beneath(root, path.parent) as directory:
        return os.open(
            path.name,
            flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC,
            mode,
            dir_fd=directory,
        )


def read_beneath(root: Path | int, relative: str | PurePosixPath, limit: int) -> bytes:
    """Return the bytes of a regular file below ``root`` without following a link in any component.

    Raises:
        TooLargeError: it has more than ``limit`` bytes.
        OSError: a component is a link, or it is not a regular file.
    """
    return _read_and_close(open_beneath(root, relative), str(relative), limit)


@contextmanager
def new_file(directory: int, name: str, mode: int = 0o644, suffix: str = ".part") -> Iterator[int]:
    """Yield the descriptor of a new file that is finally named ``name``, unless that name exists by then.

    Args:
        directory: an open descriptor; no link is followed in it.
        name: of the file, without a slash.
        mode: permissions, whatever the umask is.
        suffix: of the temporary name, which stays if this process is killed.

    Raises:
        FileExistsError: the name exists; its file stays as it is.
    """
    _components(name)
    part = f".{name[:200]}.{secrets.token_hex(8)}{suffix}"
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(part, flags, 0o600, dir_fd=directory)
    try:
        yield descriptor
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
        # A link and not a rename: it fails if the name exists.
        os.link(part, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    finally:
        os.close(descriptor)
        with suppress(OSError):
            os.unlink(part, dir_fd=directory)


def give_tree(root: Path | int, before: frozenset[int], owner: tuple[int, int]) -> int:
    """Change the owner of a directory and everything below it; return the number of changed files.

    Only files that belong to ``before`` are changed, so a name that points to another user's file changes
    nothing. No link is followed or changed, and nothing is changed by name.

    Args:
        root: a directory, or an open descriptor of one.
        before: uids whose files are changed.
        owner: uid and gid of the new owner.

    Raises:
        OSError: ``root`` is a link or not a directory.
    """
    with directory_beneath(root) as directory:
        return _give_tree(directory, before, owner)


def _give_tree(directory: int, before: frozenset[int], owner: tuple[int, int]) -> int:
    given = 0
    for name in os.listdir(directory):
        try:
            entry = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:
            continue
        try:
            mode = os.fstat(entry).st_mode
            if stat.S_ISDIR(mode):
                inner = os.open(".", _DIRECTORY, dir_fd=entry)
                try:
                    given += _give_tree(inner, before, owner)
                finally:
                    os.close(inner)
            elif not stat.S_ISLNK(mode):
                given += _give(entry, before, owner)
        finally:
            os.close(entry)
    # The directory itself last: until then nobody else can write to it.
    return given + _give(directory, before, owner)


def _give(descriptor: int, before: frozenset[int], owner: tuple[int, int]) -> int:
    status = os.fstat(descriptor)
    if status.st_uid not in before or (status.st_uid, status.st_gid) == owner:
        return 0
    # fchown(2) refuses an O_PATH descriptor. This name always means the open file, whatever happens to its
    # path.
    os.chown(f"/proc/self/fd/{descriptor}", *owner)
    return 1

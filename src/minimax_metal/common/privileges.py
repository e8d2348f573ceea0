"""Work in another user's directory with that user's rights, not as root."""

from __future__ import annotations

import errno
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ctypes import CDLL

_LINKS: Final = 40
"""Maximum number of links in one path, as in the kernel (MAXSYMLINKS)."""


def drop_to(user: str) -> None:
    """Permanently become ``user``, with that user's groups; no change if this process already is that user.

    Raises:
        KeyError: this host has no such user.
        PermissionError: this process is neither root nor that user.
    """
    entry = pwd.getpwnam(user)
    if os.geteuid() == entry.pw_uid and os.getuid() == entry.pw_uid:
        return
    os.initgroups(user, entry.pw_gid)
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)


@contextmanager
def acting_as(uid: int, gid: int) -> Iterator[None]:
    """Temporarily open, read, write and rename as ``uid`` and ``gid``, without root's rights over files.

    For root's own programs only: in any other process it changes nothing. It affects the whole process, so
    don't start a thread that needs root inside it.
    """
    if os.geteuid() != 0 or uid == 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(os.getgid())
        os.setgroups(groups)


@contextmanager
def acting_as_owner_of(path: Path) -> Iterator[None]:
    """As root, work below ``path`` as the user who could plant links there; see :func:`untrusted_owner`."""
    owner = untrusted_owner(path) if os.geteuid() == 0 else None
    if owner is None:
        yield
        return
    with acting_as(*owner):
        yield


def untrusted_owner(path: Path) -> tuple[int, int] | None:
    """Return uid and gid of the first directory on the way to ``path`` (inclusive) that is not root's.

    None if only root (or this user) controls every name on the way, so that nobody else can turn one into a
    link. Missing components count as nobody's.
    """
    for _, status in _directories(path):
        if status.st_uid not in {0, os.geteuid()}:
            return status.st_uid, status.st_gid
    return None


def trusted_directory(path: Path, *, create: int | None = None) -> Path:
    """Return ``path`` without links if only root (or this user) can change a name on the way to it.

    Args:
        path: a directory.
        create: mode for missing directories; by default they are an error.

    Raises:
        PermissionError: another user owns a directory on the way, or may write to it; it names both.
        OSError: it is missing, or can't be created.
    """
    mine = {0, os.geteuid()}
    end = Path("/")
    for directory, status in _directories(path, create):
        others = status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and status.st_gid != 0)
        # A link's own mode is meaningless; in /tmp nobody can rename another user's file.
        open_to_others = others and not status.st_mode & stat.S_ISVTX and not stat.S_ISLNK(status.st_mode)
        if status.st_uid not in mine or open_to_others:
            who = "somebody else" if status.st_uid in mine else _name_of(status.st_uid)
            raise PermissionError(
                errno.EPERM, f"{who} can write to {directory}, which only root should", str(path)
            )
        end = directory
    if path.resolve(strict=True) != end:
        raise NotADirectoryError(errno.ENOTDIR, "not a directory", str(path))
    return end


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _directories(path: Path, create: int | None = None) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield each directory on the way to a path, starting with ``/``, following links one at a time.

    A caller that stops at the first untrusted one can trust all it has seen.
    """
    current = Path("/")
    yield current, current.lstat()
    pending = list(reversed(path.absolute().parts[1:]))
    links = 0
    while pending:
        part = pending.pop()
        if part in {"", "."}:
            continue
        following = current.parent if part == ".." else current / part
        try:
            if create is not None:
                with suppress(FileExistsError):
                    following.mkdir(create)
            status = following.lstat()
        except OSError as error:
            # A name that is too long for a file does not exist either.
            if create is not None or error.errno not in {errno.ENOENT, errno.ENAMETOOLONG}:
                raise
            return
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            # In a directory such as /tmp anybody may own the link.
            yield following, status
            target = following.readlink()
            if target.is_absolute():
                current = Path("/")
            pending += [one for one in reversed(target.parts) if one != "/"]
            continue
        if not stat.S_ISDIR(status.st_mode):
            return
        current = following
        yield current, status


@cache
def _libc() -> CDLL:
    # Imported here: it maps memory that is writable and executable, which a unit's sandbox may refuse.
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


@contextmanager
def files_as(uid: int, gid: int) -> Iterator[None]:
    """Access files as ``uid`` and ``gid`` in this thread only, without root's rights over them.

    For root's own programs with several threads, each of which enters this itself; in any other process it
    changes nothing. A thread whose fsuid is not 0 has none of root's rights over files (capabilities(7)).

    Raises:
        PermissionError: the kernel did not change the thread's ids.
    """
    if os.geteuid() != 0:
        yield
        return
    libc = _libc()
    # Both return the previous id; only a second call shows whether they worked (setfsuid(2)).
    before_gid, before_uid = libc.setfsgid(gid), libc.setfsuid(uid)
    try:
        if libc.setfsuid(-1) != uid or libc.setfsgid(-1) != gid:
            raise PermissionError(errno.EPERM, f"this thread can't reach files as user {uid}")
        yield
    finally:
        libc.setfsuid(before_uid)
        libc.setfsgid(before_gid)

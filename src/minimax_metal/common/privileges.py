"""Do the work in somebody's directory as that somebody, not as root."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager


def drop_to(user: str) -> None:
    """Become ``user`` for good, with that user's groups; nothing to do where this process is that user.

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
    """Open, read, write and rename as ``uid`` and ``gid`` meanwhile, without root's rights over files.

    For root's own programs only: in any other process it changes nothing. The rights are the whole process's:
    start no thread that needs root meanwhile.
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

"""Owners of a model's directories: root above the model's own directory, the pull's user for that one.

Everything above the model's own directory belongs to root, so that no service can turn a name on the way into
a link. On hosts of earlier versions all of it belonged to the engine's user; what still does gets its new
owner. Other users' files stay unchanged.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from minimax_metal.common.files import give_tree
from minimax_metal.common.privileges import trusted_directory

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def settle(leaf: Path, root: Path, owner: tuple[int, int], before: frozenset[int]) -> int:
    """Give a model's directories to their owners; return the number of changed files and directories.

    Args:
        leaf: the directory with a model's revisions.
        root: root directory of models; directories above it are not changed but must be root's.
        owner: uid and gid of the pull.
        before: uids that owned them in earlier versions.

    Raises:
        OSError: a directory on the way is a link or can't be changed, or others can write above ``root``.
        ValueError: ``leaf`` is not below ``root``.
    """
    parts = leaf.relative_to(root).parts
    if not parts:
        raise ValueError(f"{leaf} is not below {root}")
    above, name = _place(root)
    mine = (os.geteuid(), os.getegid())
    given = 0
    current = os.open(above, _DIRECTORY)
    try:
        for part in (name, *parts[:-1]):
            current = _enter(current, part)
            if os.fstat(current).st_uid in before:
                os.fchown(current, *mine)
                # Nobody else may write to it any longer either.
                os.fchmod(current, stat.S_IMODE(os.fstat(current).st_mode) & ~0o022)
                given += 1
        current = _enter(current, parts[-1])
        given += give_tree(current, before, owner)
        status = os.fstat(current)
        if status.st_uid == mine[0] and (status.st_uid, status.st_gid) != owner:
            os.fchown(current, *owner)
            given += 1
    finally:
        os.close(current)
    return given


def _place(root: Path) -> tuple[Path, str]:
    """Return the directory above ``root`` and its name there; root's own links are followed."""
    for _ in range(40):
        above = trusted_directory(root.parent, create=0o755)
        root = above / root.name
        if not root.is_symlink():
            break
        root = above / root.readlink()
    return above, root.name


def _enter(directory: int, name: str) -> int:
    """Open a directory in an open one, created if missing; the latter is closed."""
    try:
        with suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=directory)
        return os.open(name, _DIRECTORY, dir_fd=directory)
    finally:
        os.close(directory)

"""Whose the directories of a model are: root's down to the model's own, which is the pull's.

Everything above the model's own directory belongs to root, so that no service can turn a name on the way into
a link. Hosts of earlier versions gave all of it to the engine's user; what is still that user's is given to
the one it belongs to now. Files of anybody else stay as they are.
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
    """Give the directories of a model to whom they belong; return how many files and directories were given.

    Args:
        leaf: the directory that holds a model's revisions.
        root: where models are kept; what lies above it is not looked at but has to be root's.
        owner: uid and gid of the pull.
        before: uids that owned them in earlier versions.

    Raises:
        OSError: a directory on the way is a link or can't be given, or others can write above ``root``.
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
                # Nobody else may write to it any more either.
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
    """Open a directory in an open one, made where it is missing; the latter is closed."""
    try:
        with suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=directory)
        return os.open(name, _DIRECTORY, dir_fd=directory)
    finally:
        os.close(directory)

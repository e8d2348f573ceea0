"""Directories of a pull: files taken over into the staging directory, disk space, and the final name."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
from pathlib import Path

from minimax_metal.common.files import exchange
from minimax_metal.common.sizes import spell_bytes
from minimax_metal.host.weights.manifest import FILE, FOLDER, Manifest, missing, sync
from minimax_metal.host.weights.progress import (
    SPARE_BYTES,
    NoSpaceError,
    PullError,
    RefusedError,
)
from minimax_metal.host.weights.request import Request
from minimax_metal.host.weights.share_log import ANNOUNCED


def reuse(final: Path, staging: Path) -> None:
    """Link the files of one of our damaged directories into the staging directory; each is verified there."""
    manifest = Manifest.read(final)
    if manifest is None:
        return
    for entry in manifest.files:
        have, want = final / entry.path, staging / entry.path
        if not want.exists() and have.is_file() and have.stat().st_size == entry.size:
            want.parent.mkdir(parents=True, exist_ok=True)
            os.link(have, want)


def check_space(request: Request, needed: int, spare: int = SPARE_BYTES) -> None:
    """Refuse before the pull if the disk does not have enough space.

    Args:
        request: names the disk.
        needed: missing bytes: the plan's number before the source was asked, the source's own after.
        spare: bytes to leave free.

    Raises:
        NoSpaceError: with the numbers.
    """
    free = shutil.disk_usage(request.path.parent).free
    if needed and free < needed + spare:
        raise NoSpaceError(
            f"the disk of {request.path.parent} has {spell_bytes(free)} free, the model needs "
            f"another {spell_bytes(needed)}, with {spell_bytes(spare)} left free; free some space or "
            "change the path"
        )


def publish(request: Request) -> None:
    """Give the verified staging directory its final name; everything in it is on the disk before."""
    staging, final = request.staging, request.path
    manifest = Manifest.read(staging)
    if manifest is None or missing(staging, manifest):
        raise PullError(f"{staging} changed while it was verified; pull again")
    _remove_strangers(staging, manifest)
    directories = [staging, *(path for path in staging.rglob("*") if path.is_dir())]
    if request.owner is not None:
        _give_to(request.owner, staging)
    for directory in directories:
        directory.chmod(0o755)
    for entry in manifest.files:
        file = staging / entry.path
        # A file shared by a hard link keeps its mode: it would change for its other owner, too.
        if file.stat().st_nlink == 1 and file.stat().st_mode & 0o777 != 0o644:
            file.chmod(0o644)
        sync(file)
    for directory in reversed(directories):
        sync(directory)
    replaced = final.with_name(f".{final.name}.replaced")
    if not final.exists():
        staging.rename(final)
    else:
        shutil.rmtree(replaced, ignore_errors=True)
        # Atomically if the file system supports it: a crash never leaves the host without the model's
        # directory.
        if exchange(staging, final):
            staging.rename(replaced)
        else:
            final.rename(replaced)
            staging.rename(final)
    sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _remove_strangers(staging: Path, manifest: Manifest) -> None:
    """Remove everything but the model's files: hub clients leave caches, locks and partial files."""
    ours = {staging / FOLDER / FILE, staging / FOLDER / ANNOUNCED}
    wanted = {staging / entry.path for entry in manifest.files} | ours
    parents = {parent for path in wanted for parent in path.parents}
    for path in sorted(staging.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if path not in parents:
                shutil.rmtree(path, ignore_errors=True)
        elif path not in wanted:
            path.unlink(missing_ok=True)


def _give_to(owner: str, directory: Path) -> None:
    """Change owner and group (``user`` or ``user:group``) of a directory and everything in it."""
    user, _, group = owner.partition(":")
    try:
        account = pwd.getpwnam(user)
        group_id = grp.getgrnam(group).gr_gid if group else account.pw_gid
    except KeyError as error:
        raise RefusedError(
            f"owner {owner!r} does not exist on this host; create it or remove owner"
        ) from error
    for path in [directory, *directory.rglob("*")]:
        status = path.lstat()
        shared = path.is_file() and status.st_nlink > 1
        if not shared and (status.st_uid, status.st_gid) != (account.pw_uid, group_id):
            os.chown(path, account.pw_uid, group_id, follow_symlinks=False)


def staged_bytes(directory: Path) -> int:
    """Return the bytes of all files below a directory, including partial ones."""
    total = 0
    stack = [directory]
    while stack:
        with contextlib.suppress(OSError), os.scandir(stack.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(Path(entry.path))
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
    return total

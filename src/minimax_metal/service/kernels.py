"""``metal kernels``: compiled kernels of one host as an archive for equal hosts.

Exit status: 0 done, also when there was nothing to do, which the one line of output says; 2 usage, or an
archive that is none.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import os
import pwd
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from minimax_metal.errors import UserError

NOT_KERNELS: Final = frozenset({"huggingface", "modelscope"})
"""Directories of a cache that hold a model's files or code of its repository: no kernels."""
NO_KERNEL: Final = (".lock", ".log", ".part", ".tmp")
"""How names end of what compilers keep for themselves, or have not finished."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose files unpacked kernels are."""

    uid: int
    gid: int


def kernels(directory: Path) -> Iterator[Path]:
    """Yield the files of a cache that are worth sharing, as paths below it, in order.

    Links are left out: they point at this host's places. So is what a compiler is still writing.
    """
    for parent, directories, files in os.walk(directory):
        directories[:] = sorted(name for name in directories if name not in NOT_KERNELS)
        for name in sorted(files):
            path = Path(parent, name)
            if not name.endswith(NO_KERNEL) and path.is_file() and not path.is_symlink():
                yield path.relative_to(directory)


def pack(directory: Path, archive: Path) -> int:
    """Write a cache's kernels to an archive that all may read; return how many files, 0 writes none."""
    names = list(kernels(directory))
    if not names:
        return 0
    archive.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    part = archive.with_name(archive.name + ".part")
    with gzip.open(part, "wb", compresslevel=1) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        for name in names:
            # A kernel that a compiler replaced meanwhile is left out: the host that lacks it compiles it.
            with contextlib.suppress(FileNotFoundError):
                tar.add(directory / name, arcname=name.as_posix(), recursive=False)
    part.chmod(0o644)
    part.replace(archive)
    return len(names)


def unpack(archive: Path, directory: Path, owner: Owner | None = None) -> int:
    """Add an archive's kernels to a cache, never over a file that is there; return how many were added.

    Raises:
        UserError: the file is no archive of kernels, or holds anything but files below the directory.
    """
    added = 0
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                place = PurePosixPath(member.name)
                if not member.isreg() or place.is_absolute() or ".." in place.parts:
                    raise UserError(
                        f"found {member.name!r} in {archive}, expected files only; remove the archive"
                    )
                content = tar.extractfile(member)
                if content is None:
                    continue
                target = directory / place
                _directories(directory, target.parent, owner)
                part = target.with_name(target.name + ".part")
                with part.open("wb") as file:
                    shutil.copyfileobj(content, file)
                part.chmod(member.mode & 0o755)
                os.utime(part, (member.mtime, member.mtime))
                _give(part, owner)
                # A link fails where there is a file, so that nothing newer is lost.
                with contextlib.suppress(FileExistsError):
                    os.link(part, target)
                    added += 1
                part.unlink()
    except (tarfile.TarError, EOFError, gzip.BadGzipFile) as error:
        raise UserError(f"{archive} can't be read ({error}), expected kernels of a host; remove it") from None
    return added


def _give(path: Path, owner: Owner | None) -> None:
    if owner is not None:
        os.chown(path, owner.uid, owner.gid)


def _directories(root: Path, directory: Path, owner: Owner | None) -> None:
    """Make a directory and those between it and ``root``, each of the owner's."""
    missing = [one for one in (directory, *directory.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(mode=0o755)
        if one == root or root in one.parents:
            _give(one, owner)


def main(argv: Sequence[str]) -> int:
    """Count, pack or unpack kernels."""
    parser = argparse.ArgumentParser(
        prog="metal kernels", description="Share compiled kernels between hosts."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    count = verbs.add_parser("count", help="print how many files of kernels a cache holds")
    count.add_argument("directory", type=Path)
    packing = verbs.add_parser("pack", help="write a cache's kernels to an archive")
    packing.add_argument("directory", type=Path)
    packing.add_argument("archive", type=Path)
    unpacking = verbs.add_parser("unpack", help="add an archive's kernels to a cache; files there stay")
    unpacking.add_argument("archive", type=Path)
    unpacking.add_argument("directory", type=Path)
    unpacking.add_argument("--owner", metavar="USER", help="whose files they are to be")
    arguments = parser.parse_args(argv)
    if arguments.verb == "count":
        print(sum(1 for _ in kernels(arguments.directory)))
    elif arguments.verb == "pack":
        number = pack(arguments.directory, arguments.archive)
        print(f"packed {number} files" if number else "no kernels to share")
    else:
        number = unpack(arguments.archive, arguments.directory, _owner(arguments.owner))
        print(f"unpacked {number} files" if number else "every kernel was there")
    return 0


def _owner(name: str | None) -> Owner | None:
    if name is None:
        return None
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise UserError(f"no user is called {name}; expected one of this host") from None
    return Owner(entry.pw_uid, entry.pw_gid)

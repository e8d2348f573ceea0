"""Take what is on the host already: verified, linked into place, no byte downloaded.

From a plain directory, a Hugging Face cache (``snapshots`` of links into ``blobs``), a ModelScope cache, or
the directories of other revisions of the same model. A file is taken when its bytes have the hash that the
hub states; its name does not matter where a cache names files by their hash. Nothing of the user's is moved,
changed or deleted:

* a reflink (``FICLONE``: btrfs, XFS) shares the blocks, and whoever writes later gets blocks of his own;
* else a hard link, on the same file system, when nobody but its owner can write to the file and everybody can
  read it, so that neither owner nor mode have to change (these would change for the user, too);
* else a copy.

As root, what is there is read as whoever owns its directory, and what comes of it is written as the owner
of the model's directory: no link in either leads further than that user's own rights. Only a hard link to
another user's file is root's to make, by descriptors.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shlex
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from minimax_metal.common.errors import UserError
from minimax_metal.common.privileges import files_as, untrusted_owner
from minimax_metal.host.weights.attempt import Journal
from minimax_metal.host.weights.check import workers_by_default
from minimax_metal.host.weights.errors import SourceError
from minimax_metal.host.weights.looked import saw
from minimax_metal.host.weights.manifest import FOLDER, DamagedFileError, Entry, sync, verify
from minimax_metal.host.weights.request import Request
from minimax_metal.host.weights.sources import Listing
from minimax_metal.host.weights.unprivileged import list_of

FICLONE: Final = 0x40049409
"""``_IOW(0x94, 9, int)``, ioctl_ficlone(2)."""

REFLINK, LINK, COPY = "reflinked", "linked", "copied"


@dataclass
class Adopted:
    """The result: files by method, total bytes, and candidates that did not match."""

    ways: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    rejected: int = 0

    def __str__(self) -> str:
        ways = ", ".join(f"{count} {way}" for way, count in sorted(self.ways.items()))
        return ways or "nothing"


def places(directory: Path, repositories: Iterator[str] | list[str], revision: str | None) -> list[Path]:
    """Return the directories below ``directory`` that may have a model's files under their own names.

    Args:
        directory: named by the user: the files themselves, a cache, or the parent of a cache.
        repositories: the model's ids on hubs.
        revision: tried first if a cache has several.
    """
    found = [directory]
    for repository in repositories:
        owner, _, name = repository.partition("/")
        hugging = f"models--{owner}--{name}"
        for root in (directory, directory / hugging, directory / "hub" / hugging):
            found += _snapshots(root, revision)
        for base in (directory, directory / "models", directory / "hub", directory / "hub" / "models"):
            for folder in (f"{owner}--{name}", f"{owner}/{name}", f"{owner}/{name.replace('.', '___')}"):
                found += [base / folder, *_snapshots(base / folder, revision)]
    # Without a repository's id a cache of one model is still a cache.
    found += _snapshots(directory, revision)
    return [path for path in dict.fromkeys(found) if path.is_dir()]


def _snapshots(root: Path, revision: str | None) -> list[Path]:
    try:
        found = sorted(path for path in (root / "snapshots").iterdir() if path.is_dir())
    except OSError:
        return []
    return sorted(found, key=lambda path: path.name != revision)


def _blobs(places: list[Path]) -> list[Path]:
    """Return the folders in which the caches among ``places`` store files under their hashes."""
    found = [path.parent.parent / "blobs" for path in places if path.parent.name == "snapshots"]
    return [path for path in dict.fromkeys(found) if path.is_dir()]


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """As root, access ``path`` in this thread as the user who owns its directory."""
    with files_as(0, 0):
        owner = untrusted_owner(path) or (0, 0)
        with files_as(*owner):
            yield


def candidates(entry: Entry, places: list[Path], blobs: list[Path]) -> Iterator[Path]:
    """Yield files that may be ``entry``, by name or hash, of the right size; each file once."""
    seen = set()
    named = [folder / name for name in (entry.sha256, entry.git_oid) if name for folder in blobs]
    for path in [*named, *(place / entry.path for place in places)]:
        with contextlib.suppress(OSError):
            with reading(path):
                status = path.stat()
            identity = (status.st_dev, status.st_ino)
            if stat.S_ISREG(status.st_mode) and status.st_size == entry.size and identity not in seen:
                seen.add(identity)
                yield path


def place(found: Path, target: Path, mode: str | None = None) -> str:
    """Put a file's bytes at ``target`` by the cheapest method that leaves the file unchanged; return the
    method.

    ``mode``: allow only this method (for tests).
    """
    with reading(found):
        source = os.open(found, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(source)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(found))
        if mode in {None, REFLINK}:
            with contextlib.suppress(OSError):
                _clone(source, target)
                return REFLINK
        if mode in {None, LINK} and may_link(status):
            with contextlib.suppress(OSError):
                _link(source, target)
                return LINK
        with open(source, "rb", closefd=False) as reader, target.open("xb") as writer:
            try:
                shutil.copyfileobj(reader, writer, 1 << 20)
            except BaseException:
                target.unlink(missing_ok=True)
                raise
        return COPY
    finally:
        os.close(source)


def _link(source: int, target: Path) -> None:
    """Give an open file another name; for another user's file only root may."""
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Root creates a name only where this thread's user could: a planted link leads nowhere else.
        probe = f"{target.name}.probe"
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder))
        os.unlink(probe, dir_fd=folder)
        with files_as(0, 0):
            os.link(f"/proc/self/fd/{source}", target.name, dst_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


def _clone(source: int, target: Path) -> None:
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        fcntl.ioctl(handle, FICLONE, source)
    except OSError:
        target.unlink()
        raise
    finally:
        os.close(handle)


def may_link(status: os.stat_result) -> bool:
    """Return whether a file can be hard-linked with its owner and mode unchanged."""
    return bool(status.st_mode & stat.S_IROTH) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def listing_of(request: Request) -> tuple[Listing | None, str]:
    """Return the expected files, from the first source that answers, and that source.

    The request's proof, or its manifest file, comes first. Without an answer: the reasons.

    Raises:
        UserError: the manifest file can't be read.
    """
    stated = request.stated()
    if stated is not None:
        return Listing(stated.files, stated.revision), str(stated)
    reasons = []
    for source in request.sources:
        try:
            return list_of(source, stall=30), str(source)
        except (SourceError, UserError) as error:
            reasons.append(str(error))
    return None, "; ".join(reasons)


def adopt(
    request: Request,
    say: Callable[[str], None],
    directories: list[Path],
    spare: int,
    workers: int | None = None,
) -> Adopted:
    """Adopt a request's files from ``directories``; they are in its staging directory afterwards.

    Each is noted as verified, so the following pull reads none of them again. An unreadable directory, or a
    source that does not answer, is reported and skipped: the pull downloads what is missing.
    """
    adopted = Adopted()
    listing, where = listing_of(request)
    if listing is None:
        named = ", ".join(map(str, directories))
        say(
            f"adopting nothing from {named}: no source lists the expected files and hashes "
            f"({where}); without a hub, name a whole directory as metal_weights_source"
        )
        return adopted
    repositories = [source.repository for source in request.sources if source.repository]
    found: list[Path] = []
    blobs: list[Path] = []
    looked: dict[Path, list[Path]] = {}
    for directory in directories:
        try:
            with reading(directory):
                here = places(directory, repositories, listing.revision)
                blobs += _blobs(here)
        except OSError as error:
            say(f"adopting nothing from {directory}: {_unreadable(directory, error)}")
            continue
        looked[directory] = here
        found += here
    staging = request.staging
    (staging / FOLDER).mkdir(parents=True, exist_ok=True)
    journal = Journal.open(staging)

    def one(entry: Entry) -> None:
        target = staging / entry.path
        # Without a hash the bytes can't be verified: such files are downloaded.
        if (entry.sha256 or entry.git_oid) is None or target.exists() or entry.size == 0:
            return
        for candidate in candidates(entry, found, blobs):
            scratch = target.with_name(f".{target.name}.adopting")
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                scratch.unlink(missing_ok=True)
                if shutil.disk_usage(staging).free < spare + (
                    0 if _cheap(candidate, staging) else entry.size
                ):
                    return
                way = place(candidate, scratch)
                verified = verify(scratch.parent, _at(entry, scratch.name))
                if way != LINK:
                    scratch.chmod(0o644)
                sync(scratch)
                scratch.replace(target)
                journal.add(staging, _at(verified, entry.path))
            except DamagedFileError:
                adopted.rejected += 1
                scratch.unlink(missing_ok=True)
                continue
            except OSError as error:
                scratch.unlink(missing_ok=True)
                say(f"not adopting {candidate}: {error.strerror or error}")
                continue
            adopted.ways[way] += 1
            adopted.bytes += entry.size
            return

    with ThreadPoolExecutor(workers or workers_by_default(), thread_name_prefix="adopt") as pool:
        list(pool.map(one, sorted(listing.files, key=lambda entry: -entry.size)))
    if not adopted.ways and not all((staging / entry.path).exists() for entry in listing.files):
        for directory, here in looked.items():
            with reading(directory):
                say(f"adopting nothing from {directory}: {saw(directory, here, listing.files)}")
    return adopted


def _unreadable(directory: Path, error: OSError) -> str:
    """Explain why a directory can't be read, and what to do: copies keep owners without access to them."""
    reason = error.strerror or str(error)
    with files_as(0, 0):
        owner = untrusted_owner(directory)
    if owner is None or os.geteuid() != 0:
        return reason
    return (
        f"it is read as its owner, user {owner[0]}, who can't: {reason}; give it to root (chown -R "
        f"root: {shlex.quote(str(directory))}) or let that user read it"
    )


def _at(entry: Entry, path: str) -> Entry:
    return Entry(path, entry.size, entry.sha256, entry.stated, entry.git_oid)


def _cheap(candidate: Path, staging: Path) -> bool:
    """Return whether a file may be adopted without new blocks: it is on the same file system."""
    with reading(candidate):
        device = candidate.stat().st_dev
    return device == staging.stat().st_dev

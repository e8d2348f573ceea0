"""``metal kernels``: compiled kernels of one host, or of one user, as an archive for identical ones.

A cache belongs to the service that fills it. As root, everything in it is read and written as its owner, so
that a link or a pipe in it can harm only that user; the archive is root's.

Exit status: 0 done, also if there was nothing to do, which the one line of output tells; 2 usage, or an
archive that can't be used.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import pwd
import resource
import signal
import tarfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, NoReturn

from minimax_metal.common.documents import read_json
from minimax_metal.common.errors import UserError
from minimax_metal.common.files import directory_beneath, read_bounded, write_atomic
from minimax_metal.common.privileges import (
    acting_as,
    acting_as_owner_of,
    trusted_directory,
    untrusted_owner,
)
from minimax_metal.host.engine.kernel_archive import BYTES, Limited, add, kernels, members, stream

MEMORY: Final = 8 << 30
"""Address space of the process that reads an archive: one that claims more is refused."""
SECONDS: Final = 3600.0
"""Seconds that another user's process may take to read its cache."""
NOTES: Final = Path("/var/lib/minimax-metal/kernels")
"""Where a host notes whose kernels it uses, by the name of the cache."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Return the owner of a cache's kernels."""

    uid: int
    gid: int


def owner_of(directory: Path) -> Owner | None:
    """Return the owner of this cache, for root; None if it is this user's own."""
    found = untrusted_owner(directory) if os.geteuid() == 0 else None
    return Owner(*found) if found else None


@contextlib.contextmanager
def streamed(directory: Path) -> Iterator[IO[bytes]]:
    """Yield the tar archive of a cache's kernels, read by a process of the cache's owner.

    Raises:
        UserError: the cache can't be read completely.
    """
    reader = owner_of(directory)
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        _read_and_exit(directory, sink, reader)
    os.close(sink)
    limit = threading.Timer(SECONDS, os.kill, (child, signal.SIGKILL))
    limit.daemon = True
    limit.start()
    whole = False
    try:
        with os.fdopen(source, "rb") as archive:
            yield archive
            # Padding at an archive's end; a process that sends more is not trusted.
            whole = len(archive.read(1 << 20)) < 1 << 20
    finally:
        limit.cancel()
        if not whole:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if not whole or status != 0:
        raise UserError(f"the kernels in {directory} can't be read by their owner; check its files")


def _read_and_exit(directory: Path, sink: int, reader: Owner | None) -> NoReturn:
    """Become the reader's process, without any of root's rights."""
    status = 1
    try:
        if reader is not None:
            os.setgroups([])
            os.setresgid(reader.gid, reader.gid, reader.gid)
            os.setresuid(reader.uid, reader.uid, reader.uid)
        with os.fdopen(sink, "wb") as output:
            stream(directory, output)
        status = 0
    finally:
        os._exit(status)


def pack(directory: Path, archive: Path) -> int:
    """Write a cache's kernels to an archive readable by all; return the number of files, 0 writes none.

    Raises:
        UserError: the cache can't be read, or has more than an archive may.
        OSError: the archive can't be written, or other users can write to its directory.
    """
    folder = trusted_directory(archive.parent, create=0o755)
    count = 0
    with directory_beneath(folder) as place:
        part = f".{archive.name}.{os.getpid()}.part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(part, flags, 0o644, dir_fd=place)
        try:
            with (
                os.fdopen(handle, "wb") as raw,
                gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1, mtime=0) as packed,
                streamed(directory) as source,
            ):
                counted = Limited(source, BYTES)
                # Read once on the way: to count them, and to check that there is nothing but kernels.
                with tarfile.open(fileobj=packed, mode="w|") as target:
                    for member, content in members(counted, "r|", str(directory)):
                        target.addfile(member, io.BytesIO(content))
                        count += 1
                packed.flush()
                raw.flush()
                os.fchmod(raw.fileno(), 0o644)
                os.fsync(raw.fileno())
            if count:
                os.replace(part, archive.name, src_dir_fd=place, dst_dir_fd=place)
                os.fsync(place)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part, dir_fd=place)
    return count


@contextlib.contextmanager
def stated(archive: Path, sha256: str | None = None) -> Iterator[IO[bytes]]:
    """Yield an archive, opened.

    Raises:
        UserError: it can't be read, or does not have the given SHA-256 (hex).
    """
    try:
        opened = archive.open("rb")
    except OSError as error:
        raise UserError(
            f"{archive} can't be read ({error.strerror}), expected an archive of a host's kernels; "
            "run site.yml again"
        ) from None
    with opened as file:
        if sha256 is not None and (found := hashlib.file_digest(file, "sha256").hexdigest()) != sha256:
            raise UserError(
                f"found an archive with SHA-256 {found[:12]}… at {archive}, expected {sha256[:12]}…; "
                "remove it here and on the controller"
            )
        file.seek(0)
        yield file


def unpack(archive: Path, directory: Path, owner: Owner | None = None, sha256: str | None = None) -> int:
    """Add an archive's kernels to a cache, never replacing a file; return how many were added.

    Args:
        archive: made by :func:`pack`.
        directory: the cache; created if missing.
        owner: user as which root writes (default: the cache's owner).
        sha256: of the archive, in hex; another one is refused.

    Raises:
        UserError: the file can't be read as an archive of kernels.
        OSError: the cache can't be written.
    """
    with stated(archive, sha256) as file, _writing(directory, owner):
        return add(file, "r|gz", str(archive), directory)


def copy(source: Path, directory: Path, owner: Owner | None = None) -> int:
    """Add the kernels in one user's cache to another user's; return how many were added.

    Raises:
        UserError: the first can't be read.
        OSError: the second can't be written.
    """
    with streamed(source) as archive, _writing(directory, owner):
        return add(Limited(archive, BYTES), "r|", str(source), directory)


@contextlib.contextmanager
def _writing(directory: Path, owner: Owner | None) -> Iterator[None]:
    """Temporarily become the cache's owner."""
    if os.geteuid() != 0:
        yield
        return
    if owner is not None:
        _make(directory.absolute(), owner)
    owner = owner or owner_of(directory)
    with acting_as(owner.uid, owner.gid) if owner else contextlib.nullcontext():
        yield


def _make(directory: Path, owner: Owner) -> None:
    """Create the part of a cache's path that only root can create; its owner creates the rest."""
    for one in (*reversed(directory.parents), directory):
        if untrusted_owner(one.parent) is not None:
            break
        with contextlib.suppress(FileExistsError):
            one.mkdir(mode=0o755)
            os.chown(one, owner.uid, owner.gid, follow_symlinks=False)


def note(name: str, content: Mapping[str, Any], directory: Path = NOTES) -> None:
    """Store whose kernels this host has in a cache.

    Raises:
        OSError: it can't be written.
    """
    folder = trusted_directory(directory, create=0o755)
    write_atomic(folder / f"{name}.json", json.dumps({"schema": 1, **content}, indent=1) + "\n")


def origin(name: str, directory: Path = NOTES) -> dict[str, Any] | None:
    """Return the host that built the kernels in this host's cache; None if it copied none."""
    try:
        content = read_json(read_bounded(directory / f"{name}.json", 1 << 16))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def main(argv: Sequence[str]) -> int:
    """Count, pack, unpack or copy kernels."""
    arguments = _parser().parse_args(argv)
    directory: Path = arguments.directory
    if arguments.verb == "count":
        with acting_as_owner_of(directory):
            print(sum(1 for _ in kernels(directory)))
        return 0
    try:
        if arguments.verb == "pack":
            number = pack(directory, arguments.archive)
            print(f"packed {number} files" if number else "no kernels to share")
            return 0
        owner = _owner(arguments.owner)
        if arguments.verb == "copy":
            with _little_memory():
                number = copy(arguments.source, directory, owner)
            print(f"copied {number} files" if number else "no kernel was missing")
            return 0
        if arguments.built_by is not None:
            with stated(arguments.archive, arguments.sha256):
                # First: kernels of another host are never used without a record.
                content = {"built_by": arguments.built_by, "sha256": arguments.sha256, "time": _now()}
                note(directory.name, content, arguments.notes)
        with _little_memory():
            number = unpack(arguments.archive, directory, owner, arguments.sha256)
        print(f"unpacked {number} files" if number else "no kernel was missing")
    except OSError as error:
        raise UserError(
            f"{error.filename or directory}: {error.strerror or error}; check owner and mode of its directory"
        ) from None
    return 0


@contextlib.contextmanager
def _little_memory() -> Iterator[None]:
    """Use no more memory than reading an archive takes: one that claims to contain more is refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY if hard == resource.RLIM_INFINITY else hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _owner(name: str | None) -> Owner | None:
    if name is None:
        return None
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise UserError(f"found no user {name}, expected one of this host; run site.yml") from None
    return Owner(entry.pw_uid, entry.pw_gid)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="metal kernels", description="Share compiled kernels between identical hosts."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    owner = "as root: write the cache as this user (default: the cache's owner)"
    count = verbs.add_parser("count", help="print the number of kernel files in a cache")
    count.add_argument("directory", type=Path)
    packing = verbs.add_parser("pack", help="write a cache's kernels to an archive")
    packing.add_argument("directory", type=Path)
    packing.add_argument("archive", type=Path)
    unpacking = verbs.add_parser("unpack", help="add an archive's kernels to a cache; existing files stay")
    unpacking.add_argument("archive", type=Path)
    unpacking.add_argument("directory", type=Path)
    unpacking.add_argument("--owner", metavar="USER", help=owner)
    unpacking.add_argument("--sha256", metavar="HEX", help="SHA-256 of the archive; others are refused")
    unpacking.add_argument("--built-by", metavar="HOST", help="archive name to note in the release record")
    unpacking.add_argument("--notes", type=Path, default=NOTES, help=argparse.SUPPRESS)
    copying = verbs.add_parser("copy", help="copy the kernels of one user's cache to another user's")
    copying.add_argument("source", type=Path)
    copying.add_argument("directory", type=Path)
    copying.add_argument("--owner", metavar="USER", help=owner)
    return parser

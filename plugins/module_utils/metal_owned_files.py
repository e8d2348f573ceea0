"""Files, links and directories of a role's list, for module metal_owned: compare them, write what differs.

Every name is opened from its directory's descriptor: whoever else may write there can't lead it elsewhere.
"""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import base64
import grp
import hashlib
import os
import pwd
import secrets
import shutil
import stat
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

# A copy of src/minimax_metal/common/files.py.
from ansible_collections.minimax.metal.plugins.module_utils.metal_files import (
    directory_by_name,
    sync_directory,
)

BEFORE_BYTES = 64 << 10
"""What is shown of an old file at most; a longer one is only said to be another one."""
BLOCK = 1 << 20

Validate = Callable[[Sequence[str]], None]
"""Runs a command that must accept a new file before it takes the old one's place; raises OSError."""


@dataclass(frozen=True)
class Change:
    """What differed at one path.

    Attributes:
        path: where.
        content: whether bytes, a link's target or the kind differ; else only owner or mode do.
        before: the old content, compressed; None where it is secret, too long, not text or not there.
        was, now: kind, owner and mode, as one short text each.
    """

    path: str
    content: bool
    before: str | None
    was: str
    now: str


class ForeignError(OSError):
    """What is at a path is nothing that may be replaced."""


@dataclass(frozen=True)
class Found:
    """What lies at a name: its status (None: nothing) and, of a file, what was read of it."""

    status: os.stat_result | None
    data: bytes | None = None
    digest: str = ""


def ids_of(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return uid and gid of an entry; None where the host does not know the user or the group yet."""
    try:
        return pwd.getpwnam(str(entry["owner"])).pw_uid, grp.getgrnam(str(entry["group"])).gr_gid
    except KeyError:
        return None


def described(status: os.stat_result | None) -> str:
    """Return kind, owner and mode in words: ``file root:root 0644``."""
    if status is None:
        return "absent"
    kinds = ((stat.S_ISLNK, "link"), (stat.S_ISDIR, "directory"), (stat.S_ISREG, "file"))
    kind = next((name for test, name in kinds if test(status.st_mode)), "other")
    if kind == "link":
        return kind
    return f"{kind} {_user(status.st_uid)}:{_group(status.st_gid)} {stat.S_IMODE(status.st_mode):04o}"


def _user(uid: int) -> str:
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)


def _group(gid: int) -> str:
    with suppress(KeyError):
        return grp.getgrgid(gid).gr_name
    return str(gid)


def apply(entry: Mapping[str, Any], content: bytes | None, check: bool, validate: Validate) -> Change | None:
    """Make one path as its entry says; return what differed, None where nothing did.

    Args:
        entry: ``path``, ``kind`` (``file``, ``kept``, ``link``, ``directory``, ``absent``), ``owner``,
            ``group``, ``mode``; for a file ``secret`` and ``validate``, for one that is transferred
            ``sha256``, ``size`` and, once it is there, ``source``; for a link ``target``.
        content: a file's bytes; None for one that is transferred.
        check: write nothing.
        validate: see :data:`Validate`.

    Raises:
        OSError: it can't be read or written, or something that is not ours lies there.
    """
    path = Path(str(entry["path"]))
    if entry["kind"] == "directory":
        return _directory(path, entry, check)
    try:
        with directory_by_name(path.parent) as parent:
            return KINDS[str(entry["kind"])](parent, path, entry, content, check, validate)
    except (FileNotFoundError, NotADirectoryError):
        if entry["kind"] in {"absent", "kept"}:
            return None
        if not check:
            raise
        return Change(str(path), True, None, "absent", _wanted(entry))


def strays(patterns: Sequence[str], listed: Collection[str]) -> list[str]:
    """Return the paths that match a pattern of names in one directory, and are not listed."""
    found = []
    for pattern in map(Path, patterns):
        with suppress(FileNotFoundError, NotADirectoryError), directory_by_name(pattern.parent) as directory:
            there = sorted(path.name for path in Path(f"/proc/self/fd/{directory}").iterdir())
            paths = [str(pattern.parent / name) for name in there if fnmatchcase(name, pattern.name)]
            found += [path for path in paths if path not in listed]
    return found


def _wanted(entry: Mapping[str, Any]) -> str:
    kind = str(entry["kind"])
    if kind in {"absent", "link"}:
        return kind
    kind = "file" if kind == "kept" else kind
    return f"{kind} {entry['owner']}:{entry['group']} {entry['mode']}"


def _status(parent: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None


@contextmanager
def _opened(parent: int, name: str) -> Iterator[int]:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _found(parent: int, name: str, size: int) -> Found:
    """Return what is at a name; of a file as much as can matter for a comparison with ``size`` bytes."""
    status = _status(parent, name)
    if status is None or not stat.S_ISREG(status.st_mode):
        return Found(status)
    with _opened(parent, name) as descriptor:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return Found(status)
        total, data = hashlib.sha256(), bytearray()
        left = max(size, BEFORE_BYTES) + 1
        while left > 0 and (block := os.read(descriptor, min(BLOCK, left))):
            total.update(block)
            left -= len(block)
            if len(data) <= BEFORE_BYTES:
                data += block[: BEFORE_BYTES + 1]
        return Found(status, bytes(data) if len(data) <= BEFORE_BYTES else None, total.hexdigest())


def _attributes(status: os.stat_result, entry: Mapping[str, Any]) -> bool:
    """Return whether owner and mode are the entry's; ``preserve`` is any."""
    if entry["mode"] == "preserve":
        return True
    wanted = (ids_of(entry), int(str(entry["mode"]), 8))
    return ((status.st_uid, status.st_gid), stat.S_IMODE(status.st_mode)) == wanted


def _owner(entry: Mapping[str, Any]) -> tuple[int, int]:
    ids = ids_of(entry)
    if ids is None:
        raise ForeignError(2, f"no user {entry['owner']} or no group {entry['group']}", str(entry["path"]))
    return ids


def _shown(entry: Mapping[str, Any], found: Found) -> str | None:
    if entry.get("secret") or found.data is None or b"\0" in found.data:
        return None
    return base64.b64encode(zlib.compress(found.data)).decode("ascii")


def _file(
    parent: int, path: Path, entry: Mapping[str, Any], content: bytes | None, check: bool, validate: Validate
) -> Change | None:
    digest = hashlib.sha256(content).hexdigest() if content is not None else str(entry["sha256"])
    size = len(content) if content is not None else int(entry["size"])
    found = _found(parent, path.name, size)
    status = found.status
    if status is not None and stat.S_ISDIR(status.st_mode):
        raise ForeignError(21, "a directory, where a file belongs", str(path))
    same = status is not None and found.digest == digest
    if status is not None and same and _attributes(status, entry):
        return None
    change = Change(
        str(path), not same, None if same else _shown(entry, found), described(status), _wanted(entry)
    )
    if check:
        return change
    if entry["mode"] == "preserve":
        kept = status if status is not None and stat.S_ISREG(status.st_mode) else None
        owner = (kept.st_uid, kept.st_gid) if kept else (0, 0)
        mode = stat.S_IMODE(kept.st_mode) if kept else 0o644
    else:
        owner, mode = _owner(entry), int(str(entry["mode"]), 8)
    if same and _set(parent, path.name, owner, mode):
        return change
    if content is None and same:
        with _opened(parent, path.name) as descriptor, os.fdopen(os.dup(descriptor), "rb") as stream:
            content = stream.read(size + 1)
    if content is None and not entry.get("source"):
        raise ForeignError(2, "a file that was not transferred", str(path))
    _write(parent, path, content if content is not None else Path(str(entry["source"])), digest,
           (owner, mode), entry.get("validate") or (), validate)  # fmt: skip
    return change


def _set(parent: int, name: str, owner: tuple[int, int], mode: int) -> bool:
    """Set owner and mode of a file that has one name only; return whether that could be done safely."""
    with _opened(parent, name) as descriptor:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            return False
        os.fchown(descriptor, *owner)
        os.fchmod(descriptor, mode)
    return True


def _write(
    parent: int,
    path: Path,
    content: bytes | Path,
    digest: str,
    access: tuple[tuple[int, int], int],
    command: Sequence[str],
    validate: Validate,
) -> None:
    """Put a new file in the place of whatever has the name, at once; its bytes are those of ``digest``."""
    part = f".{path.name[:200]}.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(part, flags, 0o600, dir_fd=parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            total = hashlib.sha256()
            for block in [content] if isinstance(content, bytes) else _blocks(content):
                total.update(block)
                stream.write(block)
            if total.hexdigest() != digest:
                raise ForeignError(5, "other bytes than those that were sent", str(path))
            stream.flush()
            os.fchown(descriptor, *access[0])
            os.fchmod(descriptor, access[1])
            os.fsync(descriptor)
        if command:
            place = f"/proc/{os.getpid()}/fd/{parent}/{part}"
            validate([word.replace("%s", place) for word in command])
        os.rename(part, path.name, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        with suppress(OSError):
            os.unlink(part, dir_fd=parent)
        raise
    _sync(parent)


def _blocks(source: Path) -> Iterator[bytes]:
    """Yield a transferred file's bytes. It lies in a directory of the user that Ansible logs in as."""
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ForeignError(22, "not a regular file", str(source))
        while block := stream.read(BLOCK):
            yield block


def _sync(parent: int) -> None:
    sync_directory(Path(f"/proc/self/fd/{parent}"))


def _kept(
    parent: int,
    path: Path,
    entry: Mapping[str, Any],
    _content: bytes | None,
    check: bool,
    _validate: Validate,
) -> Change | None:
    """A file that others write: only its owner and mode are the role's, and only where it is there."""
    status = _status(parent, path.name)
    if status is None or _attributes(status, entry):
        return None
    if not stat.S_ISREG(status.st_mode):
        raise ForeignError(22, "not a regular file", str(path))
    if not check and not _set(parent, path.name, _owner(entry), int(str(entry["mode"]), 8)):
        raise ForeignError(1, "a file with a second name", str(path))
    return Change(str(path), False, None, described(status), _wanted(entry))


def _link(
    parent: int,
    path: Path,
    entry: Mapping[str, Any],
    _content: bytes | None,
    check: bool,
    _validate: Validate,
) -> Change | None:
    status, target = _status(parent, path.name), str(entry["target"])
    was = os.readlink(path.name, dir_fd=parent) if status and stat.S_ISLNK(status.st_mode) else None
    if was == target:
        return None
    if status is not None and stat.S_ISDIR(status.st_mode):
        raise ForeignError(21, "a directory, where a link belongs", str(path))
    if not check:
        part = f".{path.name[:200]}.{secrets.token_hex(8)}"
        os.symlink(target, part, dir_fd=parent)
        try:
            os.rename(part, path.name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with suppress(OSError):
                os.unlink(part, dir_fd=parent)
            raise
        _sync(parent)
    return Change(str(path), True, None, f"link to {was}" if was else described(status), f"link to {target}")


def _absent(
    parent: int,
    path: Path,
    entry: Mapping[str, Any],
    _content: bytes | None,
    check: bool,
    _validate: Validate,
) -> Change | None:
    status = _status(parent, path.name)
    if status is None:
        return None
    found = _found(parent, path.name, BEFORE_BYTES)
    if not check:
        if stat.S_ISDIR(status.st_mode):
            # By the directory's descriptor; below it rmtree uses descriptors of its own.
            shutil.rmtree(f"/proc/self/fd/{parent}/{path.name}")
        else:
            os.unlink(path.name, dir_fd=parent)
        _sync(parent)
    return Change(str(path), True, _shown(entry, found), described(status), "absent")


def _directory(path: Path, entry: Mapping[str, Any], check: bool) -> Change | None:
    try:
        with directory_by_name(path) as directory:
            status = os.fstat(directory)
            if _attributes(status, entry):
                return None
            if not check:
                os.fchown(directory, *_owner(entry))
                os.fchmod(directory, int(str(entry["mode"]), 8))
            return Change(str(path), False, None, described(status), _wanted(entry))
    except FileNotFoundError:
        if not check:
            with directory_by_name(path, create=0o755) as directory:
                os.fchown(directory, *_owner(entry))
                os.fchmod(directory, int(str(entry["mode"]), 8))
        return Change(str(path), True, None, "absent", _wanted(entry))
    except NotADirectoryError as error:
        raise ForeignError(20, "something that is not a directory", str(path)) from error


KINDS = {"file": _file, "kept": _kept, "link": _link, "absent": _absent}

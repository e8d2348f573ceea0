"""The validated catalogue, cached as JSON, so that planning neither parses YAML nor imports pydantic.

The cache is beside the package's byte code, or else in the user's cache directory. It carries the digest of
everything it was made from and is made again when that changes. Anybody who could change it could change
plans, so it is used only if nobody else can write to it: the file and its directory must belong to this user,
to root or (beside the package) to the package's owner, and must not be writable by group or others.

JSON has no tuples, dates, numeric keys or catalogue entries. They are stored as lists that begin with their
type: ``["tuple", ...]``, ``["date", "2026-01-31"]``, ``["pairs", [key, value], ...]`` and ``["Figure",
{"value": 1, ...}]``, an entry with the fields that were written.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any, Final

from minimax_metal.catalog import schema
from minimax_metal.catalog.schema import Catalog, Entry
from minimax_metal.common.documents import read_json
from minimax_metal.common.files import directory_beneath, read_bounded, write_atomic

NAME: Final = "catalog.json"
LARGEST: Final = 16 * 2**20
"""Maximum size of the cache file in bytes."""
_TYPES: Final = {
    name: kind for name, kind in vars(schema).items() if isinstance(kind, type) and issubclass(kind, Entry)
}


def plain(value: Any) -> Any:
    """Return the value in a form that JSON can hold."""
    if isinstance(value, Entry):
        fields = {name: plain(getattr(value, name)) for name in sorted(value.written)}
        return [type(value).__name__, fields]
    if isinstance(value, tuple):
        return ["tuple", *map(plain, value)]
    if isinstance(value, date):
        return ["date", value.isoformat()]
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: plain(one) for key, one in value.items()}
        return ["pairs", *([key, plain(one)] for key, one in value.items())]
    return value


def entry_of(value: Any) -> Any:
    """Return the value that was given to :func:`plain`.

    Raises:
        LookupError, TypeError, ValueError, AttributeError: the input did not come from :func:`plain`.
    """
    if isinstance(value, dict):
        return {key: entry_of(one) for key, one in value.items()}
    if not isinstance(value, list):
        return value
    kind, *rest = value
    if kind == "tuple":
        return tuple(map(entry_of, rest))
    if kind == "pairs":
        return {key: entry_of(one) for key, one in rest}
    if kind == "date":
        return date.fromisoformat(rest[0])
    return _TYPES[kind](**{name: entry_of(one) for name, one in rest[0].items()})


def load(digest: str, package: Path) -> Catalog | None:
    """Return the cached catalogue with this digest, or None if there is none that can be trusted.

    Args:
        digest: of everything the catalogue is made from.
        package: the directory of the catalogue's files.
    """
    for directory, owners in _places(package):
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            document = read_json(_read(directory, owners))
            if document["digest"] == digest and isinstance(found := entry_of(document["catalog"]), Catalog):
                return found
    return None


def save(digest: str, catalog: Catalog, package: Path) -> None:
    """Cache the catalogue in the first place that only this user can write to, if there is one.

    All work is done by descriptors below a directory that belongs to this user: root with another user's
    ``XDG_CACHE_HOME`` caches nothing there.
    """
    content = json.dumps({"digest": digest, "catalog": plain(catalog)}, separators=(",", ":"))
    ours = frozenset({os.geteuid()})
    for directory, _ in _places(package):
        beside = directory.parent == package
        if beside and sys.dont_write_bytecode:
            continue
        # Beside the package only the last directory may be created; in the user's home, its cache directory
        # too.
        start = package if beside else directory.parent.parent
        with suppress(OSError), directory_beneath(start) as owned:
            _check(owned, ours)
            below = directory.relative_to(start)
            with directory_beneath(owned, str(below), create=0o755 if beside else 0o700) as opened:
                _check(opened, ours)
                # By descriptor: nobody can replace the directory in the meantime.
                write_atomic(Path(f"/proc/self/fd/{opened}/{NAME}"), content, 0o644 if beside else 0o600)
            return


def _places(package: Path) -> list[tuple[Path, frozenset[int]]]:
    """Return directories that may hold the cache, each with the uids that are trusted there."""
    us = frozenset({0, os.geteuid()})
    places = []
    with suppress(OSError):
        # The package's owner controls the code that runs here anyway.
        places.append((package / "__pycache__", us | {package.stat().st_uid}))
    with suppress(RuntimeError):  # no home
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        if base.is_absolute():
            places.append((base / "minimax-metal", us))
    return places


def _read(directory: Path, owners: frozenset[int]) -> bytes:
    with directory_beneath(directory) as opened:
        _check(opened, owners)
        descriptor = os.open(NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=opened)
    try:
        _check(descriptor, owners)
        return read_bounded(Path(f"/proc/self/fd/{descriptor}"), LARGEST)
    finally:
        os.close(descriptor)


def _check(descriptor: int, owners: frozenset[int]) -> None:
    status = os.fstat(descriptor)
    if status.st_uid not in owners or stat.S_IMODE(status.st_mode) & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError("others can write to it")

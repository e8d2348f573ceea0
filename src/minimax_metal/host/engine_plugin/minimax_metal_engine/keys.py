"""The key of a request: ``Authorization: Bearer``, or ``x-api-key`` as Anthropic's clients send it.

Valid keys are read again whenever their file changes, so that keys can be rotated without a restart: during a
rotation the previous one is valid as well. The engine itself keeps the key that it was started with; the
guard passes it that one, whichever key the client sent.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

Headers = list[tuple[bytes, bytes]]
CARRIERS = frozenset({b"authorization", b"x-api-key"})
FILE = "accepted.json"
"""Beside the keys: ``{"api_key": [KEY, ...], "admin_api_key": [KEY, ...]}``, the one in use first."""
USER_KEY, ADMIN_KEY = "api_key", "admin_api_key"
LARGEST = 65536
MOST = 4
"""Maximum simultaneously valid keys of a kind: the new one, the old one, and room for the user's own."""
SHORTEST = 8


@dataclass(frozen=True)
class Accepted:
    """The valid keys; an empty kind is not required."""

    user: tuple[str, ...] = ()
    admin: tuple[str, ...] = ()


def parse(text: bytes) -> Accepted:
    """Return the keys in a file's content.

    Raises:
        ValueError: it is not what the role writes.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(raw, dict) or set(raw) != {USER_KEY, ADMIN_KEY}:
        raise ValueError(f"expected {USER_KEY} and {ADMIN_KEY}")
    for name, keys in raw.items():
        right = isinstance(keys, list) and 1 <= len(keys) <= MOST and len(set(map(str, keys))) == len(keys)
        if not right or not all(
            isinstance(key, str) and len(key) >= SHORTEST and key.isascii() for key in keys
        ):
            raise ValueError(f"{name}: expected 1 to {MOST} distinct keys")
    if set(raw[USER_KEY]) & set(raw[ADMIN_KEY]):
        raise ValueError("the same key is in both lists")
    return Accepted(tuple(raw[USER_KEY]), tuple(raw[ADMIN_KEY]))


class KeyFile:
    """The keys in a file, read again when the file changes.

    A file is used completely or not at all: the role replaces it atomically, and a file that is broken,
    writable by others, or missing leaves the keys unchanged. The file's identity (device, inode, time, size)
    is checked for each request: this takes a microsecond, and a revoked key stops working immediately.
    """

    def __init__(self, path: Path, keys: Accepted | None = None) -> None:
        """Read it; with ``keys``, those are valid until it can be read.

        Raises:
            OSError, ValueError: it can't be read, and there are no ``keys``.
        """
        self.path = path
        self.lock = threading.Lock()
        self.seen: tuple[int, ...] | None = None
        self.said = ""
        if keys is None:
            self.seen, keys = self._read()
        self.keys = keys

    def now(self) -> Accepted:
        """Return the keys that are valid now."""
        try:
            state = _state(self.path.lstat())
        except OSError:
            return self.keys
        if state != self.seen:
            with self.lock:
                self._renew(state)
        return self.keys

    def _renew(self, state: tuple[int, ...]) -> None:
        try:
            self.seen, self.keys = self._read()
            self.said = ""
        except (OSError, ValueError) as error:
            # Checked again at the next change.
            self.seen = state
            said = f"minimax-metal's guard: {self.path}: {error}; keeping the current keys"
            if said != self.said:
                print(said, file=sys.stderr, flush=True)
            self.said = said

    def _read(self) -> tuple[tuple[int, ...], Accepted]:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("not a regular file")
            if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH | stat.S_IRWXO):
                raise ValueError(f"mode {stat.S_IMODE(status.st_mode):04o}, expected 0640 or less")
            content = stream.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"more than {LARGEST} bytes")
        return _state(status), parse(content)


def _state(status: os.stat_result) -> tuple[int, ...]:
    return (
        *(status.st_dev, status.st_ino, status.st_size),
        *(status.st_mtime_ns, status.st_ctime_ns),
    )


def given_keys(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """Every key of a request."""
    found = []
    for name, value in headers:
        if name.lower() == b"x-api-key":
            found.append(value.strip())
        elif name.lower() == b"authorization":
            scheme, _, key = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                found.append(key.strip())
    return found


def carries(headers: Iterable[tuple[bytes, bytes]], keys: Sequence[str]) -> bool:
    """Return whether a request carries one of some keys; compared in constant time."""
    given = given_keys(headers)
    # All are compared: the time must not show which one matched.
    return any([secrets.compare_digest(one, key.encode()) for one in given for key in keys])  # noqa: C419


def with_key(headers: Iterable[tuple[bytes, bytes]], key: str) -> Headers:
    """Return the headers for the engine's own check: one key, in one place."""
    kept = [pair for pair in headers if pair[0].lower() not in CARRIERS]
    return [*kept, (b"authorization", b"Bearer " + key.encode())]

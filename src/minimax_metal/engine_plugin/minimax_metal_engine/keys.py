"""Which key a request carries: ``Authorization: Bearer``, or ``x-api-key`` as Anthropic's clients send it."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

Headers = list[tuple[bytes, bytes]]
CARRIERS = frozenset({b"authorization", b"x-api-key"})


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


def carries(headers: Iterable[tuple[bytes, bytes]], key: str) -> bool:
    """Whether a request carries a key; compared in constant time."""
    wanted = key.encode()
    # All are compared: the time tells nothing about which one it was.
    return any([secrets.compare_digest(one, wanted) for one in given_keys(headers)])  # noqa: C419


def with_key(headers: Iterable[tuple[bytes, bytes]], key: str) -> Headers:
    """The headers as the engine's own check reads them: one key, in one place."""
    kept = [pair for pair in headers if pair[0].lower() not in CARRIERS]
    return [*kept, (b"authorization", b"Bearer " + key.encode())]

"""The fleet's secrets, and what is proved with them: the client of a request, and the author of an answer.

A host has one secret, or two during a renewal: the current one first, then the previous one, which hosts
whose pull began earlier still have. A host's announcements are sealed with all its secrets, and accepted if
one matches. Bytes of pieces are not sealed: their hashes bind them.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from typing import Final

from minimax_metal.common.errors import UserError

MOST: Final = 2
"""Maximum number of simultaneously valid secrets."""
_SECRET: Final = re.compile(r"[0-9a-f]{64}")
DIFFERENT: Final = 4
"""Minimum number of different digits: 64 zeros, or ``ab`` 32 times, are not random."""
_MAC: Final = 32
"""Hexadecimal digits of a seal: 128 bits."""


class SealError(ValueError):
    """Something was not sealed with a secret of this fleet."""


def parse(text: str) -> tuple[str, ...]:
    """Return the secrets in a file, the current one first.

    Raises:
        UserError: there is none, or something else.
    """
    found = tuple(dict.fromkeys(text.split()))
    if not 1 <= len(found) <= MOST or not all(map(_SECRET.fullmatch, found)):
        raise UserError("no fleet secret")
    if any(map(_weak, found)):
        raise UserError("a weak fleet secret")
    return found


def _weak(secret: str) -> bool:
    return len(set(secret)) < DIFFERENT


def name_of(secret: str) -> str:
    """Return the name of the secret that signs a request; it reveals nothing about it."""
    return _mac(secret, [b"name"])[:16]


def _mac(secret: str, parts: Iterable[bytes]) -> str:
    digest = hmac.new(bytes.fromhex(secret), digestmod=hashlib.sha256)
    for part in parts:
        # With its length: no two lists of parts give the same bytes.
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:_MAC]


def seals(secrets: Sequence[str], kind: str, host: str, body: bytes) -> str:
    """Return the proof that a host of the fleet is the author.

    ``kind`` keeps one kind of message from passing for another.
    """
    return ",".join(_mac(secret, [kind.encode(), host.encode(), body]) for secret in secrets)


def fits(secrets: Sequence[str], found: str, kind: str, host: str, body: bytes) -> bool:
    """Return whether one of the seals matches one of the secrets."""
    wanted = [_mac(secret, [kind.encode(), host.encode(), body]) for secret in secrets]
    return any(
        hmac.compare_digest(one.encode("utf-8", "replace"), mine.encode())
        for one in found.split(",", MOST)[:MOST]
        for mine in wanted
    )


def seal(secrets: Sequence[str], kind: str, host: str, body: bytes) -> bytes:
    """Return a document with its seals before it, as a file for nginx to serve."""
    return seals(secrets, kind, host, body).encode() + b"\n" + body


def unseal(secrets: Sequence[str], kind: str, host: str, content: bytes) -> bytes:
    """Return the document.

    Raises:
        SealError: it is not sealed by that host with one of these secrets.
    """
    first, _, body = content.partition(b"\n")
    if not fits(secrets, first[:200].decode("ascii", "replace"), kind, host, body):
        raise SealError(f"{host}: the server there does not know the fleet's secret")
    return body

"""Proves to a gateway that this is the engine it was told of, before the gateway hands keys and prompts over.

The gateway asks ``GET /metal/identity?nonce=...``. The answer is an HMAC of the nonce and of the address by
which the gateway reaches the engine, with a key that is derived from the clients' key. Whoever else took the
port does not have it, and an answer of another engine is for another address. The clients' key is stretched
first: answers, which anybody may ask for, don't help to guess it. ``fleet/gateway_identity.py`` asks.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from urllib.parse import parse_qs

PATH = "/metal/identity"
NONCE = re.compile(r"[0-9a-f]{32,128}")
DOMAIN = b"minimax-metal identity 1"
ROUNDS = 200_000


class Identity:
    """What an engine proves itself with."""

    def __init__(self, key: str, address: str) -> None:
        self.address = address.encode()
        self.key = hashlib.pbkdf2_hmac("sha256", key.encode(), DOMAIN + b"\n" + self.address, ROUNDS)

    def proof(self, nonce: str) -> str:
        """The answer to a nonce."""
        return hmac.new(self.key, b"\n".join((DOMAIN, self.address, nonce.encode())), "sha256").hexdigest()

    def answer(self, query: bytes) -> str | None:
        """The answer to a query; none where it holds no nonce."""
        given = parse_qs(query.decode("ascii", "replace")).get("nonce", [])
        return self.proof(given[0]) if len(given) == 1 and NONCE.fullmatch(given[0]) else None

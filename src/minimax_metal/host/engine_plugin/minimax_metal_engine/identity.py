"""Proves to a gateway that this is the engine it was told of, before the gateway hands keys and prompts over.

The gateway asks ``GET /metal/identity?nonce=...``. The answer is an HMAC of the nonce and of the address by
which the gateway reaches the engine, with a key that is derived from the clients' key. Whoever else took the
port does not have it, and an answer of another engine is for another address. The clients' key is stretched
first: answers, which anybody may ask for, don't help to guess it. ``host/gateway/identity.py`` asks.

While keys are changed, several count: ``proof`` is made with the first of the clients' keys, ``proofs`` with
each of them, ``managers`` with each of the managers'. So whoever has the keys' files sees which of them the
engine takes, and that it takes no other, without sending one.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import threading
from collections.abc import Sequence
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
        nonce = asked(query)
        return self.proof(nonce) if nonce else None


MANAGERS = "#managers"
"""Behind the address where a key of managers is stretched: no proof of one kind is one of the other."""


def asked(query: bytes) -> str | None:
    """The nonce in a query; none where it holds none, or several."""
    given = parse_qs(query.decode("ascii", "replace")).get("nonce", [])
    return given[0] if len(given) == 1 and NONCE.fullmatch(given[0]) else None


class Identities:
    """What an engine proves itself with while several keys count; each is stretched once (0.1 s)."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.known: dict[tuple[str, str], Identity] = {}
        self.lock = threading.Lock()

    def answers(self, nonce: str, user: Sequence[str], admin: Sequence[str]) -> dict[str, object]:
        """The answer to a nonce, of all keys that count."""
        with self.lock:
            wanted = [(key, self.address) for key in user]
            managers = [(key, self.address + MANAGERS) for key in admin]
            self.known = {
                pair: self.known.get(pair) or Identity(*pair) for pair in dict.fromkeys([*wanted, *managers])
            }
            proofs = [self.known[pair].proof(nonce) for pair in wanted]
            return {
                "proof": proofs[0],
                "proofs": proofs,
                "managers": [self.known[pair].proof(nonce) for pair in managers],
            }


def proven(body: str | bytes, own: Identity, nonce: str) -> bool:
    """Whether an answer holds the proof of one's own key; what is not of the guard's form holds none."""
    try:
        raw = json.loads(body)
        given = [raw["proof"], *raw.get("proofs", ())]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    wanted = own.proof(nonce).encode()
    return any(
        isinstance(one, str) and hmac.compare_digest(one.encode("utf-8", "replace"), wanted)
        for one in given[:64]
    )

"""Proves to a gateway that this is the expected engine, before the gateway sends keys and prompts.

The gateway requests ``GET /metal/identity?nonce=...``. The answer is an HMAC of the nonce and of the address
by which the gateway reaches the engine, with a key derived from the clients' key. Another program on the port
does not have it, and another engine's answer is for another address. The clients' key is stretched first:
answers, which anybody can request, don't help to guess it. ``host/gateway/identity.py`` is the other side.

During a key rotation several keys are valid: ``proof`` is made with the first of the clients' keys,
``proofs`` with each of them, ``managers`` with each admin key. So a program with the key files can see which
of them the engine accepts, and that it accepts no other, without sending one.
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
    """The engine's means of proving its identity."""

    def __init__(self, key: str, address: str) -> None:
        self.address = address.encode()
        self.key = hashlib.pbkdf2_hmac("sha256", key.encode(), DOMAIN + b"\n" + self.address, ROUNDS)

    def proof(self, nonce: str) -> str:
        """Return the answer to a nonce."""
        return hmac.new(self.key, b"\n".join((DOMAIN, self.address, nonce.encode())), "sha256").hexdigest()

    def answer(self, query: bytes) -> str | None:
        """Return the answer to a query; None if it contains no nonce."""
        nonce = asked(query)
        return self.proof(nonce) if nonce else None


MANAGERS = "#managers"
"""Appended to the address when an admin key is stretched: no proof of one kind is valid for the other."""


def asked(query: bytes) -> str | None:
    """Return the nonce in a query; None if there is none, or several."""
    given = parse_qs(query.decode("ascii", "replace")).get("nonce", [])
    return given[0] if len(given) == 1 and NONCE.fullmatch(given[0]) else None


class Identities:
    """The engine's means of proving its identity while several keys are valid; each is stretched once (0.1
    s).
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.known: dict[tuple[str, str], Identity] = {}
        self.lock = threading.Lock()

    def answers(self, nonce: str, user: Sequence[str], admin: Sequence[str]) -> dict[str, object]:
        """Return the answer to a nonce, with all valid keys."""
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
    """Return whether an answer contains the proof for a key; anything not in the guard's format has none."""
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

"""Whether the engine serves with the guard in it: checked once, before it is reported ready.

The engine continues without a plug-in that it could not load. It would then serve without limits and with all
routes open, so the unit is not ready until the guard has given the proof that only it can give
(``engine_plugin``, ``identity.py``). If the plan expects no guard (a release without plug-ins, no keys),
there is no check.
"""

from __future__ import annotations

import secrets
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from minimax_metal.host.engine.health import ask
from minimax_metal.host.engine_plugin.minimax_metal_engine.identity import PATH, Identity, proven

ASK_SECONDS: Final = 5.0
MISSING_SECONDS: Final = 15.0
"""Seconds that a ready engine may lack its guard; the server may have just started."""
PAUSE_SECONDS: Final = 1.0


@dataclass
class GuardProbe:
    """Asks a ready engine for its guard."""

    url: str
    own: Identity | None
    """The guard's identity; None if no guard is expected."""
    note: str = ""
    since: float | None = None
    asked: float = 0.0

    @classmethod
    def of(cls, ready_url: str, directory: Path | None, environment: Mapping[str, str]) -> GuardProbe:
        """Return the check by the unit's environment and keys."""
        key, address = directory / "api_key" if directory else None, environment.get("METAL_IDENTITY")
        own = None
        if address and key is not None and key.is_file():
            own = Identity(key.read_text(encoding="utf-8").strip(), address)
        return cls(urllib.parse.urljoin(ready_url, PATH), own)

    def is_there(self) -> bool:
        """Return whether the guard has answered; checked once a second until it has."""
        if self.own is None:
            return True
        now = time.monotonic()
        if now - self.asked < PAUSE_SECONDS:
            return False
        self.asked = now
        nonce = secrets.token_hex(32)
        status, text = ask(f"{self.url}?nonce={nonce}", ASK_SECONDS)
        if status == "200" and proven(text, self.own, nonce):
            self.own, self.note = None, ""
            return True
        self.since = now if self.since is None else self.since
        self.note = (
            f"the engine answers without its guard ({PATH}: {status}), expected the plug-in "
            "minimax-metal; look for it in the engine's log, and run the playbook again"
        )
        return False

    @property
    def is_missing(self) -> bool:
        """Return whether it has been missing for so long that it won't appear."""
        return bool(self.note) and self.since is not None and time.monotonic() - self.since >= MISSING_SECONDS

"""Whether a worker is the expected engine: checked before it gets requests, and continuously afterwards.

smg accepts any worker whose ``/health`` answers 200. So ``metal gateway watch`` asks each worker for a proof
that only the engine can give (``engine_plugin/minimax_metal_engine/identity.py``), without any key in the
request, and keeps only workers that gave it in smg's manifest. A worker that is down leaves the manifest too:
the next program on its port must prove itself first.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Final

from minimax_metal.host.engine_plugin.minimax_metal_engine.identity import PATH, Identity, proven
from minimax_metal.host.gateway.client import Web

ASK_SECONDS: Final = 5.0
LOOK_SECONDS: Final = 6.0
SILENT_LOOKS: Final = 3
"""Consecutive checks without an answer after which a worker is out: an impostor may be silent as well."""


class Seen(Enum):
    """The result of asking a worker."""

    PROVEN = "proven"
    FOREIGN = "foreign"
    """Something answered, and it is not the engine."""
    DOWN = "down"
    """Nothing listens there."""
    SILENT = "silent"
    """No answer in time: a busy engine, or a network failure. Nothing is concluded."""


class Examiner:
    """Asks workers for their proof."""

    def __init__(self, key: str, web: Web) -> None:
        """``web`` has no key: unproven servers never get one."""
        self.key = key
        self.web = web
        self.identities: dict[str, Identity] = {}
        self.asking: dict[str, threading.Thread] = {}
        self.answers: dict[str, Seen] = {}

    def ask(self, url: str, identity: str | None = None) -> Seen:
        """Ask one worker; ``identity``: the address that it proves, if that is another."""
        address = identity or url
        own = self.identities.get(address)
        if own is None:
            own = self.identities[address] = Identity(self.key, address)
        nonce = secrets.token_hex(32)
        try:
            status, body = self.web.get(f"{url}{PATH}?nonce={nonce}", seconds=ASK_SECONDS)
        except ConnectionRefusedError:
            return Seen.DOWN
        except OSError:
            return Seen.SILENT
        return Seen.PROVEN if status == 200 and proven(body, own, nonce) else Seen.FOREIGN

    def ask_all(self, urls: Iterable[str]) -> dict[str, Seen]:
        """Ask several in parallel, for ``LOOK_SECONDS`` at most: an endless answer delays nobody."""
        wanted = list(urls)
        deadline = time.monotonic() + LOOK_SECONDS
        for url in wanted:
            if url not in self.asking or not self.asking[url].is_alive():
                self.answers.pop(url, None)
                # A daemon thread: a pending answer does not keep the program from ending.
                self.asking[url] = threading.Thread(target=self._note, args=(url,), daemon=True)
                self.asking[url].start()
        for url in wanted:
            self.asking[url].join(max(0.0, deadline - time.monotonic()))
        return {url: self.answers.get(url, Seen.SILENT) for url in wanted}

    def _note(self, url: str) -> None:
        self.answers[url] = self.ask(url)


class Judge:
    """Workers without requests, check by check."""

    def __init__(self) -> None:
        self.silent: dict[str, int] = {}

    def withheld(self, before: Iterable[str], seen: Mapping[str, Seen]) -> frozenset[str]:
        """Return them after a check: a silent worker keeps its state, but not forever."""
        was = set(before)
        away = set()
        for url, found in seen.items():
            self.silent[url] = self.silent.get(url, 0) + 1 if found is Seen.SILENT else 0
            if found is Seen.SILENT and self.silent[url] < SILENT_LOOKS:
                away |= was & {url}
            elif found is not Seen.PROVEN:
                away.add(url)
        return frozenset(away)

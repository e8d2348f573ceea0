"""A layer around the engine's HTTP server: refuses new work while it drains, and shows no keys.

Runs inside the engine's process, by its plug-in interface (entry point ``sglang.srt.plugins``); standard
library only, and whatever Python the engine runs on. ``../README.md`` says what it is for.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

SHOWS_KEYS = frozenset({"/server_info", "/get_server_info"})
"""Paths whose answer holds the launch arguments, keys among them (read in 0.5.23, http_server.py)."""

UNGUARDED = frozenset({"/scale_elastic_ep", "/is_scaling_elastic_ep"})
"""Management paths that the engine's own middleware opens to the clients' key: it does not look into included
routers (0.5.23, utils/auth.py; tests/contract/test_keys.py asks the engine for all of them)."""

TICK_SECONDS = 0.1
UNAUTHORISED = b'{"error":"Unauthorized"}'
REFUSAL = json.dumps(
    {"error": {"message": "this server is being stopped", "type": "service_unavailable", "code": 503}}
).encode()


class Drain:
    """Requests in flight, and whether new ones are refused: while the file is there."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.account = file.with_name(f"{file.name}.{os.getpid()}")
        self.refusing = False
        self.running = 0

    def watch(self) -> None:
        """Look for the file for ever, and keep the account while it is there."""
        while True:
            self.tick()
            time.sleep(TICK_SECONDS)

    def tick(self) -> None:
        """Look once."""
        self.refusing = self.file.exists()
        try:
            if self.refusing:
                # Read by another process: never a half-written number.
                written = self.account.with_name(f"{self.account.name}.new")
                written.write_text(f"{self.running}\n", encoding="ascii")
                written.replace(self.account)
            else:
                self.account.unlink(missing_ok=True)
        except OSError:
            pass  # the directory goes with the unit


class Guard:
    """The engine's application with the layer around it (ASGI)."""

    def __init__(
        self,
        application: Application,
        drain: Drain | None,
        texts: Iterable[str],
        admin_key: str | None = None,
    ) -> None:
        self.application = application
        self.drain = drain
        self.admin = f"Bearer {admin_key}".encode() if admin_key else None
        self.secrets = tuple(json.dumps(text)[1:-1].encode() for text in texts)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.application(scope, receive, send)
        elif scope["path"] in UNGUARDED and self.admin and not self.is_admin(scope):
            await refuse(send, 401, UNAUTHORISED)
        elif scope["path"] in SHOWS_KEYS and self.secrets:
            await self.application(scope, receive, self.redacting(send))
        elif scope["method"] == "POST" and self.drain is not None:
            await self.work(self.drain, scope, receive, send)
        else:
            await self.application(scope, receive, send)

    async def work(self, drain: Drain, scope: Message, receive: Receive, send: Send) -> None:
        """A request that asks for work: counted, or refused."""
        if drain.refusing:
            await refuse(send, 503, REFUSAL, (b"retry-after", b"5"), (b"connection", b"close"))
            return
        drain.running += 1
        try:
            await self.application(scope, receive, send)
        finally:
            drain.running -= 1

    def is_admin(self, scope: Message) -> bool:
        """Whether a request carries the managers' key."""
        given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        return len(given) == 1 and secrets.compare_digest(bytes(given[0]), self.admin or b"")

    def redacting(self, send: Send) -> Send:
        """``send`` for an answer that is held back whole, because its length changes."""
        start: Message = {}
        body = bytearray()

        async def hold(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                return
            body.extend(message.get("body", b""))
            if message.get("more_body"):
                return
            shown = bytes(body)
            for secret in self.secrets:
                shown = shown.replace(secret, b"***")
            headers = [
                pair for pair in start.get("headers", ()) if bytes(pair[0]).lower() != b"content-length"
            ]
            start["headers"] = [*headers, (b"content-length", str(len(shown)).encode())]
            await send(start)
            await send({"type": "http.response.body", "body": shown})

        return hold


async def refuse(send: Send, status: int, body: bytes, *more: tuple[bytes, bytes]) -> None:
    """Answer a request that is not let through."""
    length = (b"content-length", str(len(body)).encode())
    headers = [(b"content-type", b"application/json"), length, *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def read_secrets(directory: str | None) -> list[str]:
    """The keys in ``<directory>/*_key``, longest first; none where there is no such directory."""
    found = []
    for path in sorted(Path(directory).glob("*_key")) if directory else []:
        try:
            found.append(path.read_text(encoding="utf-8").strip())
        except OSError:
            continue
    return sorted(filter(None, found), key=len, reverse=True)


def read_key(directory: str | None, name: str) -> str | None:
    """One key of the directory; none where there is no such file."""
    try:
        return Path(directory, name).read_text(encoding="utf-8").strip() or None if directory else None
    except OSError:
        return None


def install() -> None:
    """Put the layer around whatever uvicorn is about to serve (entry point ``sglang.srt.plugins``)."""
    if multiprocessing.parent_process() is not None:
        return  # a rank or another helper: it serves no HTTP
    import uvicorn

    drain_file = os.environ.get("METAL_DRAIN_FILE")
    drain = Drain(Path(drain_file)) if drain_file else None
    directory = os.environ.get("METAL_SECRETS")
    texts = read_secrets(directory)
    admin_key = read_key(directory, "admin_api_key")
    if drain is not None:
        threading.Thread(target=drain.watch, name="metal-drain", daemon=True).start()
    load = uvicorn.Config.load

    @functools.wraps(load)
    def guarded(config: Any) -> None:
        load(config)
        config.loaded_app = Guard(config.loaded_app, drain, texts, admin_key)

    setattr(uvicorn.Config, "load", guarded)  # noqa: B010  # as a type checker sees it, a method is not assigned to

"""Call an ASGI application without a server: with exactly the scope that a test needs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Answer:
    """An application's answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Recorder:
    """An application that records what reaches it, and answers."""

    status: int = 200
    body: bytes = b"{}"
    seen: list[tuple[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.kinds.append(scope["type"])
        if scope["type"] != "http":
            return
        self.seen.append((scope["method"], scope["path"]))
        self.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": self.body})


def ask(
    application: Any,
    method: str,
    path: str,
    body: Any = None,
    headers: Iterable[tuple[str, str]] = (),
    *,
    pieces: Iterable[bytes] | None = None,
    pause: float = 0.0,
    length: bool = True,
) -> Answer:
    """Send one request; a body that is not bytes is sent as JSON. ``pause``: before each piece."""
    whole = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    sent = list(pieces) if pieces is not None else [whole]
    fields = [(name.lower().encode(), value.encode()) for name, value in headers]
    if length and pieces is None and whole:
        fields.append((b"content-length", str(len(whole)).encode()))
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "scheme": "http",
        "headers": fields,
    }
    answered = Answer(0, {}, b"")

    async def run() -> None:
        left = iter(sent)
        rest = len(sent)

        async def receive() -> Any:
            nonlocal rest
            await asyncio.sleep(pause)
            if not rest:
                await asyncio.sleep(30)
                return {"type": "http.disconnect"}
            rest -= 1
            return {"type": "http.request", "body": next(left), "more_body": rest > 0}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                answered.status = message["status"]
                answered.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                answered.body += message.get("body", b"")

        await application(scope, receive, send)

    asyncio.run(run())
    return answered

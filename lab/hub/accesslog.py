"""One line of JSON per request, with the sent bytes: tests count traffic with it.

Implemented as plain ASGI around the application, which is also the place for injected faults.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TextIO

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class AccessLog:
    """Writes a line to ``log`` when a request has ended, in any way.

    Keys: ``time`` (UTC, its start), ``client`` (address), ``method``, ``path``, ``query``, ``range`` (as
    requested or null), ``status`` (null: no answer), ``part`` (the answer's Content-Range or null), ``bytes``
    (of the body, passed to the socket), ``seconds``, ``agent``, ``token`` (whether it had one), ``fault``
    (the injected fault, or null).
    """

    def __init__(self, app: ASGIApp, log: TextIO) -> None:
        self.app = app
        self.log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application for one request and log it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, clock = datetime.now(UTC), time.monotonic()
        status: int | None = None
        part: str | None = None
        sent = 0

        async def counted(message: Message) -> None:
            nonlocal status, part, sent
            await send(message)
            if message["type"] == "http.response.start":
                status = message["status"]
                part = Headers(raw=message["headers"]).get("content-range")
            elif message["type"] == "http.response.body":
                sent += len(message.get("body", b""))

        try:
            await self.app(scope, receive, counted)
        finally:
            headers = Headers(scope=scope)
            line = {
                "time": began.isoformat(timespec="milliseconds"),
                "client": (scope.get("client") or ("", 0))[0],
                "method": scope["method"],
                "path": scope["path"],
                "query": scope["query_string"].decode("latin-1"),
                "range": headers.get("range"),
                "status": status,
                "part": part,
                "bytes": sent,
                "seconds": round(time.monotonic() - clock, 4),
                "agent": headers.get("user-agent"),
                "token": "authorization" in headers,
                "fault": scope.get("lab.fault"),
            }
            self.log.write(json.dumps(line) + "\n")
            self.log.flush()

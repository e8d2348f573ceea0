"""Bounds for every answer of an endpoint under test: it may be hung, or somebody else's.

The clients' time limit counts from byte to byte: an answer that comes drop by drop, or a stream that never
ends, is never late by it, and nothing limits how much comes. Hooks of the HTTP library see to both.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any, Final

import httpx2

PATIENCE: Final = 4
"""Times ``--timeout`` that all of an answer may take: a stream goes on while tokens come."""
MOST_BYTES: Final = 64 << 20
"""Of one answer; the longest of the checks has some 100 KB."""


class _Body(httpx2.SyncByteStream):
    """The rest of an answer, counted."""

    def __init__(self, stream: Any, over: threading.Timer) -> None:
        self.stream, self.over = stream, over

    def __iter__(self) -> Iterator[bytes]:
        count = 0
        for block in self.stream:
            count += len(block)
            if count > MOST_BYTES:
                raise httpx2.ReadError(f"an answer of more than {MOST_BYTES >> 20} MiB")
            yield block

    def close(self) -> None:
        """Let go of it."""
        self.over.cancel()
        self.stream.close()


class Bounds:
    """The hooks of some clients, and whether an answer was cut off for coming too slowly."""

    def __init__(self, timeout: float) -> None:
        self.seconds = PATIENCE * timeout
        self.late = False

    def options(self) -> dict[str, Any]:
        """Options of a client: a connection for each request, so that it is known which one to end."""
        return {
            "event_hooks": {"request": [self._asked], "response": [self._answered]},
            "limits": httpx2.Limits(max_connections=None, max_keepalive_connections=0),
        }

    def _asked(self, request: httpx2.Request) -> None:
        wires: list[Any] = []

        def trace(event: str, about: Any) -> None:
            if event in {"connection.connect_tcp.complete", "connection.start_tls.complete"}:
                wires.append(about["return_value"])

        over = threading.Timer(self.seconds, self._cut, [wires])
        over.daemon = True
        over.start()
        request.extensions = {**request.extensions, "trace": trace, "over": over}
        request.headers["Accept-Encoding"] = "identity"

    def _answered(self, response: httpx2.Response) -> None:
        response.stream = _Body(response.stream, response.request.extensions["over"])
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            # A few bytes may be a gigabyte once they are unpacked.
            raise httpx2.DecodingError("a compressed answer, which nobody asked for")

    def _cut(self, wires: list[Any]) -> None:
        for wire in wires:
            sock = wire.get_extra_info("socket")
            if sock is None or sock.fileno() < 0:
                continue  # over, or wrapped into the next one
            self.late = True
            with contextlib.suppress(OSError):
                # Below TLS, whose own words would wait for the other side.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

"""Limits for every answer of an endpoint under test: it may hang, or be another server.

The clients' time limit restarts with every byte, so an answer that arrives drop by drop, or a stream that
never ends, never exceeds it, and nothing limits the size. Hooks of the HTTP library enforce both.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any, Final

import httpx2

PATIENCE: Final = 4
"""Multiple of ``--timeout`` for a whole answer: a stream continues while tokens arrive."""
MOST_BYTES: Final = 64 << 20
"""Maximum bytes of one answer; the longest of the checks has some 100 KB."""


class _Body(httpx2.SyncByteStream):
    """Counts the rest of an answer."""

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
        """Close it."""
        self.over.cancel()
        self.stream.close()


class Bounds:
    """The hooks of some clients, and whether an answer was cut off for being too slow."""

    def __init__(self, timeout: float) -> None:
        self.seconds = PATIENCE * timeout
        self.late = False

    def options(self) -> dict[str, Any]:
        """Return a client's options: one connection per request, so that the right one can be closed."""
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
            # A few bytes may be a gigabyte when unpacked.
            raise httpx2.DecodingError("a compressed answer, which was not requested")

    def _cut(self, wires: list[Any]) -> None:
        for wire in wires:
            sock = wire.get_extra_info("socket")
            if sock is None or sock.fileno() < 0:
                continue  # ended, or wrapped into the next one
            self.late = True
            with contextlib.suppress(OSError):
                # Below TLS, whose own shutdown would wait for the other side.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

"""Read a request's body within limits of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from .errors import Message, Receive, Refused

HELD_AT_ONCE = 16
"""How many bodies of the largest size all requests together may hold until the engine has taken them."""


class ClientGoneError(Exception):
    """The client disconnected before its request was complete."""


class Body:
    """One request's body, counted while it is held here."""

    def __init__(self, bodies: Bodies) -> None:
        self.bodies = bodies
        self.content = bytearray()
        self.counted = 0

    def add(self, piece: bytes) -> None:
        """Add another chunk."""
        self.content += piece
        self.counted += len(piece)
        self.bodies.held += len(piece)

    def release(self) -> None:
        """Release it; calling this again does no harm."""
        self.bodies.held -= self.counted
        self.counted = 0
        self.content = bytearray()


class Bodies:
    """All held bodies, with one limit of memory."""

    def __init__(self, most_bytes: int, seconds: float) -> None:
        self.most_bytes = most_bytes
        self.seconds = seconds
        self.held = 0

    async def read(self, headers: Iterable[tuple[bytes, bytes]], receive: Receive, body: Body) -> bytes:
        """Return a complete body, counted by ``body`` until that is released.

        Raises:
            Refused: too large (before it is read if it states so), too slow, or too many at once.
            ClientGoneError: the client has disconnected.
        """
        declared = [value for name, value in headers if name.lower() == b"content-length"]
        if any(not value.isdigit() or len(value) > 18 or int(value) > self.most_bytes for value in declared):
            raise self._too_large()
        try:
            return await asyncio.wait_for(self._whole(receive, body), self.seconds)
        except asyncio.TimeoutError:  # noqa: UP041  # another class than TimeoutError before Python 3.11
            raise Refused(
                408, f"the request did not arrive within {self.seconds:g} s (metal_request_seconds)"
            ) from None

    async def _whole(self, receive: Receive, body: Body) -> bytes:
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientGoneError
            body.add(message.get("body", b""))
            if len(body.content) > self.most_bytes:
                raise self._too_large()
            if self.held > HELD_AT_ONCE * self.most_bytes:
                raise Refused(503, "too many large requests at once; try again", retry=5)
            if not message.get("more_body"):
                return bytes(body.content)

    def _too_large(self) -> Refused:
        most = f"{self.most_bytes / 2**20:g} MiB"
        return Refused(413, f"the request is larger than {most}; send less, or raise metal_max_request_mib")


def again(content: bytes, receive: Receive, body: Body) -> Receive:
    """Return ``receive`` for an application behind one that has already read the body."""
    rest: list[bytes] = [content]

    async def receive_again() -> Message:
        if not rest:
            return await receive()
        given = rest.pop()
        body.release()
        return {"type": "http.request", "body": given, "more_body": False}

    return receive_again

"""Reading a request's body: so much and no more, in so much time and no more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from .errors import Message, Receive, Refused

HELD_AT_ONCE = 16
"""So many bodies of the largest size may be held by all requests together until the engine has taken them."""


class ClientGoneError(Exception):
    """Whoever sent a request has left before it was whole."""


class Body:
    """One request's body, counted while it is held here."""

    def __init__(self, bodies: Bodies) -> None:
        self.bodies = bodies
        self.content = bytearray()
        self.counted = 0

    def add(self, piece: bytes) -> None:
        """Hold another piece."""
        self.content += piece
        self.counted += len(piece)
        self.bodies.held += len(piece)

    def release(self) -> None:
        """Let go of it; more than once does no harm."""
        self.bodies.held -= self.counted
        self.counted = 0
        self.content = bytearray()


class Bodies:
    """All bodies that are held, against one bound of memory."""

    def __init__(self, most_bytes: int, seconds: float) -> None:
        self.most_bytes = most_bytes
        self.seconds = seconds
        self.held = 0

    async def read(self, headers: Iterable[tuple[bytes, bytes]], receive: Receive, body: Body) -> bytes:
        """Return a whole body, counted by ``body`` until that is released.

        Raises:
            Refused: too large (before it is read where it says so), too slow, or too many at once.
            ClientGoneError: nobody waits for an answer any more.
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
    """``receive`` for an application behind one that has read the body already."""
    rest: list[bytes] = [content]

    async def receive_again() -> Message:
        if not rest:
            return await receive()
        given = rest.pop()
        body.release()
        return {"type": "http.request", "body": given, "more_body": False}

    return receive_again

"""Asking another host of the fleet: its log, and pieces of files.

Every request is signed for its path, for a few minutes, and for the address it comes from; the secret itself
is never sent. ``http.client`` rather than ``requests``: pieces go straight into memory that is used again,
and no proxy of the environment gets between two hosts of a fleet.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import quote

from minimax_metal.artefacts.share.settings import Peer

LIFE: Final = 300
"""Seconds for which a signature is good."""
CONNECT: Final = 5.0
BLOCK: Final = 1 << 20


class PeerError(Exception):
    """A host did not answer, or not with what was asked for; the text is one line."""


class BusyError(PeerError):
    """It has its hands full."""


class AbsentError(PeerError):
    """It does not have that (any more)."""


class DeniedError(PeerError):
    """It does not take this host for one of its fleet."""


def signature(secret: str, expires: int, path: str, address: str) -> str:
    """Return what proves to a host's nginx that whoever asks knows the secret (its ``secure_link_md5``).

    MD5 because nginx knows no other; with the secret on both sides of what is signed, collisions of MD5 help
    nobody.
    """
    text = f"{secret} {expires} {path} {address} {secret}"
    digest = hashlib.md5(text.encode(), usedforsecurity=False).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


@dataclass(frozen=True, slots=True)
class Answer:
    """Part of a file: where it begins, its bytes, and how old the file was by the peer's own clock."""

    begin: int
    content: bytes
    age: float


@dataclass
class Line:
    """A connection to one host, kept open; for one thread.

    Args:
        peer: the host.
        secret: the fleet's.
        stall: seconds without a byte after which the connection is dropped.
    """

    peer: Peer
    secret: str
    stall: float = 15.0
    skew: float = 0.0
    """Seconds that the host's clock is ahead of this one's."""
    connection: http.client.HTTPConnection | None = None
    memory: memoryview = field(default_factory=lambda: memoryview(bytearray(BLOCK)), repr=False)

    def close(self) -> None:
        """Drop the connection."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def get(self, path: str, begin: int = 0, limit: int = 64 << 20) -> Answer:
        """Return a small file from an offset on.

        Raises:
            PeerError: it can't be had.
        """
        try:
            answer = self._ask(path, f"bytes={begin}-")
            content = answer.read(limit)
            first = begin if answer.status == 206 else 0
            if not answer.isclosed():
                self.close()
            return Answer(first, content, _age(answer))
        except (OSError, http.client.HTTPException) as error:
            raise self._failure(error) from error

    def take(self, path: str, begin: int, end: int, put: Callable[[memoryview], None]) -> None:
        """Receive the bytes of a file from ``begin`` up to ``end`` and pass them on as they come.

        Raises:
            PeerError: it ended too early, or can't be had.
        """
        try:
            answer = self._ask(path, f"bytes={begin}-{end - 1}")
            if answer.status != 206 or answer.length != end - begin:
                self.close()
                raise AbsentError(f"{self.peer.name} answered with another part of the file than asked for")
            left = end - begin
            while left:
                size = answer.readinto(self.memory[: min(left, BLOCK)])
                if not size:
                    raise PeerError(f"{self.peer.name} ended the connection")
                put(self.memory[:size])
                left -= size
            answer.read()  # nothing is left; frees the connection for the next
        except (OSError, http.client.HTTPException) as error:
            raise self._failure(error) from error
        except BaseException:
            self.close()
            raise

    def _ask(self, path: str, part: str) -> http.client.HTTPResponse:
        """Send a request; once more when the kept connection was closed, or the clocks differ."""
        for attempt in range(3):
            kept = self.connection is not None
            if self.connection is None:
                self.connection = self._connect()
            try:
                answer = self._send(self.connection, path, part)
            except (http.client.RemoteDisconnected, ConnectionError, http.client.CannotSendRequest):
                self.close()
                if not kept:
                    raise
                continue
            if answer.status in {200, 206}:
                return answer
            date = answer.headers.get("Date")
            answer.read(1 << 16)
            if not answer.isclosed():
                self.close()
            if answer.status == 410 and date and attempt < 2:
                self.skew = parsedate_to_datetime(date).timestamp() - time.time()
                continue
            raise _refusal(self.peer.name, answer.status)
        raise PeerError(f"{self.peer.name} drops its connections")

    def _connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self.peer.address, self.peer.port, timeout=CONNECT)
        connection.connect()
        connection.sock.settimeout(self.stall)
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _send(self, connection: http.client.HTTPConnection, path: str, part: str) -> http.client.HTTPResponse:
        expires = int(time.time() + self.skew) + LIFE
        address = str(connection.sock.getsockname()[0])
        headers = {
            "Range": part,
            "X-Share-Expires": str(expires),
            "X-Share-Signature": signature(self.secret, expires, path, address),
        }
        connection.request("GET", quote(path), headers=headers)
        return connection.getresponse()

    def _failure(self, error: BaseException) -> PeerError:
        self.close()
        if isinstance(error, PeerError):
            return error
        if isinstance(error, TimeoutError):
            return PeerError(f"{self.peer.name}: not one byte in {self.stall:g} s")
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return PeerError(f"{self.peer.name}: {text}")


def _refusal(name: str, status: int) -> PeerError:
    if status in {429, 503}:
        return BusyError(f"{name} is busy")
    if status in {404, 416}:
        return AbsentError(f"{name} does not have it")
    if status in {401, 403, 410}:
        return DeniedError(
            f"{name} does not take this host for one of its fleet (answer {status}); run the play on both, "
            "or add this host's network to model_weights_share_allow"
        )
    return PeerError(f"{name} answered {status}")


def _age(answer: http.client.HTTPResponse) -> float:
    """Return how long ago a file was changed, by the clock of the host that serves it."""
    try:
        changed = parsedate_to_datetime(answer.headers["Last-Modified"])
        return (parsedate_to_datetime(answer.headers["Date"]) - changed).total_seconds()
    except (KeyError, TypeError, ValueError):
        return 0.0

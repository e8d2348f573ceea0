"""One question over HTTP to a host of the fleet, with one deadline for all of it. Standard library alone.

A time limit of a socket counts from byte to byte: an answer that comes drop by drop, its headers too, is
never late by it. Here every wait gets what is left of the whole. No redirect is followed (whoever took an
engine's port would lead a program of root's to any address), no proxy of the environment is asked.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit


def fetch(
    url: str,
    *,
    seconds: float,
    limit: int,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    context: ssl.SSLContext | None = None,
) -> tuple[int, bytes]:
    """Return status and body of the answer to a GET, or to a POST of ``body``.

    Args:
        url: http or https.
        seconds: for all of it, from the connection to the last byte.
        limit: bytes that are read of the body at most; the rest is left.
        headers: sent with it.
        context: for https; the system's certificates by default.

    Raises:
        OSError: nothing answered as HTTP does, or not in time (``TimeoutError``); ``ConnectionRefusedError``
            where nobody listens.
    """
    until = time.monotonic() + seconds
    try:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"not an http(s) URL: {url}")
        host, port = parts.hostname, parts.port or (443 if secure else 80)
        connection = http.client.HTTPConnection(host, port)
        wire = socket.create_connection((host, port), timeout=_rest(until))
        try:
            if secure:
                wire = (context or ssl.create_default_context()).wrap_socket(wire, server_hostname=host)
            connection.sock = _Wire(wire, until)  # all that http.client uses of a socket
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            method = "GET" if body is None else "POST"
            connection.request(method, target, body, {"Connection": "close", **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.read(limit)
        finally:
            wire.close()
    except http.client.HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from None
    except (ValueError, ArithmeticError, LookupError) as error:
        raise OSError(f"no answer of HTTP: {error}") from None


def _rest(until: float) -> float:
    """Seconds that are left.

    Raises:
        TimeoutError: none.
    """
    rest = until - time.monotonic()
    if rest <= 0:
        raise TimeoutError("not there in time")
    return rest


class Timed(io.RawIOBase):
    """Reads from a socket until a moment, not for so long each time."""

    def __init__(self, wire: socket.socket, until: float) -> None:
        self.wire, self.until = wire, until

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what is there; ``TimeoutError`` after the moment."""
        self.wire.settimeout(_rest(self.until))
        return self.wire.recv_into(buffer)


class _Wire:
    """A socket as far as ``http.client`` uses one."""

    def __init__(self, wire: socket.socket, until: float) -> None:
        self.wire, self.until = wire, until

    def makefile(self, *_: object, **__: object) -> io.BufferedReader:
        return io.BufferedReader(Timed(self.wire, self.until))

    def sendall(self, data: Any) -> None:
        self.wire.settimeout(_rest(self.until))
        self.wire.sendall(data)

    def close(self) -> None:
        """Nothing: ``http.client`` closes its end before it reads the answer; :func:`fetch` closes."""

"""One HTTP request to a host of the fleet, with a single deadline. Standard library only.

A socket's time limit restarts with every byte, so an answer that arrives drop by drop never exceeds it. Here
every wait gets the remaining time. Redirects are not followed (a program that took over an engine's port
would otherwise send a program of root's to any address), and the environment's proxies are not used.
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
        seconds: total time limit, from connecting to the last byte.
        limit: maximum bytes of the body; the rest is not read.
        headers: sent with the request.
        context: for https; the system's certificates by default.

    Raises:
        OSError: no HTTP answer, or not in time (``TimeoutError``); ``ConnectionRefusedError`` if nothing
            listens.
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
            connection.sock = _Wire(wire, until)  # the only method that http.client uses of a socket
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
    """Return the remaining seconds.

    Raises:
        TimeoutError: there are none.
    """
    rest = until - time.monotonic()
    if rest <= 0:
        raise TimeoutError("not there in time")
    return rest


class Timed(io.RawIOBase):
    """Reads from a socket until a deadline, not for a time limit per read."""

    def __init__(self, wire: socket.socket, until: float) -> None:
        self.wire, self.until = wire, until

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read available bytes; ``TimeoutError`` after the deadline."""
        self.wire.settimeout(_rest(self.until))
        return self.wire.recv_into(buffer)


class _Wire:
    """The part of a socket that ``http.client`` uses."""

    def __init__(self, wire: socket.socket, until: float) -> None:
        self.wire, self.until = wire, until

    def makefile(self, *_: object, **__: object) -> io.BufferedReader:
        return io.BufferedReader(Timed(self.wire, self.until))

    def sendall(self, data: Any) -> None:
        self.wire.settimeout(_rest(self.until))
        self.wire.sendall(data)

    def close(self) -> None:
        """Do nothing: ``http.client`` closes its end before it reads the answer; :func:`fetch` closes it."""

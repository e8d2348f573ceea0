"""Requests to another host of the fleet: its log, and pieces of files.

Every request is signed for its path, for a few minutes, and for its source address; the secret itself is
never sent. ``http.client`` instead of ``requests``: pieces go directly into reused memory, and no proxy of
the environment gets between two hosts of a fleet.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import quote

from minimax_metal.common.text import one_line
from minimax_metal.host.weights.share_keys import name_of
from minimax_metal.host.weights.share_settings import Peer

LIFE: Final = 300
"""Seconds for which a signature is valid."""
SKEW: Final = 900.0
"""Maximum seconds between a host's clock and this one's. A host's time is not proved: a server in its place
must not obtain requests that are still valid tomorrow.
"""
CONNECT: Final = 5.0
DOCUMENT_SECONDS: Final = 20.0
"""Time limit for a log, a listing or a manifest, however slowly its bytes arrive."""
LEAST_RATE: Final = 256 << 10
"""Bytes per second below which a piece is taken from another host: a 400th of a 1 Gbit/s line."""
LEAST_SECONDS: Final = 30.0
"""Minimum time for any piece."""
BLOCK: Final = 1 << 20


class PeerError(Exception):
    """A host did not answer, or not as requested; the text is one line."""


class BusyError(PeerError):
    """It is busy."""


class AbsentError(PeerError):
    """It does not (or no longer) have it."""


class DeniedError(PeerError):
    """It does not accept this host as part of its fleet."""


def signature(secret: str, expires: int, path: str, address: str) -> str:
    """Return the proof for a host's nginx that the client knows the secret (its ``secure_link_md5``).

    MD5 because nginx supports no other; with the secret on both sides of the signed data, collisions of MD5
    help nobody.
    """
    text = f"{secret} {expires} {path} {address} {secret}"
    digest = hashlib.md5(text.encode(), usedforsecurity=False).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


@dataclass(frozen=True, slots=True)
class Answer:
    """Part of a file: its start, its bytes, and the peer's time, as reported."""

    begin: int
    content: bytes
    date: float


class Deadlines:
    """Closes connections whose answer does not arrive in time; one thread for all of a process.

    A socket's time limit restarts with every byte: a server that sends one every few seconds never exceeds
    it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until: dict[Line, tuple[float, float]] = {}
        self._thread: threading.Thread | None = None

    @contextmanager
    def over(self, line: Line, seconds: float) -> Iterator[None]:
        """Close a connection if the block takes longer."""
        with self._lock:
            line.late = None
            self._until[line] = (time.monotonic() + seconds, seconds)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="deadlines", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._until.pop(line, None)

    def _watch(self) -> None:
        while True:
            time.sleep(0.5)
            with self._lock:
                now = time.monotonic()
                late = [(line, seconds) for line, (until, seconds) in self._until.items() if now > until]
                for line, seconds in late:
                    del self._until[line]
                    line.cut(seconds)


DEADLINES: Final = Deadlines()


@dataclass(eq=False)
class Line:
    """A kept-alive connection to one host; for one thread.

    Args:
        peer: the host.
        secrets: the fleet's, the current one first (:mod:`.keys`).
        stall: seconds without a byte after which the connection is dropped.
    """

    peer: Peer
    secrets: Sequence[str] = field(repr=False)
    stall: float = 15.0
    skew: float = 0.0
    """Seconds that the host's clock is ahead of this one's."""
    key: int = 0
    """Which of the secrets signs this host's requests; the peer may not know the newest yet."""
    connection: http.client.HTTPConnection | None = None
    wire: socket.socket | None = None
    late: float | None = None
    """Seconds after which the connection was closed because an answer had not arrived."""
    memory: memoryview = field(default_factory=lambda: memoryview(bytearray(BLOCK)), repr=False)

    def close(self) -> None:
        """Drop the connection."""
        if self.connection is not None:
            self.connection.close()
            self.connection = self.wire = None

    def cut(self, seconds: float) -> None:
        """End the wait of the connection's thread; called from another thread."""
        self.late, found = seconds, self.wire
        if found is not None:
            with suppress(OSError):
                found.shutdown(socket.SHUT_RDWR)

    def get(self, path: str, begin: int = 0, limit: int = 64 << 20) -> Answer:
        """Return a small file from an offset on, at most ``limit`` bytes of it.

        Raises:
            PeerError: it is not available, is larger, or did not arrive in :data:`DOCUMENT_SECONDS`.
        """
        try:
            with DEADLINES.over(self, DOCUMENT_SECONDS):
                answer = self._ask(path, f"bytes={begin}-")
                content = answer.read(limit + 1)
                first = begin if answer.status == 206 else 0
                if not answer.isclosed():
                    self.close()
                if len(content) > limit:
                    raise PeerError(f"{self.peer.name} sends more than {limit} bytes")
                if answer.length or self.late is not None:
                    raise http.client.IncompleteRead(content)
                return Answer(first, content, _date(answer))
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise self._failure(error) from error

    def take(
        self,
        path: str,
        begin: int,
        end: int,
        put: Callable[[memoryview], None],
        seconds: float | None = None,
    ) -> None:
        """Receive the bytes of a file from ``begin`` up to ``end`` and pass them on as they arrive.

        Args:
            path: the file.
            begin, end: offsets.
            put: called with the bytes.
            seconds: time limit; by default what :data:`LEAST_RATE` allows.

        Raises:
            PeerError: it ended too early, arrived too slowly, or is not available.
        """
        if seconds is None:
            seconds = max(LEAST_SECONDS, (end - begin) / LEAST_RATE)
        try:
            with DEADLINES.over(self, seconds):
                answer = self._ask(path, f"bytes={begin}-{end - 1}")
                if answer.status != 206 or answer.length != end - begin:
                    self.close()
                    raise AbsentError(
                        f"{self.peer.name} answered with another part of the file than requested"
                    )
                left = end - begin
                while left:
                    size = answer.readinto(self.memory[: min(left, BLOCK)])
                    if not size:
                        raise PeerError(f"{self.peer.name} ended the connection")
                    put(self.memory[:size])
                    left -= size
                answer.read()  # nothing is left; frees the connection for the next request
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise self._failure(error) from error
        except BaseException as error:
            late = self.late is not None
            self.close()
            if late and isinstance(error, PeerError):
                raise self._failure(error) from error
            raise

    def _ask(self, path: str, part: str) -> http.client.HTTPResponse:
        """Send a request; once more if the kept connection was closed, or the clocks differ."""
        for attempt in range(3 + len(self.secrets)):
            if self.wire is not None and self.connection is not None and self.connection.sock is None:
                self.close()  # the peer closed it with its last answer
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
            answer.read(1 << 14)
            if not answer.isclosed():
                self.close()
            if answer.status == 410 and date and attempt < 2:
                self.skew = self._bounded(_time_of(date) - time.time())
                continue
            if answer.status == 403 and self.key + 1 < len(self.secrets):
                self.key += 1
                continue
            self.key = 0
            raise _refusal(self.peer.name, answer.status)
        raise PeerError(f"{self.peer.name} drops its connections")

    def _bounded(self, skew: float) -> float:
        if abs(skew) > SKEW:
            raise DeniedError(
                f"{self.peer.name} reports a clock {abs(skew):.0f} s "
                f"{'ahead of' if skew > 0 else 'behind'} this host's; at most {SKEW:.0f} s are "
                "allowed: set the clocks of both (chronyc tracking)"
            )
        return skew

    def _connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self.peer.address, self.peer.port, timeout=CONNECT)
        connection.connect()
        self.wire = connection.sock
        connection.sock.settimeout(self.stall)
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _send(self, connection: http.client.HTTPConnection, path: str, part: str) -> http.client.HTTPResponse:
        expires = int(time.time() + self.skew) + LIFE
        address = str(connection.sock.getsockname()[0])
        headers = {
            "Range": part,
            "X-Share-Key": name_of(self.secrets[self.key]),
            "X-Share-Expires": str(expires),
            "X-Share-Signature": signature(self.secrets[self.key], expires, path, address),
        }
        connection.request("GET", quote(path), headers=headers)
        return connection.getresponse()

    def _failure(self, error: BaseException) -> PeerError:
        self.close()
        late, self.late = self.late, None
        if late is not None:
            return PeerError(f"{self.peer.name}: no answer after {late:.0f} s")
        if isinstance(error, PeerError):
            return error
        if isinstance(error, TimeoutError):
            return PeerError(f"{self.peer.name}: no data for {self.stall:g} s")
        # Parts of it come from the other host.
        text = one_line(getattr(error, "strerror", None) or str(error) or type(error).__name__, 200)
        return PeerError(f"{self.peer.name}: {text}")


def _refusal(name: str, status: int) -> PeerError:
    if status in {429, 503}:
        return BusyError(f"{name} is busy")
    if status in {404, 416}:
        return AbsentError(f"{name} does not have it")
    if status in {401, 403, 410}:
        return DeniedError(
            f"{name} does not accept this host as part of its fleet (answer {status}); run the play "
            "on both, or add this host's network to model_weights_share_allow"
        )
    return PeerError(f"{name} answered {status}")


def _time_of(date: str | None) -> float:
    """Return a ``Date`` header as seconds since 1970.

    Raises:
        ValueError: it is invalid; Python's parser raises OverflowError and TypeError for some.
    """
    try:
        return parsedate_to_datetime((date or "")[:100]).timestamp()
    except (TypeError, ArithmeticError) as error:
        raise ValueError(f"not a date: {date!r:.100}") from error


def _date(answer: http.client.HTTPResponse) -> float:
    """Return the peer's time, as reported; this host's if it reports none that is possible."""
    now = time.time()
    try:
        date = _time_of(answer.headers["Date"])
    except (KeyError, ValueError):
        return now
    return date if abs(date - now) <= SKEW else now

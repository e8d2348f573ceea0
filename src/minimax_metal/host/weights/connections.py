"""Connections that check the reached address, and that don't wait forever for the headers of an answer."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import urllib3
from requests.adapters import HTTPAdapter

_rules = threading.local()
HEADER_SECONDS: Final = 60.0


@contextlib.contextmanager
def rules(reached: Callable[[str], None], seconds: float) -> Iterator[None]:
    """Apply rules to this thread's requests meanwhile.

    Args:
        reached: called with the IP address of every new direct connection, before a byte is sent; an
            exception from it ends the request.
        seconds: maximum time from the request to the end of the answer's headers.
    """
    _rules.reached, _rules.seconds = reached, seconds
    try:
        yield
    finally:
        _rules.reached = None


@contextlib.contextmanager
def ended_after(seconds: float) -> Iterator[threading.Event]:
    """Close the connection of this thread's last request if the block takes longer.

    A socket's own time limit restarts with every byte. Yields an event that is set if it was closed.
    """
    made: socket.socket | None = getattr(_rules, "made", None)
    late = threading.Event()

    def end() -> None:
        late.set()
        with contextlib.suppress(OSError):
            if made is not None:
                # Of the socket itself: TLS must not be involved, and its object is not made for two threads.
                socket.socket.shutdown(made, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def _look(connection: Any, made: socket.socket) -> socket.socket:
    reached = getattr(_rules, "reached", None)
    if reached is not None and connection.proxy is None:
        try:
            reached(str(made.getpeername()[0]))
        except BaseException:
            made.close()
            raise
    return made


class _Watched:
    """Closes a connection whose headers don't arrive in time: for a socket, a byte per minute is no stall."""

    def getresponse(self) -> Any:
        _rules.made = self.sock  # type: ignore[attr-defined]  # of the connection class beside it
        with ended_after(getattr(_rules, "seconds", HEADER_SECONDS)) as late:
            try:
                found = super().getresponse()  # type: ignore[misc]
            except Exception as error:
                if late.is_set():
                    raise OSError(errno.ETIMEDOUT, "the answer's headers did not end") from error
                raise
        if late.is_set():  # the headers were cut, and parsed as if they had ended there
            raise OSError(errno.ETIMEDOUT, "the answer's headers did not end")
        return found


class _Plain(_Watched, urllib3.connection.HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _look(self, super()._new_conn())


class _Secure(_Watched, urllib3.connection.HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _look(self, super()._new_conn())


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Secure


class Adapter(HTTPAdapter):
    """Creates such connections for a session of requests."""

    def init_poolmanager(self, *arguments: Any, **more: Any) -> None:
        """Make the pools of direct connections."""
        super().init_poolmanager(*arguments, **more)
        self.poolmanager.pool_classes_by_scheme = {"http": _PlainPool, "https": _SecurePool}

    def proxy_manager_for(self, proxy: str, **more: Any) -> Any:
        """Return the pools of connections through a proxy."""
        manager = super().proxy_manager_for(proxy, **more)
        manager.pool_classes_by_scheme = {"http": _PlainPool, "https": _SecurePool}
        return manager

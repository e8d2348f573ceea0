"""One deadline for a whole answer, no redirect, no proxy: requests to engines and gateways."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from minimax_metal.common.web import fetch
from minimax_metal.host.engine import health
from minimax_metal.host.gateway import client as gateway_client

DROPS = {
    "status": (b"", b"x"),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"x"),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "no end": (b"HTTP/1.1 200 OK\r\n\r\n", b" "),
}


@contextlib.contextmanager
def at_a_port(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that answers each connection in any way."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    connection.recv(65536)
                    answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/x?y=z"
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("name", DROPS)
def test_an_answer_drop_by_drop_ends_at_the_deadline(name: str) -> None:
    head, drop = DROPS[name]

    def answer(connection: socket.socket) -> None:
        connection.sendall(head)
        for _ in range(100):
            connection.sendall(drop)
            time.sleep(0.05)

    with at_a_port(answer) as url:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            fetch(url, seconds=0.5, limit=1 << 20)
        assert time.monotonic() - began < 2
        # What the supervisor, `metal status` and gateways ask by.
        assert health.ask(url, 0.5) == ("no answer", "")
        with pytest.raises(TimeoutError):
            gateway_client.Web("a-key-of-clients", None).get(url, seconds=0.5)
        assert time.monotonic() - began < 4


def test_no_redirect_is_followed_and_no_key_goes_on() -> None:
    asked = []

    def elsewhere(connection: socket.socket) -> None:
        asked.append(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with at_a_port(elsewhere) as target:
        head = f"HTTP/1.1 307 Moved\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()
        with at_a_port(lambda connection: connection.sendall(head)) as url:
            assert fetch(url, seconds=5, limit=10, headers={"Authorization": "Bearer x"}) == (307, b"")
            assert health.ask(url, 5) == ("307", "")
            assert gateway_client.Web("a-key-of-clients", None).get(url)[0] == 307
        assert asked == []
        assert fetch(target, seconds=5, limit=1) == (200, b"o")
        assert fetch(target, seconds=5, limit=9, body=b"{}") == (200, b"ok")


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\x00" * 10,
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 9999999999 x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 5000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    ],
)
def test_what_is_no_http_is_an_oserror_or_an_answer(head: bytes) -> None:
    with at_a_port(lambda connection: connection.sendall(head)) as url, contextlib.suppress(OSError):
        assert fetch(url, seconds=2, limit=100)[1] == b""
    for wrong in ("ftp://a/x", "http://", "http://a:b/", "http://[/", "file:///etc/passwd"):
        with pytest.raises(OSError, match="no answer of HTTP"):
            fetch(wrong, seconds=1, limit=1)

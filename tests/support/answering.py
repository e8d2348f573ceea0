"""A small HTTP server on loopback that answers by a function: for answers that no framework produces."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Asked:
    """A request: method, path with its query, and headers by lower-case name."""

    method: str
    path: str
    headers: dict[str, str]

    def span(self, size: int) -> tuple[int, int] | None:
        """Return first byte and end of the requested range; None: everything."""
        wanted = self.headers.get("range")
        if wanted is None:
            return None
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        return int(first), min(int(last) + 1, size) if last else size


@dataclass(frozen=True)
class Answer:
    """A response: ``raw`` in place of everything else, or status, headers and body.

    ``Content-Length`` is added if the headers have neither it nor ``Transfer-Encoding``.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    raw: bytes | None = None


@dataclass
class Served:
    """A running server and its requests."""

    url: str
    asked: list[Asked]


@contextmanager
def answering(answer: Callable[[Asked], Answer], host: str = "127.0.0.1") -> Iterator[Served]:
    """Run a server that answers every request with ``answer``."""
    asked: list[Asked] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def _answer(self) -> None:
            one = Asked(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
            asked.append(one)
            found = answer(one)
            if found.raw is not None:
                self.wfile.write(found.raw)
                self.close_connection = True
                return
            self.send_response(found.status)
            for name, value in found.headers.items():
                self.send_header(name, value)
            if not {"content-length", "transfer-encoding"} & {name.lower() for name in found.headers}:
                self.send_header("Content-Length", str(len(found.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(found.body)

        do_GET = _answer  # noqa: N815  the library's names
        do_HEAD = _answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that disconnects halfway is not reported here."""

    server = Server((host, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield Served(f"http://{host}:{server.server_port}", asked)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

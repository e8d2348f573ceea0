"""An origin for caches and bundles: an HTTP server on loopback that counts, redirects, and can stop."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Origin:
    """Its contents (path to content, or to a redirect), and its requests."""

    files: dict[str, bytes | str] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Path and range of each request."""
    sent: int = 0
    refuse: int = 0
    """How many of the next requests get a 503."""
    cut_after: int | None = None
    """The next answer ends after this many bytes."""
    url: str = ""
    forms: list[str] = field(default_factory=list)
    """The Accept header of each request."""


def _handler(origin: Origin) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            origin.asked.append((self.path, wanted))
            origin.forms.append(self.headers.get("Accept", ""))
            content = origin.files.get(self.path)
            if origin.refuse > 0:
                origin.refuse -= 1
                self._send(503, b"busy")
            elif content is None:
                self._send(404, b"nothing here")
            elif isinstance(content, str):
                self._send(302, b"", {"Location": content})
            elif wanted:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start, end = int(first), min(int(last or len(content)), len(content) - 1)
                if start >= len(content):
                    self._send(416, b"")
                    return
                part = content[start : end + 1]
                self._send(206, part, {"Content-Range": f"bytes {start}-{end}/{len(content)}"})
            else:
                self._send(200, content)

        def _send(self, status: int, body: bytes, more: dict[str, str] | None = None) -> None:
            self.send_response(status)
            kind = origin.types.get(self.path, "application/octet-stream")
            headers = {"Content-Length": str(len(body)), "Content-Type": kind, "ETag": '"1"'}
            for name, value in (headers | (more or {})).items():
                self.send_header(name, value)
            self.end_headers()
            if origin.cut_after is not None and status in {200, 206}:
                self.wfile.write(body[: origin.cut_after])
                origin.cut_after = None
                self.close_connection = True
                return
            self.wfile.write(body)
            if status in {200, 206}:
                origin.sent += len(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@contextmanager
def running(origin: Origin) -> Iterator[Origin]:
    """Serve it on a loopback port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(origin)) as server:
        origin.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield origin
        finally:
            server.shutdown()
            thread.join()

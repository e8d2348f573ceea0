"""An endpoint that answers slowly, endlessly or with a bomb: the check ends, and reports it."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from minimax_metal.host.check import bounds
from minimax_metal.host.check.context import Context
from minimax_metal.host.check.endpoint import Endpoint
from minimax_metal.host.check.suite import IN_TIME, run

CHUNK = b"data: " + json.dumps(
    {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m",
     "choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]}
).encode() + b"\n\n"  # fmt: skip


@contextmanager
def endpoint(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[Endpoint]:
    """An endpoint that lists its model and answers questions in any way."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.close_connection = True
            with suppress(OSError):
                answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = Endpoint(f"http://127.0.0.1:{server.server_port}", "m", None, 0.5)
        yield found
        found.close()
        server.shutdown()


def dripping(head: bytes, drop: bytes, times: int = 200) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(head)
        for _ in range(times):
            handler.wfile.write(drop)
            handler.wfile.flush()
            time.sleep(0.05)

    return answer


CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n"
DROPS = {
    "headers": (b"HTTP/1.1 200 OK\r\n", b"x"),
    "body": (CHUNKED % b"application/json", b"1\r\n \r\n"),
    "tokens": (CHUNKED % b"text/event-stream", b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK)),
}


@pytest.mark.parametrize("name", DROPS)
def test_an_answer_without_end_ends_the_check(name: str) -> None:
    check = "stream" if name == "tokens" else "chat"
    with endpoint(dripping(*DROPS[name])) as one:
        began = time.monotonic()
        (result,) = [found for found in run(Context(one), only=[check]).results if found.name == check]
        assert time.monotonic() - began < 8
    assert (result.status, result.expected) == ("failed", IN_TIME)


def test_more_than_any_answer_has_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MOST_BYTES", 1 << 20)
    block = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    packed = gzip.compress(b" " * (8 << 20))
    bomb = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    for head, drop in ((CHUNKED % b"application/json", block), (bomb, packed)):
        with endpoint(dripping(head, drop, 1 if head is bomb else 200)) as one:
            (result,) = [found for found in run(Context(one), only=["chat"]).results if found.name == "chat"]
        assert result.status == "failed"
        assert "more than 1 MiB" in str(result.got) or "compressed" in str(result.got)

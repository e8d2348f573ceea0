"""The guard behind a real server: input from the network, byte by byte."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from minimax_metal.host.engine_plugin.minimax_metal_engine import Guard, Settings
from tests.support.asgi_client import Recorder

USER, ADMIN = "0key-for-clients", "0key-for-managers"


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[int, Recorder]]:
    engine = Recorder()
    settings = Settings(user_key=USER, admin_key=ADMIN, max_request_bytes=2**20, request_seconds=0.5)
    config = uvicorn.Config(Guard(engine, None, settings), port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield server.servers[0].sockets[0].getsockname()[1], engine
    server.should_exit = True
    thread.join(10)


def status(port: int, head: str, body: bytes = b"", *, slowly: bool = False) -> int:
    """Send raw bytes; return the status of the answer, 0 if only the connection ends."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as made:
        made.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n")
        try:
            for start in range(0, len(body), 2**16):
                made.sendall(body[start : start + 2**16])
                time.sleep(1 if slowly else 0)
            answer = made.recv(4096)
        except ConnectionError:
            return 0
    return int(answer.split(b" ", 2)[1]) if answer else 0


TARGETS = {
    "/pause_generation": 401,
    "/pause%5fgeneration": 401,
    "/%70ause_generation": 401,
    "/pause_generation?x=/v1/models": 401,
    "/pause_generation%3fx": 404,
    "/pause_generation%2f": 404,
    "/pause_generation%00": 404,
    "/pause_generation;x=1": 404,
    "//pause_generation": 404,
    "/v1/models/../../pause_generation": 405,  # a model of that name, which only GET asks for
    "/health/%2e%2e/pause_generation": 404,
    "/Pause_Generation": 404,
    "/v1/chat/completions": 200,
    "/v1/chat/completion%73": 200,
    "/v1/chat/completions/": 404,
    "http://127.0.0.1/pause_generation": 401,
}


@pytest.mark.parametrize("target", TARGETS)
def test_however_a_path_is_written_its_class_stays(served: tuple[int, Recorder], target: str) -> None:
    port, engine = served
    before = len(engine.seen)
    head = f"POST {target} HTTP/1.1\nHost: x\nAuthorization: Bearer {USER}\nContent-Length: 2"
    found = status(port, head, b"{}")
    # Of a whole URL uvicorn takes the path, or all of it, by the parser that it was installed with.
    assert found in ({401, 404} if target.startswith("http") else {TARGETS[target]})
    assert (len(engine.seen) > before) == (found == 200)


def test_an_upgrade_opens_nothing(served: tuple[int, Recorder]) -> None:
    port, engine = served
    before = len(engine.kinds)
    head = (
        "GET /v1/realtime HTTP/1.1\nHost: x\nUpgrade: websocket\nConnection: Upgrade\n"
        "Sec-WebSocket-Version: 13\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n"
        f"Authorization: Bearer {USER}"
    )
    assert status(port, head) in {400, 403, 404}
    assert len(engine.kinds) == before


def test_bodies_without_end_and_without_haste_end(served: tuple[int, Recorder]) -> None:
    port, engine = served
    before = len(engine.seen)
    head = f"POST /v1/completions HTTP/1.1\nHost: x\nAuthorization: Bearer {USER}\n"
    assert status(port, head + "Content-Length: 300000000", b"x" * 2**21) in {0, 413}
    chunk = b"10000\r\n" + b"x" * 2**16 + b"\r\n"
    assert status(port, head + "Transfer-Encoding: chunked", chunk * 40) in {0, 413}
    assert status(port, head + "Content-Length: 1000", b"{" * 200, slowly=True) in {0, 408}
    # Without the key nothing is read at all.
    assert status(port, "POST /v1/completions HTTP/1.1\nHost: x\nContent-Length: 300000000") == 401
    assert len(engine.seen) == before

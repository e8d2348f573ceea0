"""The module metal_page, run by Ansible: a page, and servers that never end."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/page":
            body = self.headers["Accept"].encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        elif self.path == "/missing":
            self.send_error(404)
        else:
            self.send_response(200)
            self.end_headers()
            block = b"x" * (1 << 20 if self.path == "/endless" else 1)
            try:
                while True:
                    self.wfile.write(block)
                    time.sleep(0 if self.path == "/endless" else 0.2)
            except OSError:
                pass

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ask(url: str, **more: Any) -> dict[str, Any]:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ansible")), "localhost", "-c", "local", "-i", "localhost,", "-o",
         "-m", "metal_page", "-a", json.dumps({"url": url, **more})],
        check=False, capture_output=True, text=True, cwd=REPOSITORY, timeout=120,
    )  # fmt: skip
    assert "=> {" in done.stdout, done.stdout + done.stderr
    found: dict[str, Any] = json.loads("{" + done.stdout.partition("=> {")[2])
    return found


def test_a_page_is_read_and_no_more_than_was_asked_for(url: str) -> None:
    page = ask(f"{url}/page", accept="text/x")
    assert (page["status"], page["content"], page["changed"]) == (200, "text/x", False)
    missing = ask(f"{url}/missing")
    assert (missing["status"], missing["content"]) == (404, "")
    started = time.monotonic()
    for path in ("endless", "slow"):
        found = ask(f"{url}/{path}", limit_bytes=1 << 20, timeout_seconds=3)
        assert (found["status"], found["content"]) == (-1, "")
        assert "more than 1048576 bytes, or 3 s" in found["msg"]
    assert time.monotonic() - started < 60
    nobody = ask("http://127.0.0.1:9/")
    assert nobody["status"] == -1
    assert "refused" in nobody["msg"]

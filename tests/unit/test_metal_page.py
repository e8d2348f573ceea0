"""The module metal_page, run by Ansible: a page, and servers that never finish."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest

REPOSITORY = Path(__file__).parents[2]


ASKED: list[tuple[str, str | None]] = []
TARGETS = {
    "/away-file": "file:///etc/hostname",
    "/away-ftp": "ftp://127.0.0.1/x",
    "/away-round": "/away-round",
}


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/page":
            body = self.headers["Accept"].encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        elif self.path.startswith("/away"):
            ASKED.append((self.headers["Host"].partition(":")[0], self.headers.get("Authorization")))
            self.send_response(302)
            target = (
                f"http://localhost:{cast('ThreadingHTTPServer', self.server).server_port}/end"
                if self.path == "/away"
                else TARGETS[self.path]
            )
            self.send_header("Location", target)
            self.end_headers()
        elif self.path == "/end":
            ASKED.append((self.headers["Host"].partition(":")[0], self.headers.get("Authorization")))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"\x99\x01end")
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


def ask(url: str, check: bool = False, **more: Any) -> dict[str, Any]:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ansible")), "localhost", "-c", "local", "-i", "localhost,", "-o",
         "-m", "minimax.metal.metal_page", "-a", json.dumps({"url": url, **more}),
         *(["--check"] if check else [])],
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


def test_credentials_go_to_their_own_server_alone(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login mirror password of-127\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    ASKED.clear()
    assert ask(f"{url}/away")["status"] == 200
    (first, sent), *later = ASKED
    assert first == "127.0.0.1"
    assert str(sent).startswith("Basic ")
    assert later == [("localhost", None)]


def test_redirects_lead_to_pages_only(url: str) -> None:
    for path, why in (("file", "file://"), ("ftp", "ftp://127.0.0.1"), ("round", "more than 5 redirects")):
        found = ask(f"{url}/away-{path}")
        assert (found["status"], found["content"]) == (-1, "")
        assert why in found["msg"]


def test_the_bytes_of_a_page_are_kept_in_a_file(url: str, tmp_path: Path) -> None:
    dest = tmp_path / "key"
    assert ask(f"{url}/end", dest=str(dest), mode="0640", check=True)["changed"]
    assert not dest.exists()
    for changed in (True, False):
        assert ask(f"{url}/end", dest=str(dest), mode="0640")["changed"] is changed
        assert dest.read_bytes() == b"\x99\x01end"
        assert dest.stat().st_mode & 0o777 == 0o640
    for path in ("endless", "missing"):
        found = ask(f"{url}/{path}", dest=str(dest), limit_bytes=1 << 20, timeout_seconds=3)
        assert not found["changed"]
        assert dest.read_bytes() == b"\x99\x01end"

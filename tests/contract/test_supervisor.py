"""The supervisor and its plug-in with the real engine: start, keys, a stall, a stop with a stream open.

About a minute on two cores.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.engine import environment
from lab.engine.environment import cache_root
from lab.models.description import MODELS
from lab.models.training_run import trained
from minimax_metal.host.engine.output import PHASES
from minimax_metal.host.gateway.client import Web
from minimax_metal.host.gateway.identity import Examiner, Seen
from tests.support.real_engine import with_own_memory

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

USER_KEY, ADMIN_KEY = "canary-user-51d7e2", "canary-admin-c80b4f"
STALL_SECONDS = 30.0
"""Longer than the 20 s after which an engine's health call fails and the engine counts as unhealthy."""
PATIENCE = 300.0


class Served:
    """One engine under the supervisor."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.secrets = folder / "secrets"
        self.secrets.mkdir()
        (self.secrets / "api_key").write_text(USER_KEY + "\n")
        (self.secrets / "admin_api_key").write_text(ADMIN_KEY + "\n")
        (self.secrets / "engine.yaml").write_text(f"api-key: {USER_KEY}\nadmin-api-key: {ADMIN_KEY}\n")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.log = folder / "output"
        python = environment()
        engine = [
            str(python.with_name("sglang")),
            "serve",
            "--model-path",
            str(trained(MODELS["MiniMax-M2.5"])),
        ]
        engine += [
            "--served-model-name",
            "m",
            "--tp-size",
            "1",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]
        engine += ["--trust-remote-code", "--device", "cpu", "--attention-backend", "torch_native"]
        engine += ["--max-total-tokens", "8192", "--sleep-on-idle", "--enable-metrics"]
        engine += ["--config", str(self.secrets / "engine.yaml")]
        command = [sys.executable, "-m", "minimax_metal.cli", "supervise", "--instance", "m"]
        command += ["--ready-url", f"http://127.0.0.1:{self.port}/health", "--start-timeout", "300"]
        command += ["--stop-timeout", "240", "--secrets", str(self.secrets), "--state", str(folder / "state")]
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        self.channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.channel.bind(str(folder / "notify"))
        self.channel.settimeout(1.0)
        self.messages: list[str] = []
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                with_own_memory([*command, "--", *engine]),
                env={
                    **inherited,
                    "HF_HUB_OFFLINE": "1",
                    "NOTIFY_SOCKET": str(folder / "notify"),
                    # Ready only when the guard has proved to be in the engine.
                    "METAL_IDENTITY": f"http://127.0.0.1:{self.port}",
                },
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(TimeoutError):
                self.messages.append(self.channel.recv(4096).decode())
            if any(text in message for message in self.messages):
                return
        raise AssertionError(f"no {text!r}: {self.log.read_text()[-3000:]}")

    def ask(self, method: str, path: str, body: object = None, key: str | None = USER_KEY) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json"} | (
                {"Authorization": f"Bearer {key}"} if key else {}
            )
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def processes(self) -> list[int]:
        """All processes below the supervisor."""
        listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True)
        pairs = [tuple(map(int, line.split())) for line in listed.stdout.splitlines()]
        found = [self.process.pid]
        for parent in found:
            found += [pid for pid, above in pairs if above == parent]
        return found[1:]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with (cache_root() / "engine" / ".turn").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # two engines at once are too much for two cores
        made = Served(tmp_path)
        try:
            yield made
        finally:
            if made.process.poll() is None:
                for _ in range(2):
                    made.process.terminate()
                    time.sleep(0.5)
                made.process.wait(60)
            made.channel.close()


class Stream(threading.Thread):
    """A long answer, read from a thread."""

    def __init__(self, served: Served, tokens: int) -> None:
        super().__init__(daemon=True)
        self.served, self.tokens = served, tokens
        self.pieces = 0
        self.received = 0
        self.done = False

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.served.port, timeout=300)
        body: dict[str, object] = {
            "model": "m",
            "prompt": "hello",
            "max_tokens": self.tokens,
            "ignore_eos": True,
            "stream": True,
        }
        body["stream_options"] = {"include_usage": True}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {USER_KEY}"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        for line in connection.getresponse():
            if line.startswith(b"data: {"):
                self.pieces += 1
                self.received = (json.loads(line[6:]).get("usage") or {}).get("completion_tokens", 0)
            self.done = self.done or line.strip() == b"data: [DONE]"
        connection.close()


def test_from_start_to_a_stop_after_a_stall(served: Served) -> None:
    served.wait_for("READY=1")
    # The status line said what the engine was at: "loading" before its first word, then its own phases.
    said = "\n".join(served.messages)
    phases = set(re.findall(r"^STATUS=starting: ([^;,]+)[^;]*; engine running for", said, re.MULTILINE))
    own = {text.partition(",")[0] for _, text in PHASES}
    assert phases & own, said
    assert phases <= own | {"loading"}, phases

    examiner = Examiner(USER_KEY, Web(None, None))
    assert examiner.ask(f"http://127.0.0.1:{served.port}") is Seen.PROVEN
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    assert served.ask("POST", "/v1/chat/completions", chat)[0] == 200
    image = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
    chat["messages"] = [{"role": "user", "content": [image]}]
    status, text = served.ask("POST", "/v1/chat/completions", chat)
    assert (status, "metal_allowed_media_domains" in text) == (400, True)
    status, text = served.ask("POST", "/v1/completions", {"model": "nobody", "prompt": "x"})
    assert (status, json.loads(text)["error"]["code"]) == (404, "model_not_found")

    # Keys: needed, told apart, and in nothing that is said.
    assert served.ask("GET", "/v1/models", key=None)[0] == 401
    assert served.ask("GET", "/v1/models")[0] == 200
    assert served.ask("POST", "/pause_generation", {})[0] == 401
    status, text = served.ask("GET", "/server_info")
    assert status == 200
    assert USER_KEY not in text
    assert ADMIN_KEY not in text
    assert "***" in text

    stream = Stream(served, 1500)
    stream.start()
    deadline = time.monotonic() + PATIENCE
    while stream.pieces < 5 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert stream.pieces >= 5

    # A stall: everything but the HTTP server stands still, and somebody's health call fails meanwhile.
    (engine,) = [
        pid
        for pid in served.processes()
        if Path(f"/proc/{pid}/stat").read_text().split()[3] == str(served.process.pid)
    ]
    still = [pid for pid in served.processes() if pid != engine]
    for pid in still:
        os.kill(pid, signal.SIGSTOP)
    health: list[int] = []
    caller = threading.Thread(target=lambda: health.append(served.ask("GET", "/health", key=None)[0]))
    caller.start()
    time.sleep(STALL_SECONDS)
    for pid in still:
        os.kill(pid, signal.SIGCONT)
    caller.join(60)
    assert health == [503]
    assert served.ask("GET", "/ready", key=None)[0] == 503  # the engine counts itself unhealthy now

    served.process.send_signal(signal.SIGTERM)
    served.wait_for("requests in flight,")
    assert served.ask("POST", "/v1/completions", {"model": "m", "prompt": "x", "max_tokens": 1})[0] == 503
    stream.join(PATIENCE)
    assert stream.done
    assert stream.received == 1500
    assert served.process.wait(120) == 0

    printed = served.log.read_text()
    assert "***" in printed
    for key in (USER_KEY, ADMIN_KEY):
        assert key not in printed
        assert key not in "\n".join(served.messages)

"""A real engine on a tiny model, started and stopped by a test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.engine import environment
from lab.models.description import MODELS
from lab.models.training_run import trained

PARSERS = {
    "MiniMax-M2.5": ("minimax-m2", "minimax-append-think"),
    "MiniMax-M3": ("minimax-m3", "minimax-m3"),
    "MiniMax-M3.1-Flash": ("minimax-m3", "minimax-m3"),
}


@dataclass(frozen=True)
class Engine:
    """A running engine: its process, address, the model's folder, its start time until ready."""

    process: subprocess.Popen[bytes]
    url: str
    name: str
    model: Path
    seconds: float
    log: Path

    def ranks(self) -> list[int]:
        """Return the process ids of the ranks, by their process titles."""
        listed = subprocess.run(
            ["ps", "-o", "pid=,args=", "-g", str(self.process.pid)],
            capture_output=True,
            text=True,
            check=True,
        )
        lines = [line.split() for line in listed.stdout.splitlines()]
        return [int(line[0]) for line in lines if line[1].startswith("sglang::scheduler")]

    def get(self, path: str, timeout: float = 60) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=timeout) as answer:  # noqa: S310  loopback
            return json.load(answer)

    def post(self, path: str, body: dict[str, Any], timeout: float = 120) -> Any:
        request = urllib.request.Request(  # noqa: S310  loopback
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310  loopback
            return json.load(answer)


def with_own_memory(argv: list[str]) -> list[str]:
    """Return a command with private shared memory, which disappears with it.

    A killed engine leaves segments in /dev/shm. Without root it uses the machine's.
    """
    if os.geteuid() != 0:
        return argv
    own = 'mount -t tmpfs engine /dev/shm && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", own, "sh", *argv]


@contextmanager
def running_engine(
    folder: Path,
    name: str,
    tp: int = 1,
    ep: int = 1,
    more: Sequence[str] = ("--max-total-tokens", "8192"),
    environ: Mapping[str, str] | None = None,
) -> Iterator[Engine]:
    """Serve the tiny model ``name`` with the guide's flags; yields when it generates, stops it afterwards.

    ``more`` are further flags; without the usual limit the KV cache takes all available memory. ``environ``
    is added to the engine's environment.
    """
    model = trained(MODELS[name])
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    tools, reasoning = PARSERS[name]
    log = folder / f"{name}-tp{tp}.log"
    argv = [str(environment()), "-m", "sglang.launch_server", "--model-path", str(model)]
    argv += ["--served-model-name", f"MiniMaxAI/{name}", "--tp-size", str(tp)]
    argv += ["--ep-size", str(ep)] if ep > 1 else []
    argv += ["--tool-call-parser", tools, "--reasoning-parser", reasoning, "--host", "127.0.0.1"]
    argv += ["--trust-remote-code", "--port", str(port), "--mem-fraction-static", "0.85"]
    argv += ["--device", "cpu", "--attention-backend", "torch_native"]
    argv += ["--sleep-on-idle", *more]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    began = time.monotonic()
    with log.open("w") as out:
        process = subprocess.Popen(
            with_own_memory(argv),
            env={**inherited, "HF_HUB_OFFLINE": "1", **(environ or {})},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _await_health(url, process, log)
        yield Engine(process, url, name, model, time.monotonic() - began, log)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        _end(process)


def _await_health(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 280
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"the engine exit status {process.returncode}: {log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=30):  # noqa: S310  loopback
                return
        except (OSError, urllib.error.URLError):
            time.sleep(0.5)
    pytest.fail(f"the engine was not ready in time: {log.read_text()[-2000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the rest of the engine's session and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail(f"processes of the engine's session {process.pid} are left")

"""A real engine on a tiny model under ``metal supervise``: with the guard, as started by a unit."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.engine import environment
from lab.engine.environment import cache_root
from lab.models.description import MODELS
from lab.models.training_run import trained
from tests.support.real_engine import with_own_memory

PUBLISHED = {name: f"MiniMaxAI/{name}" for name in MODELS}
START_SECONDS = 300
DEVICE, TOKENS = "cpu", 8192  # without a limit the key-value cache takes all memory

Start = Callable[..., str]


def metal(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = with_own_memory([sys.executable, "-m", "minimax_metal.cli", *arguments])
    return subprocess.Popen(command, text=True, **options)


@contextmanager
def supervising(folder: Path, key: str | None = None) -> Iterator[Start]:
    """Yield a function that starts a tiny model under ``metal supervise`` and returns its URL; then stop it.

    ``key`` is the clients' key, in files as the role ``sglang_service`` writes them.
    """
    python = environment()
    running: list[subprocess.Popen[str]] = []
    log = folder / "engine.log"
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    channel.bind(str(folder / "notify"))
    # Two engines at once are too much for two cores.
    turn = (cache_root() / "engine" / ".turn").open("w")
    fcntl.flock(turn, fcntl.LOCK_EX)

    keys = _keys(folder, key) if key else []

    def start(model: str, tool_parser: str, reasoning_parser: str, *more: str) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        with log.open("w") as output:
            process = metal(
                *f"supervise --instance test --ready-url {url}/health --stop-timeout 60".split(),
                *f"--start-timeout {START_SECONDS} --state {folder / 'state'}".split(),
                *(["--secrets", str(folder / "secrets")] if key else []),
                *f"-- {python} -m sglang.launch_server".split(),
                *f"--model-path {trained(MODELS[model])} --served-model-name {PUBLISHED[model]}".split(),
                *f"--tool-call-parser {tool_parser} --reasoning-parser {reasoning_parser}".split(),
                *f"--host 127.0.0.1 --trust-remote-code --port {port} --mem-fraction-static 0.85".split(),
                *f"--tp-size 1 --device {DEVICE} --attention-backend torch_native".split(),
                *f"--max-total-tokens {TOKENS}".split(),
                *keys,
                *more,
                env={**os.environ, "NOTIFY_SOCKET": str(folder / "notify")},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        running.append(process)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if select.select([channel], [], [], 1.0)[0] and b"READY=1" in channel.recv(4096):
                return url
            assert process.poll() is None, log.read_text()[-3000:]
        pytest.fail(f"the engine was not ready in {START_SECONDS} s: {log.read_text()[-2000:]}")

    try:
        yield start
    finally:
        for process in running:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=90) == 0, "a stop that was asked for is no failure"
        assert "killed" not in log.read_text().rpartition("metal supervise:")[2]
        channel.close()
        turn.close()


def _keys(folder: Path, key: str) -> list[str]:
    """Write the keys' directory; return the engine's arguments for it."""
    secrets = folder / "secrets"
    secrets.mkdir()
    (secrets / "api_key").write_text(key + "\n")
    (secrets / "admin_api_key").write_text(f"admin-{key}\n")
    (secrets / "engine.yaml").write_text(f"api-key: {key}\nadmin-api-key: admin-{key}\n")
    return ["--config", str(secrets / "engine.yaml")]

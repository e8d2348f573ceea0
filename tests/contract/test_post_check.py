"""The supervisor and the post-check against the real engine, on the CPU, with the lab's tiny models.

A minute each on two cores: the engine's own start is nearly all of it.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.engine import environment
from lab.engine.environment import cache_root
from lab.models.description import MODELS
from lab.models.training_run import trained

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

PUBLISHED = {"MiniMax-M2.5": "MiniMaxAI/MiniMax-M2.5", "MiniMax-M3": "MiniMaxAI/MiniMax-M3"}
START_SECONDS = 300
DEVICE, TOKENS = "cpu", 8192  # without a limit the key-value cache takes all memory

Check = Callable[..., tuple[int, dict[str, Any]]]
Serve = Callable[[str, str, str], Check]


def metal(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "minimax_metal.cli", *arguments], text=True, **options)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start one model with the parsers that are asked for; return the post-check against it."""
    python = environment()
    running: list[subprocess.Popen[str]] = []
    log = tmp_path / "engine.log"
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    channel.bind(str(tmp_path / "notify"))
    # Two engines at once are too much for two cores.
    turn = (cache_root() / "engine" / ".turn").open("w")
    fcntl.flock(turn, fcntl.LOCK_EX)

    def start(model: str, tool_parser: str, reasoning_parser: str) -> Check:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        with log.open("w") as output:
            process = metal(
                *f"supervise --instance test --ready-url {url}/health --stop-timeout 60".split(),
                *f"--start-timeout {START_SECONDS} -- {python} -m sglang.launch_server".split(),
                *f"--model-path {trained(MODELS[model])} --served-model-name {PUBLISHED[model]}".split(),
                *f"--tool-call-parser {tool_parser} --reasoning-parser {reasoning_parser}".split(),
                *f"--host 127.0.0.1 --trust-remote-code --port {port} --mem-fraction-static 0.85".split(),
                *f"--tp-size 1 --device {DEVICE} --attention-backend torch_native".split(),
                *f"--max-total-tokens {TOKENS}".split(),
                env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        running.append(process)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if select.select([channel], [], [], 1.0)[0] and b"READY=1" in channel.recv(4096):
                break
            assert process.poll() is None, log.read_text()[-3000:]
        report = tmp_path / "report.json"

        def check(*arguments: str) -> tuple[int, dict[str, Any]]:
            asked = metal("check", url, "--model", PUBLISHED[model], "--report", str(report), *arguments)
            status = asked.wait(timeout=300)
            return status, json.loads(report.read_text())

        return check

    try:
        yield start
    finally:
        for process in running:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=90) == 0, "a stop that was asked for is no failure"
        assert "killed" not in log.read_text().rpartition("metal supervise:")[2]
        channel.close()
        turn.close()


def failed(report: dict[str, Any]) -> list[str]:
    return [check["name"] for check in report["checks"] if check["status"] == "failed"]


def test_m25_as_its_guide_starts_it(serve: Serve) -> None:
    status, report = serve("MiniMax-M2.5", "minimax-m2", "minimax-append-think")("--image-refused")
    assert (status, failed(report)) == (0, [])
    assert "minimax-append-think" in report["checks"][-1]["detail"]


def test_m3_with_its_own_parsers(serve: Serve) -> None:
    status, report = serve("MiniMax-M3", "minimax-m3", "minimax-m3")("--image")
    assert (status, failed(report)) == (0, [])


def test_m3_with_the_parsers_of_its_guide_is_caught(serve: Serve) -> None:
    status, report = serve("MiniMax-M3", "minimax-m2", "minimax-append-think")("--image")
    assert (status, failed(report)) == (1, ["tool_call", "tool_call_stream", "markup"])

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
from tests.support.engine import GUIDES_MISTAKE
from tests.support.real_engine import with_own_memory

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

PUBLISHED = {"MiniMax-M2.5": "MiniMaxAI/MiniMax-M2.5", "MiniMax-M3": "MiniMaxAI/MiniMax-M3"}
START_SECONDS = 300
DEVICE, TOKENS = "cpu", 8192  # without a limit the key-value cache takes all memory

Check = Callable[..., tuple[int, dict[str, Any]]]
Serve = Callable[..., Check]
CANARY = "canary-4f1d9a7c"


def metal(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = with_own_memory([sys.executable, "-m", "minimax_metal.cli", *arguments])
    return subprocess.Popen(command, text=True, **options)


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

    def start(model: str, tool_parser: str, reasoning_parser: str, *more: str) -> Check:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        with log.open("w") as output:
            process = metal(
                *f"supervise --instance test --ready-url {url}/health --stop-timeout 60".split(),
                *f"--start-timeout {START_SECONDS} --state {tmp_path / 'state'}".split(),
                *f"-- {python} -m sglang.launch_server".split(),
                *f"--model-path {trained(MODELS[model])} --served-model-name {PUBLISHED[model]}".split(),
                *f"--tool-call-parser {tool_parser} --reasoning-parser {reasoning_parser}".split(),
                *f"--host 127.0.0.1 --trust-remote-code --port {port} --mem-fraction-static 0.85".split(),
                *f"--tp-size 1 --device {DEVICE} --attention-backend torch_native".split(),
                *f"--max-total-tokens {TOKENS}".split(),
                *more,
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
            status = asked.wait(timeout=450)
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


def names(report: dict[str, Any], status: str) -> list[str]:
    return [check["name"] for check in report["checks"] if check["status"] == status]


def details(report: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["detail"] for check in report["checks"]}


def test_m25_as_its_guide_starts_it(serve: Serve) -> None:
    status, report = serve("MiniMax-M2.5", "minimax-m2", "minimax-append-think")()
    assert (status, names(report, "failed")) == (0, [])
    assert names(report, "limited") == ["tool_required", "tool_named", "messages_tool_any"]
    assert names(report, "skipped") == ["image_marker", "wrong_key", "metrics", "abort_queued", "bench"]
    assert "minimax-append-think" in details(report)["markup"]
    assert "refused with 400" in details(report)["image"]


def test_m25_with_the_splitting_parser_a_key_and_metrics(serve: Serve, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(CANARY)
    flags = ["--enable-metrics", "--max-running-requests", "2", "--api-key", CANARY]
    check = serve("MiniMax-M2.5", "minimax-m2", "minimax", *flags)
    status, report = check("--api-key-file", str(key), "--metrics")
    assert (status, names(report, "failed")) == (0, [])
    assert names(report, "limited") == []
    assert "refused with 404" in details(report)["wrong_model"]
    assert names(report, "skipped") == ["image_marker", "bench"]
    assert "runs 2 at once" in details(report)["abort_queued"]
    assert "401" in details(report)["wrong_key"]
    assert CANARY not in json.dumps(report)


def test_m3_with_its_own_parsers_and_the_engines_benchmark(serve: Serve) -> None:
    bench = ["--bench", "--bench-python", str(environment()), "--bench-prompts", "8"]
    bench += ["--bench-input-tokens", "64", "--bench-output-tokens", "16", "--bench-concurrency", "4"]
    status, report = serve("MiniMax-M3", "minimax-m3", "minimax-m3")(*bench)
    assert (status, names(report, "failed")) == (0, [])
    assert names(report, "limited") == []
    assert "refused with 404" in details(report)["wrong_model"]
    assert names(report, "skipped") == ["wrong_key", "metrics", "abort_queued"]
    assert details(report)["image"] == "named red, green and blue"
    assert [level["concurrency"] for level in report["figures"]] == [1, 4]
    assert report["bench"]["completed"] == 8
    print({check["name"]: check["seconds"] for check in report["checks"]}, report["seconds"])


def test_m3_with_the_parsers_of_its_guide_is_caught(serve: Serve) -> None:
    status, report = serve("MiniMax-M3", "minimax-m2", "minimax-append-think")()
    assert (status, names(report, "failed")) == (1, GUIDES_MISTAKE)

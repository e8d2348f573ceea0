"""Simulated engines as processes on loopback: the same program that lab hosts run as their engine."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.engine.wheel import SIMULATED, build_wheel
from minimax_metal.host.engine.drain import PLUGIN


@dataclass(frozen=True)
class SimulatedEngine:
    """One of them."""

    url: str
    log: Path
    process: subprocess.Popen[bytes]

    def events(self, kind: str) -> list[str]:
        """Return the ids of the requests with this log message, in order."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [entry["id"] for entry in map(json.loads, lines) if entry["event"] == kind]


def free_port() -> int:
    """Return an unused loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_url(url: str, process: subprocess.Popen[bytes], seconds: float = 120.0) -> None:
    """Wait until a URL answers 200; fail as soon as its process has ended. Certificates are not checked."""
    context = ssl._create_unverified_context() if url.startswith("https:") else None  # noqa: S323
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, f"{url}: its process exit status {process.returncode}"
        try:
            with urllib.request.urlopen(url, timeout=5, context=context):  # noqa: S310  # loopback
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{url} did not answer in {seconds} s")


@contextmanager
def simulated_engine(
    directory: Path, *arguments: str, port: int | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[SimulatedEngine]:
    """Run one until the end of the context; its log is in ``directory``."""
    wheel = build_wheel(directory / "wheel", SIMULATED)
    port = port or free_port()
    log = directory / f"requests-{port}.jsonl"
    settings = {
        # Pure Python: imported as it is. The guard comes by its entry point, as the supervisor has it.
        "PYTHONPATH": f"{wheel}{os.pathsep}{PLUGIN}",
        "SIMULATED_REQUEST_LOG": str(log),
        "SIMULATED_START_SECONDS": "0",
        **(environment or {}),
    }
    with (directory / f"engine-{port}.log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "sglang_simulated.server", "serve", "--port", str(port),
             "--model-path", "/nowhere", "--served-model-name", "MiniMaxAI/MiniMax-M2.5", "--enable-metrics",
             *arguments],
            env={**os.environ, **settings}, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        scheme = "https" if "--ssl-certfile" in arguments else "http"
        wait_for_url(f"{scheme}://127.0.0.1:{port}/health", process)
        yield SimulatedEngine(f"{scheme}://127.0.0.1:{port}", log, process)
    finally:
        process.kill()
        process.wait()

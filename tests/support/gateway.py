"""The real gateway (smg) on loopback, from the same lock as on a gateway's host."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uv import find_uv_bin

from lab.engine.environment import cache_root
from minimax_metal.catalog import packaged_catalog
from minimax_metal.plan.gateway import Options, launch_arguments
from tests.support.simulated import free_port, wait_for_url

LOCKS = Path(__file__).parents[2] / "src/minimax_metal/catalog/locks"
CLIENT_KEY = "client-key-0123456789abcdef"
ADMIN_KEY = "admin-key-0123456789abcdef"
MODEL = "MiniMaxAI/MiniMax-M2.5"


def smg_python() -> Path:
    """Return the Python of an environment filled from the lock; made once, kept in the cache."""
    catalog = packaged_catalog()
    release = catalog.gateways[catalog.default_gateway]
    lock = LOCKS / release.locks[f"{sys.version_info.major}.{sys.version_info.minor}"]
    home = cache_root() / "gateway" / hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    home.parent.mkdir(parents=True, exist_ok=True)
    with (home.parent / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if not home.is_dir():
            scratch = home.with_name(f".{home.name}.partial")
            shutil.rmtree(scratch, ignore_errors=True)
            python = str(scratch / "bin/python")
            for words in (
                ["venv", "--relocatable", "--python", sys.executable, str(scratch)],
                ["pip", "sync", "--only-binary=:all:", "--require-hashes", "--python", python, str(lock)],
            ):
                subprocess.run([find_uv_bin(), *words], check=True, capture_output=True)
            scratch.rename(home)
    return home / "bin/python"


@dataclass
class RealGateway:
    """A gateway, its configuration, and its packaged command."""

    directory: Path
    url: str
    metrics_url: str
    argv: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    answers: list[tuple[int, str]] = field(default_factory=list)

    @property
    def configuration(self) -> Path:
        return self.directory / "admin.json"

    @property
    def log(self) -> str:
        return (self.directory / "smg.log").read_text(errors="replace")

    def configure(self, *urls: str, proves: bool = False) -> None:
        """Write the configuration like the role, with these workers."""
        keys = self.directory / "keys"
        keys.mkdir(exist_ok=True)
        (keys / "api_key").write_text(CLIENT_KEY + "\n")
        (keys / "admin_key").write_text(ADMIN_KEY + "\n")
        found = {
            "url": self.url,
            "ca_file": None,
            "admin_key_file": str(keys / "admin_key"),
            "api_key_file": str(keys / "api_key"),
            "engine_ca_file": None,
            "manifest": str(self.directory / "workers.json"),
            "drained": str(self.directory / "drained.json"),
            "workers": [
                {"url": url, "host": f"gpu{place:02}", "proves": proves} for place, url in enumerate(urls, 1)
            ],
        }
        self.configuration.write_text(json.dumps(found))

    def start(self) -> None:
        """Start it like its unit."""
        with (self.directory / "smg.log").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "minimax_metal.cli", "gateway", "launch",
                 "--keys", str(self.directory / "keys"), "--", *self.argv],
                stdout=output, stderr=subprocess.STDOUT, env=dict(os.environ),
            )  # fmt: skip
        wait_for_url(f"{self.url}/liveness", self.process)

    def stop(self) -> None:
        """Stop it, after the requests in flight."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def metal(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Call ``metal gateway``."""
        command = [sys.executable, "-m", "minimax_metal.cli", "gateway", verb]
        return subprocess.run(
            [*command, "--config", str(self.configuration), *arguments],
            capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip

    def workers(self) -> dict[str, dict[str, Any]]:
        """Return the output of ``metal gateway list``, by URL."""
        return {row["url"]: row for row in json.loads(self.metal("list", "--json").stdout)["workers"]}

    def ask(self, identity: str, *, tokens: int = 5, model: str = MODEL, key: str = CLIENT_KEY) -> int:
        """Stream an answer; keep and return its status."""
        body = {"model": model, "user": identity, "messages": [{"role": "user", "content": identity}],
                "stream": True, "ignore_eos": True, "max_tokens": tokens}  # fmt: skip
        request = urllib.request.Request(  # noqa: S310  # loopback
            f"{self.url}/v1/chat/completions", json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
                self.answers.append((answer.status, answer.read().decode()))
        except urllib.error.HTTPError as error:
            self.answers.append((error.code, error.read().decode()))
        return self.answers[-1][0]

    def ask_meanwhile(self, identity: str, tokens: int) -> threading.Thread:
        """Stream an answer in a separate thread."""
        thread = threading.Thread(target=self.ask, args=(identity,), kwargs={"tokens": tokens})
        thread.start()
        return thread


def words(stream: str) -> int:
    """Return the number of words in a chat stream: with the simulated engine, the number of tokens."""
    data = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: {")]
    choices = [choice for piece in map(json.loads, data) for choice in piece["choices"]]
    return len("".join(choice["delta"].get("content") or "" for choice in choices).split())


@contextmanager
def real_gateway(
    directory: Path, *workers: str, proves: bool = False, **options: Any
) -> Iterator[RealGateway]:
    """Run a gateway in front of workers until the end of the context; options are the role's."""
    port, metrics = free_port(), free_port()
    given = {"retries": 0, "health_interval_seconds": 1, "health_failures": 1, "stop_timeout_seconds": 20}
    chosen = Options.read({**given, **options, "port": port, "metrics_port": metrics,
                           "listen_address": "127.0.0.1"})  # fmt: skip
    manifest = str(directory / "workers.json")
    argv = list(launch_arguments(str(smg_python()), chosen))
    argv[argv.index("--discovery-file") + 1] = manifest
    gateway = RealGateway(directory, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics}/metrics", argv)
    gateway.configure(*workers, proves=proves)
    assert gateway.metal("sync", "--no-wait").returncode == 0
    gateway.start()
    try:
        yield gateway
    finally:
        gateway.stop()

"""With the unit's environment, FlashInfer asks nobody for a missing kernel; without it, it does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lab.engine.environment import environment
from minimax_metal.catalog import packaged_catalog
from minimax_metal.plan import Settings, plan
from minimax_metal.plan.what_if import what_if_facts

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

CATALOG = packaged_catalog()
KERNEL = b"a kernel for somebody else's GPU"
NAME = "fmha/test.cubin"


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A stand-in for the vendor's server that has the kernel; yields its address and its requests."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(KERNEL)))
            self.end_headers()
            self.wfile.write(KERNEL)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}/", asked
        listening.shutdown()


def ask(address: str, cache: Path, variables: dict[str, str]) -> dict[str, object]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FLASHINFER"))}
    done = subprocess.run(
        [
            str(environment()),
            str(Path(__file__).with_name("artefact_probe.py")),
            NAME,
            hashlib.sha256(KERNEL).hexdigest(),
        ],
        env=own
        | {"HOME": str(cache), "FLASHINFER_CUBINS_REPOSITORY": address, "NO_PROXY": "127.0.0.1"}
        | {"FLASHINFER_CUBIN_DIR": str(cache)}
        | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("gpu", ["H20", "B200"])
def test_missing_kernel_is_named_and_never_fetched(
    server: tuple[str, list[str]], tmp_path: Path, gpu: str
) -> None:
    facts = what_if_facts(gpu, 8, CATALOG.platforms["debian12"], CATALOG)
    made = plan(Settings.from_variables("gpu01", {"metal_model": "M2.5"}), facts, CATALOG)
    unit = {name: value for name, value in made.services[0].environment.items() if "FLASHINFER" in name}
    address, asked = server
    answer = ask(address, tmp_path, unit)
    assert asked == []
    assert NAME in str(answer["error"])
    assert "refusing to download" in str(answer["error"])


def test_without_the_units_environment_it_would_be_fetched(
    server: tuple[str, list[str]], tmp_path: Path
) -> None:
    address, asked = server
    assert ask(address, tmp_path, {}) == {"bytes": len(KERNEL)}
    assert asked == [f"/{NAME}"]

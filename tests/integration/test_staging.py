"""Set up two hosts through the fleet's cache, a third with the uplink down, then one from a bundle.

On the hosts of lab/labs/staging.yml, with a part of the engine's lock; tests/support/staging.py lists what
that can't show. Bytes are counted in the cache's own log. ``METAL_LAB_NAME`` names a running lab.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from minimax_metal.common import traffic
from tests.support.site import Run, booted
from tests.support.staging import PlayedCopy, copy_with_short_locks

pytestmark = [pytest.mark.lab, pytest.mark.timeout(5400)]

TAGS = "package_sources,artefact_cache,host_tools,nvidia_driver,cuda_toolkit,sglang_runtime"
DONE = (
    "test -x /opt/minimax-metal/current/bin/metal && ls -d /opt/sglang/0.5.23-*/bin/python && nvidia-smi -L"
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlayedCopy]:
    copy = copy_with_short_locks(tmp_path_factory.mktemp("project"))
    with booted("staging", "staging", "inventories/lab-staging") as lab:
        yield PlayedCopy(lab, copy)


def counted(lab: PlayedCopy) -> dict[str, traffic.Traffic]:
    log = lab.lab.ssh("cache01", "journalctl -u minimax-metal-artefacts -o cat --no-pager")
    return traffic.read(log.splitlines())


def run(lab: PlayedCopy, hosts: str, **variables: Any) -> Run:
    found = lab.play("--limit", hosts, "--tags", TAGS, "--extra-vars", json.dumps(variables))
    assert found.returncode == 0, found.output[-6000:]
    return found


def test_each_wheel_and_package_is_read_from_its_origin_once(lab: PlayedCopy) -> None:
    run(lab, "cache01,gpu01,gpu02")
    found = counted(lab)
    for ending in (".whl", ".deb"):
        number, origin, size = traffic.ratio(found, ending)
        assert number >= 20, ending
        clients = [len(file.clients) for path, file in found.items() if path.endswith(ending)]
        assert clients == [2] * number, f"not every {ending} was asked for by both hosts"
        print(f"\n{ending}: {number} files, origin ÷ size = {origin / size:.4f}")
        assert origin / size <= 1.02, ending


def test_a_second_run_changes_nothing(lab: PlayedCopy) -> None:
    again = run(lab, "cache01,gpu01,gpu02")
    assert {host: counts["changed"] for host, counts in again.recap.items()} == {
        "cache01": 0, "gpu01": 0, "gpu02": 0,
    }, again.changed  # fmt: skip


def test_strangers_are_not_let_in(lab: PlayedCopy) -> None:
    inventory = yaml.safe_load((lab.lab.state / "inventory/hosts.yml").read_text())["all"]["hosts"]
    address = inventory["cache01"]["ansible_host"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://{address}:8642/health", timeout=20)
    assert refused.value.code == 403
    program = f"import urllib.request as u; print(u.urlopen('http://{address}:8642/health').status)"
    assert lab.lab.ssh("gpu01", f'python3 -c "{program}"').strip() == "200"


def test_a_fresh_host_is_provisioned_without_an_uplink(lab: PlayedCopy) -> None:
    before = {path: file.origin_bytes for path, file in counted(lab).items()}
    lab.lab.lab("cut-uplink")
    try:
        closed = lab.lab.ssh(
            "gpu03", "timeout 5 bash -c '</dev/tcp/198.18.0.1/80' && echo open || echo closed"
        )
        assert closed.strip() == "closed"
        run(lab, "cache01,gpu03")
        assert lab.lab.ssh("gpu03", DONE)
        after = {path: file.origin_bytes for path, file in counted(lab).items()}
        wheels = {path for path in after if path.endswith((".whl", ".deb"))}
        assert {path: after[path] for path in wheels} == {path: before[path] for path in wheels}
    finally:
        lab.lab.lab("restore-uplink")


def test_a_host_is_provisioned_from_a_bundle_and_nothing_else(lab: PlayedCopy, tmp_path: Path) -> None:
    bundle, copy = tmp_path / "bundle", tmp_path / "copy"
    variables = yaml.safe_load((lab.lab.state / "inventory/hosts.yml").read_text())["all"]["vars"]
    fingerprint = variables["lab_vendor_key_fingerprint"]
    key = f"{fingerprint[-8:].lower()}.pub={fingerprint}"
    hosts = (*lab.inventories, "--limit", "gpu01", "--refresh")
    signer = tmp_path / "signer"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(signer)], check=True)
    known = ("--signers", f"{signer}.pub")
    lab.metal("bundle", "export", str(bundle), *hosts, "--vendor-key", key, "--sign-key", str(signer))
    lab.metal("bundle", "import", str(bundle), "--to", str(copy), *known)
    lab.metal("bundle", "verify", str(copy), *known)
    lab.lab.lab("down")
    lab.lab.lab("up", "--file", "lab/labs/staging.yml")
    lab.lab.lab("cut-uplink")
    gateway = yaml.safe_load((lab.lab.state / "inventory/hosts.yml").read_text())["all"]["hosts"]["gpu01"]
    address = gateway["ansible_host"].rpartition(".")[0] + ".1"
    written = tmp_path / "bundle.yml"
    server = subprocess.Popen(
        [sys.executable, "-m", "minimax_metal.cli", "bundle", "serve", str(copy),
         *known, "--allow", f"{address}/24", "--listen", f"{address}:8643", "--variables", str(written)],
        env=lab.environment,
    )  # fmt: skip
    try:
        for _ in range(200):
            if written.exists():
                break
            time.sleep(0.1)
        given = yaml.safe_load(written.read_text())
        assert given == {"metal_mirrors": f"http://{address}:8643"}
        # All that the inventory says of other places gives way to the one variable.
        cleared = dict.fromkeys(("metal_cache_url", "metal_vendor_repository_url"), None)
        given |= cleared | {"metal_weights_source": "bundle"}
        # The vendor of the new lab has another key; the bundle has the one that it was exported with.
        given |= {
            "nvidia_driver_repository_key": key.partition("=")[0],
            "nvidia_driver_repository_key_fingerprint": fingerprint,
        }
        run_tags = f"{TAGS},model_weights"
        found = lab.play("--limit", "gpu01", "--tags", run_tags, "--extra-vars", json.dumps(given))
        assert found.returncode == 0, found.output[-6000:]
        assert lab.lab.ssh("gpu01", DONE)
        assert lab.lab.ssh("gpu01", "ls -d /srv/models/MiniMaxAI/MiniMax-M2.5/*/.minimax-metal")
    finally:
        server.terminate()
        server.wait(60)
        lab.lab.lab("restore-uplink")

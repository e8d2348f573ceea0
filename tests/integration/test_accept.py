"""`metal accept` on a lab host with the real engine: checks that need CUDA fail in plain words, others work.

`METAL_LAB_NAME` names a running lab on which site.yml has run; without it a new one is made.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.site import REPOSITORY, Lab, Run, booted

HOST, UNIT = "gpu01", "sglang@minimax-m2.5.service"
GUARD = "metal-accept-restart.service"
PATIENCE = 300.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with booted("accept", "accept") as lab:
        if lab.fresh:
            run = lab.play("site.yml", "--limit", HOST)
            assert run.returncode == 0, run.output
        yield lab


@dataclass(frozen=True)
class Accepted:
    """One run of the command on the controller."""

    status: int
    output: str
    report: dict[str, Any]
    place: Path

    def check(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(one for one in self.report["checks"] if one["check"] == name)
        return found

    @property
    def states(self) -> dict[str, str]:
        return {one["check"]: one["state"] for one in self.report["checks"]}

    def bundle(self) -> dict[str, str]:
        with tarfile.open(self.place / "bundle.tar.gz") as archive:
            return {
                member.name: file.read().decode()
                for member in archive
                if (file := archive.extractfile(member)) is not None
            }


def accept(lab: Lab, place: Path, *arguments: str) -> Accepted:
    """`metal accept gpu01` as called by an operator."""
    metal = Path(sys.executable).with_name("metal")
    inventories = ["-i", lab.inventory, "-i", str(lab.state / "inventory" / "hosts.yml")]
    done = subprocess.run(
        [str(metal), "accept", HOST, *inventories, "--directory", str(place), *arguments],
        cwd=REPOSITORY,
        text=True,
        capture_output=True,
        check=False,
    )
    output = done.stdout + done.stderr
    assert (place / "report.json").is_file(), output
    return Accepted(done.returncode, output, json.loads((place / "report.json").read_text()), place)


def show(lab: Lab, name: str, unit: str = UNIT) -> str:
    return lab.ssh(HOST, f"systemctl show --value --property={name} {unit}").strip()


def wait(lab: Lab, state: str) -> None:
    began = time.monotonic()
    while show(lab, "ActiveState") != state:
        assert time.monotonic() - began < PATIENCE, show(lab, "StatusText")
        time.sleep(1.0)


def leftovers(lab: Lab) -> str:
    return lab.ssh(
        HOST, "ls -d /run/systemd/system/metal-accept* /run/metal-accept/* 2>/dev/null || true"
    ).strip()


@pytest.fixture(scope="module")
def beside(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Accepted:
    """A run while the engine is running."""
    wait(lab, "active")
    before = show(lab, "ActiveEnterTimestamp")
    made = accept(lab, tmp_path_factory.mktemp("beside"))
    assert show(lab, "ActiveEnterTimestamp") == before, "the engine was restarted"
    return made


def test_what_a_host_without_cuda_can_show_is_shown(beside: Accepted) -> None:
    passing = {
        "gpus",
        "device_nodes",
        "cold_boot",
        "driver_version",
        "persistence",
        "ecc",
        "nvlink",
        "kv_tokens",
        "golden_answer",
    }
    assert {name for name, state in beside.states.items() if state == "passed"} == passing, beside.output
    assert beside.check("nvlink")["found"] == "72 links up at 26.562 GB/s each"
    assert "Dodgers" in beside.check("golden_answer")["found"]
    assert (
        beside.check("kv_tokens")["figures"]["logged"] == beside.check("kv_tokens")["figures"]["told"] == 8192
    )


def test_what_needs_cuda_fails_in_plain_words(beside: Accepted) -> None:
    assert beside.status == 1
    assert beside.check("cuda")["state"] == "failed"
    # Torch's own words, from inside the sandbox: nothing of the sandbox stood in the way.
    assert "Found no NVIDIA driver on your system" in beside.check("cuda")["found"]
    for name in ("nccl", "triton", "flashinfer", "deep_gemm"):
        assert beside.check(name)["state"] == "skipped"
        assert beside.check(name)["found"] == "no card to compute on: see check cuda"
    assert {beside.check(name)["state"] for name in ("clocks", "pcie", "xid", "fabric", "dcgm")} == {
        "skipped"
    }
    assert "Traceback" not in beside.output


def test_no_key_is_in_the_bundle(lab: Lab, beside: Accepted) -> None:
    files = beside.bundle()
    names = "\n".join(files)
    for part in ("report.json", "plan.json", "instance-minimax-m2.5/unit.txt", "asked/nvidia-smi-q.txt"):
        assert f"metal-accept/{part}" in names
    assert "Traceback" in files["metal-accept/asked/program-cuda.txt"]
    assert re.search(r"^torch-2\.", files["metal-accept/engine/packages.txt"], re.MULTILINE)
    assert "max_total_num_tokens=8192" in files["metal-accept/instance-minimax-m2.5/journal.txt"]
    for kind in ("api_key", "admin_api_key"):
        key = (lab.state / "secrets" / kind).read_text(encoding="ascii").strip()
        assert len(key) >= 16
        holders = [name for name, text in files.items() if key in text]
        holders += [path.name for path in beside.place.glob("report.*") if key in path.read_text()]
        assert holders == []
        assert key not in beside.output


def test_nothing_is_left_on_the_host(lab: Lab, beside: Accepted) -> None:
    assert leftovers(lab) == ""
    assert lab.ssh(HOST, "stat -c '%a %U' /var/lib/minimax-metal/accept").strip() == "700 root"


def test_the_sandbox_is_that_of_the_engine(lab: Lab, beside: Accepted) -> None:
    """The kernel's view of a program in the sandbox equals that of the engine's own process."""
    probe = (
        "import json, os\n"
        "status = dict(line.split(':\\t', 1) for line in open('/proc/self/status').read().splitlines())\n"
        "print(json.dumps({'ok': True, 'status': status,\n"
        "  'limits': open('/proc/self/limits').read(), 'write': os.access('/etc', os.W_OK),\n"
        "  'tmp': sorted(os.listdir('/tmp')), 'seccomp': status['Seccomp']}))\n"
    )
    driver = (
        "import json, pathlib\n"
        "from minimax_metal.host.accept import machine, sandbox\n"
        "sandbox.PROGRAMS = pathlib.Path('/opt/metal-accept-probe')\n"
        f"ran = sandbox.Sandbox(machine.Local(), '{UNIT}', '/usr/bin/python3').run('probe', 60.0)\n"
        "print(json.dumps({'answer': ran.answer, 'differences': ran.differences, 'out': ran.output}))\n"
    )
    python = lab.ssh(HOST, "readlink -f /usr/local/bin/metal").strip().rpartition("/")[0] + "/python"
    file = "/opt/metal-accept-probe/probe.py"
    lab.ssh(HOST, f"mkdir -p {file.rpartition('/')[0]} && printf %s {shlex.quote(probe)} > {file}; "
                  "touch /tmp/somebody-elses")  # fmt: skip
    try:
        ran = json.loads(lab.ssh(HOST, f"{python} -c {shlex.quote(driver)}"))
    finally:
        lab.ssh(HOST, "rm -rf /opt/metal-accept-probe /tmp/somebody-elses")
    assert ran["differences"] == [], ran
    answer = ran["answer"]
    main = show(lab, "MainPID")
    theirs = dict(line.split(":\t", 1) for line in lab.ssh(HOST, f"cat /proc/{main}/status").splitlines())
    for name in ("Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "CapEff", "CapBnd", "CapPrm", "Umask"):
        assert answer["status"][name] == theirs[name], name
    assert answer["seccomp"].strip() == "2"
    assert answer["write"] is False
    assert "somebody-elses" not in answer["tmp"]
    rows = [
        line for line in answer["limits"].splitlines() if re.match(r"Max (?:open files|locked memory)", line)
    ]
    assert all(row in lab.ssh(HOST, f"cat /proc/{main}/limits") for row in rows)


def test_the_engine_is_away_only_meanwhile(lab: Lab, beside: Accepted, tmp_path: Path) -> None:
    before = show(lab, "ActiveEnterTimestamp")
    made = accept(lab, tmp_path, "--stop-engine", "--anonymise", "--only", "cuda", "--only", "golden_answer")
    assert made.states == {"cuda": "failed", "golden_answer": "passed"}, made.output
    assert show(lab, "ActiveState") == "active"
    assert show(lab, "ActiveEnterTimestamp") != before
    assert leftovers(lab) == ""
    everything = "".join(made.bundle().values())
    assert not re.search(r"GPU-[0-9a-f]{8}-", everything)
    address = lab.ssh(HOST, "hostname -I").split()[0]
    assert address not in everything


def test_a_killed_command_leaves_a_running_engine(lab: Lab, beside: Accepted) -> None:
    lab.ssh(HOST, "systemd-run --quiet --unit=killed --property=KillMode=process "
                  "/usr/local/bin/metal accept --local --stop-engine --only cuda")  # fmt: skip
    began = time.monotonic()
    while show(lab, "ActiveState") != "inactive":
        assert time.monotonic() - began < PATIENCE
        time.sleep(0.2)
    assert show(lab, "ActiveState", GUARD) == "active"
    lab.ssh(HOST, f"kill -KILL {show(lab, 'MainPID', 'killed.service')}")
    wait(lab, "active")
    assert show(lab, "ActiveState", GUARD) in {"inactive", ""}
    lab.ssh(HOST, "systemctl stop 'metal-accept-*.service' killed.service; systemctl reset-failed; "
                  "rm -rf /run/systemd/system/metal-accept-* /run/metal-accept; "
                  "systemctl daemon-reload")  # fmt: skip


def play(lab: Lab, place: Path, *only: str) -> Run:
    variables = {"metal_acceptance_directory": str(place), "metal_acceptance_only": only}
    return lab.play("playbooks/accept.yml", "--limit", HOST, "--extra-vars", json.dumps(variables))


def test_the_playbook_is_the_same(lab: Lab, beside: Accepted, tmp_path: Path) -> None:
    run = play(lab, tmp_path, "device_nodes", "golden_answer")
    assert run.returncode == 0, run.output
    assert json.loads((tmp_path / "report.json").read_text())["accepted"] is True
    assert run.changed.get(HOST, []) == []
    assert lab.api_key not in run.output


def test_a_failed_check_fails_the_play(lab: Lab, beside: Accepted, tmp_path: Path) -> None:
    lab.ssh(HOST, "mv /dev/nvidia2 /dev/nvidia2.away")
    try:
        run = play(lab, tmp_path, "device_nodes")
    finally:
        lab.ssh(HOST, "mv /dev/nvidia2.away /dev/nvidia2")
    assert run.returncode == 2
    assert "no /dev/nvidia2" in run.output
    assert "not accepted: 1 failed" in run.output

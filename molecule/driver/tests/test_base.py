"""What comes with the driver on the hosts that the scenario converged: compilers, and the tuned system."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

from tests.support.site import Lab, Run

PLAYBOOK = "molecule/driver/converge.yml"
CUDA = {"gpu01": "13.0", "gpu02": "13.1"}
LIMITS = "/etc/security/limits.d/90-minimax-metal.conf"
JOURNAL = "/etc/systemd/journald.conf.d/90-minimax-metal.conf"
TASK = "Write the limits, the journal's size and the kernel's settings"
RESTART = "Restart the journal and apply the size of /dev/shm"


@pytest.fixture(scope="module")
def lab() -> Lab:
    return Lab(os.environ.get("METAL_LAB_NAME", "driver"), "inventories/lab-driver")


@pytest.fixture(params=sorted(CUDA))
def host(request: pytest.FixtureRequest, lab: Lab) -> Host:
    found = testinfra.get_host(f"ssh://{request.param}", ssh_config=str(lab.state / "ssh_config"))
    found.name = request.param
    return found


def play(lab: Lab, tag: str, **variables: Any) -> Run:
    run = lab.play(PLAYBOOK, "--tags", tag, "--limit", "gpu01", "--extra-vars", json.dumps(variables))
    assert run.returncode == 0, run.output
    return run


def tune(lab: Lab, **variables: Any) -> set[str]:
    """Run role host_tuning on gpu01 and return what it changed."""
    return set(play(lab, "host_tuning", **variables).changed.get("gpu01", []))


def test_engine_finds_what_it_compiles_with(host: Host) -> None:
    version = CUDA[host.name]
    assert f"release {version}" in host.check_output(f"/usr/local/cuda-{version}/bin/nvcc --version")
    for program in ("g++", "ninja"):
        assert host.run(f"{program} --version").rc == 0
    assert host.run("test -f /usr/include/python3.*/Python.h").rc == 0


def test_second_toolkit_changes_nothing_for_the_engine_of_the_first(lab: Lab) -> None:
    lab.ssh("gpu01", "apt-get -qq -y --no-install-recommends install cuda-nvcc-13-1 cuda-cudart-dev-13-1 >&2")
    assert lab.ssh("gpu01", "readlink --canonicalize /usr/local/cuda") == "/usr/local/cuda-13.1\n"
    assert "release 13.0" in lab.ssh("gpu01", "/usr/local/cuda-13.0/bin/nvcc --version")
    assert play(lab, "cuda_toolkit").changed == {}


def test_compiler_that_went_comes_back(lab: Lab) -> None:
    lab.ssh("gpu01", "apt-get -qq -y remove ninja-build cuda-nvcc-13-0 >&2")
    changed = play(lab, "cuda_toolkit").changed["gpu01"]
    assert changed == ["Install the compilers and the CUDA toolkit of the plan"]
    assert "release 13.0" in lab.ssh("gpu01", "/usr/local/cuda-13.0/bin/nvcc --version")
    assert lab.ssh("gpu01", "ninja --version")


def test_host_is_tuned_without_touching_a_kernel_that_is_not_its_own(host: Host) -> None:
    assert host.file(JOURNAL).exists
    assert host.file(LIMITS).exists
    assert not host.file("/etc/sysctl.d/90-minimax-metal.conf").exists
    assert not host.file("/etc/tmpfiles.d/minimax-metal.conf").exists


def test_each_setting_of_the_system_is_kept_and_can_be_switched_off(lab: Lab) -> None:
    lab.ssh("gpu01", f"echo 'root - nofile 3' > {LIMITS}; echo '[Journal]' > {JOURNAL}")
    assert tune(lab) == {TASK, RESTART}
    assert "root - nofile 1048576" in lab.ssh("gpu01", f"cat {LIMITS}")
    assert tune(lab, host_tuning_journal_max="2G") == {TASK, RESTART}
    assert "SystemMaxUse=2G" in lab.ssh("gpu01", f"cat {JOURNAL}")
    off = {"host_tuning_limits": False, "host_tuning_journal_max": "", "host_tuning_time_sync": False}
    assert tune(lab, **off) == {TASK, RESTART}
    assert lab.ssh("gpu01", f"ls {LIMITS} {JOURNAL}", check=False) == ""
    assert tune(lab, **off) == set()
    assert tune(lab) == {TASK, RESTART}
    assert tune(lab) == set()


def test_host_without_a_time_service_gets_one_unless_told_not_to(lab: Lab) -> None:
    lab.ssh("gpu01", "apt-get -qq -y purge systemd-timesyncd >&2")
    there = "dpkg-query -W -f '${db:Status-Status}' systemd-timesyncd 2>/dev/null || true"
    assert tune(lab, host_tuning_time_sync=False) == set()
    assert lab.ssh("gpu01", there) != "installed"
    assert tune(lab) == {"Install a time service on a host without one"}
    assert lab.ssh("gpu01", there) == "installed"

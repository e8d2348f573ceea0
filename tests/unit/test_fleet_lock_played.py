"""Who takes the fleet lock, run by Ansible with roles that only log their calls."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from minimax_metal.controller.run.holder import this_run
from minimax_metal.host import lock
from tests.support.rollout import UNIT, Stage

HOSTS = ("gpu01", "gpu02")
STOPPED = [f"{UNIT} stopped", "sglang.target stopped"]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path, hosts=HOSTS)


def held(stage: Stage) -> list[str]:
    return [host for host in stage.hosts if stage.lock(host).exists()]


def test_who_is_at_work_is_said_and_nobody_stops_anything_beside_him(stage: Stage) -> None:
    """Also if the other run has its lock on a host outside this one's limit."""
    stage.held("gpu02", run="other", user="eve")
    refused = stage.play("playbooks/stop.yml", "--limit", "gpu01")
    assert refused.returncode == 2
    assert (
        "gpu02: found the fleet locked by eve@desk since noon (site.yml, run other, process 1); expected "
        "nobody else at work on it; wait until that run has ended or, when it is dead, take the lock from "
        "it with -e metal_lock_break=true"
    ) in refused.output
    assert refused.log == []
    # What was taken on other hosts is given back; the other run keeps its own.
    assert held(stage) == ["gpu02"]

    broken = stage.play("playbooks/stop.yml", variables={"metal_lock_break": True})
    assert broken.returncode == 0, broken.output
    assert "gpu02: took the lock of eve@desk since noon (site.yml, run other, process 1)" in broken.output
    assert (broken.of("gpu01"), broken.of("gpu02")) == (STOPPED, STOPPED)
    assert held(stage) == []


def test_a_run_of_this_controller_that_has_ended_is_in_nobodys_way(stage: Stage) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        lock.take(this_run(child.pid, ["site.yml"]), stage.lock("gpu02"))
        refused = stage.play("playbooks/stop.yml")
        assert (refused.returncode, refused.log) == (2, [])
        assert held(stage) == ["gpu02"]
    finally:
        child.communicate(b"\n", timeout=30)
    ended = stage.play("playbooks/stop.yml")
    assert ended.returncode == 0, ended.output
    assert "; that run has ended" in ended.output
    assert ended.of("gpu02") == STOPPED
    assert held(stage) == []


def test_the_site_holds_the_lock_from_the_driver_to_the_last_check(stage: Stage) -> None:
    """A host that fails on the way releases it, and the others continue with theirs."""
    played = stage.play("site.yml", faults=["gpu02 cuda_toolkit new"])
    assert played.returncode == 2
    assert "cuda_toolkit is bad" in played.output
    locked = [line.split()[1] for line in played.locked if line.startswith("gpu01 ")]
    assert locked == [
        *("nvidia_driver/main", "cuda_toolkit/main", "sglang_runtime/main", "model_weights/main"),
        *("endpoint_firewall/main", "sglang_service/main", "post_check/main", "release_record/main"),
    ]
    free = {line.split()[0] for line in played.of("gpu01")} - set(locked)
    assert {"package_sources/main", "host_tools/main", "model_weights/start", "host_tuning/main"} <= free
    assert [line.split()[0] for line in played.of("gpu02")][-1] == "cuda_toolkit/main"
    assert held(stage) == []

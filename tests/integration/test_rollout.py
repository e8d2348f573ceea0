"""rollout.yml and rollback.yml on four lab hosts behind two gateways, with the simulated engine.

Slow. ``METAL_LAB_NAME`` names a running lab of ``lab/labs/fleet.yml`` that is used as it is, and left;
``METAL_KILLS`` sets how often the controller is killed (20), ``METAL_SEED`` when.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.links import journal
from tests.support.site import REPOSITORY, Lab, Run, booted

UNIT = "sglang@minimax-m2.5.service"
HOSTS = ("gpu01", "gpu02", "gpu03", "gpu04")
KILLS = int(os.environ.get("METAL_KILLS", "20"))
SEED = int(os.environ.get("METAL_SEED", "7"))
QUICK = {
    "metal_rollout_soak_seconds": 2,
    "metal_rollout_drain_seconds": 5,
    "metal_rollout_trial_requests": 8,
    "post_check_figures": [],
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with booted("rollout", "fleet", "inventories/lab-fleet") as lab:
        # A rollout of hosts that have nothing yet is their first deployment; the gateways come before it.
        for playbook in ("site.yml", "playbooks/gateway.yml") if lab.fresh else ():
            run = lab.play(playbook, "-e", json.dumps(QUICK))
            assert run.returncode == 0, run.output
        yield lab


def words(release: str, **more: Any) -> list[str]:
    """Settings that make a separate release: an environment variable that the simulated engine ignores."""
    environment = {"SIMULATED_RELEASE": release} | more.pop("environment", {})
    return ["-e", json.dumps(QUICK | {"metal_engine_extra_environment": environment} | more)]


def roll(lab: Lab, release: str, *arguments: str, **more: Any) -> Run:
    return lab.play("playbooks/rollout.yml", *words(release, **more), "--tags", "rollout", *arguments)


def state(lab: Lab, host: str) -> dict[str, Any]:
    """What a host serves, according to its unit, record and journal."""
    text = lab.ssh(
        host,
        f"systemctl is-active {UNIT}; systemctl show -P ExecMainStartTimestampMonotonic {UNIT}; "
        f"grep -o 'SIMULATED_RELEASE=[a-z0-9-]*' /etc/systemd/system/{UNIT} | cut -d= -f2; "
        "cat /var/lib/minimax-metal/releases/current; echo; echo ===; "
        "metal rollout-state show; echo ===; metal lock show || true",
    )
    active, started, release, rest = text.split("\n", 3)
    record, journal, lock = rest.split("===")
    return {
        "active": active,
        "started": started,
        "release": release,
        "record": json.loads(record)["plan"]["service"]["environment"].get("SIMULATED_RELEASE"),
        "journal": json.loads(journal) or {},
        "lock": lock.strip(),
    }


def drained(lab: Lab) -> list[str]:
    """Workers that a gateway keeps out of its pool."""
    found: list[str] = []
    for gateway in ("gw01", "gw02"):
        path = "/var/lib/minimax-metal/gateway/drained.json"
        text = lab.ssh(gateway, f"test -e {path} && cat {path} || true")
        found += json.loads(text)["drained"] if text else []
    return found


def consistent(lab: Lab, allowed: set[str]) -> None:
    """Every host serves a release that is recorded, finished and in the pool, and nobody holds the lock."""
    for host in HOSTS:
        now = state(lab, host)
        assert now["active"] == "active", (host, now)
        assert now["release"] in allowed, (host, now)
        assert now["record"] == now["release"], (host, now)
        assert now["journal"].get("ended"), (host, now)
        assert now["lock"] == "free", (host, now)
    assert drained(lab) == []


def test_a_release_reaches_every_host_and_a_second_run_touches_none(lab: Lab) -> None:
    run = roll(lab, "one")
    assert run.returncode == 0, run.output
    consistent(lab, {"one"})
    before = {host: state(lab, host)["started"] for host in HOSTS}
    again = roll(lab, "one")
    assert again.returncode == 0, again.output
    assert again.changed == {}, again.changed
    assert {host: state(lab, host)["started"] for host in HOSTS} == before


def test_check_mode_writes_nothing(lab: Lab) -> None:
    before = {host: lab.written(host) for host in HOSTS}
    run = roll(lab, "never", "--check", "--diff")
    assert run.returncode == 0, run.output
    assert "SIMULATED_RELEASE=never" in run.output
    assert {host: lab.written(host) for host in HOSTS} == before


@pytest.mark.parametrize("fault", ["no_start", "wrong_answer", "late_errors:40"])
def test_a_bad_release_stops_at_the_first_host_and_undoes_itself(lab: Lab, fault: str) -> None:
    run = roll(lab, "bad", environment={"SIMULATED_FAULTS": fault})
    assert run.returncode == 2, run.output
    assert "gpu01: rolled back to its previous release, serving" in run.output
    assert "not touched: gpu02, gpu03, gpu04" in run.output
    consistent(lab, {"one"})
    assert state(lab, "gpu01")["journal"]["result"] == "returned"
    assert state(lab, "gpu02")["journal"]["result"] == "done"


def test_hosts_that_are_changed_return_as_well_when_asked(lab: Lab) -> None:
    # Each host has a release of its own, and the third's is bad.
    bad = "{{ 'no_start' if inventory_hostname == 'gpu03' else '' }}"
    run = roll(lab, "two", environment={"SIMULATED_FAULTS": bad}, metal_rollout_on_failure="revert")
    assert run.returncode == 2, run.output
    consistent(lab, {"one"})


def test_another_operator_is_refused_until_the_lock_is_broken(lab: Lab) -> None:
    lab.ssh("gpu03", "metal lock take --run other --user eve --controller desk --pid 1 --command rollout.yml")
    run = roll(lab, "two", "--limit", "gpu01")
    assert run.returncode == 2, run.output
    assert "gpu03: found the fleet locked by eve@desk since" in run.output
    consistent_lock = lab.ssh("gpu01", "metal lock show").strip()
    assert consistent_lock == "free"
    broken = roll(lab, "two", "--limit", "gpu01", metal_lock_break=True)
    assert broken.returncode == 0, broken.output
    consistent(lab, {"one", "two"})


def test_the_floor_counts_hosts_outside_of_the_limit(lab: Lab) -> None:
    run = roll(lab, "three", "--limit", "gpu01", metal_rollout_min_ready=4)
    assert run.returncode == 2, run.output
    assert "found 4 replicas" in run.output
    assert "no engine was stopped" in run.output
    consistent(lab, {"one", "two"})


def test_a_part_of_a_hosts_change_is_refused(lab: Lab) -> None:
    run = lab.play("playbooks/rollout.yml", *words("three"), "--tags", "stop")
    assert run.returncode == 2, run.output
    assert "found the tags stop, expected all stages" in run.output


def test_a_rollback_takes_a_host_back_without_a_download(lab: Lab) -> None:
    run = lab.play("playbooks/rollback.yml", *words("ignored"), "--limit", "gpu01")
    assert run.returncode == 0, run.output
    assert state(lab, "gpu01")["release"] == "one"
    consistent(lab, {"one"})
    missing = lab.play("playbooks/rollback.yml", *words("ignored"), "-e", "metal_rollback_to=99")
    assert missing.returncode == 2
    assert "found no release 99, kept: 0001-" in missing.output


def killed(lab: Lab, release: str, after: float) -> bool:
    """Start a rollout and kill its whole process group after some seconds; return whether it was still
    running.
    """
    process = subprocess.Popen(
        [
            *(str(Path(sys.executable).with_name("ansible-playbook")), "playbooks/rollout.yml"),
            *("--inventory", lab.inventory, "--inventory", str(lab.state / "inventory" / "hosts.yml")),
            *(*words(release, metal_lock_break=True), "--tags", "rollout"),
        ],
        cwd=REPOSITORY,
        env={**os.environ, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def test_the_run_after_a_killed_controller_ends_in_a_consistent_fleet(lab: Lab) -> None:
    began = time.monotonic()
    whole = roll(lab, "kill-0", metal_lock_break=True)
    assert whole.returncode == 0, whole.output
    length = time.monotonic() - began
    moments = random.Random(SEED)  # noqa: S311 - moments, not secrets
    kills = 0
    for number in range(1, 2 * KILLS + 1):
        after = moments.uniform(0.05, 0.95) * length
        release = f"kill-{number}"
        was_killed = killed(lab, release, after)
        if was_killed:
            kills += 1
        else:
            length = after  # this machine has less to do than when a whole rollout was timed
        moment = f"after {after:.1f} of {length:.1f} s"
        time.sleep(3)  # what a host was told to do last goes on for a moment
        left = {host: found for host in HOSTS if (found := journal(lab, host)) and not found.get("ended")}
        where = (
            ", ".join(f"{host} at {found.get('stage')}" for host, found in left.items()) or "no host at work"
        )
        print(f"kill {kills} of {KILLS} (seed {SEED}): {moment}, {was_killed=}, {where}", flush=True)
        if number % 5 == 0:
            # Back instead of forward: hosts of the killed run return, the others are on that release already.
            release = f"kill-{number - 1}"
        run = roll(lab, release, metal_lock_break=True)
        assert run.returncode == 0, run.output
        said = " ".join(run.output.split())
        for host, found in left.items():
            assert f"{host}: rollout {found['run']}, begun {found['started']}, stopped at stage" in said, said
        consistent(lab, {release})
        if kills == KILLS:
            return
    pytest.fail(f"{kills} of {2 * KILLS} rollouts still ran when they were to be killed, expected {KILLS}")

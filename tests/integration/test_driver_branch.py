"""A fleet moves from one driver branch to the next as a rollout, after the old one left the index.

Two replicas behind a gateway with the simulated engine, and the vendor's repository at two ages.
``METAL_LAB_NAME`` names a running lab of ``lab/labs/branch.yml`` that is used as it is, and left.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest
import yaml

from lab.vendor.repository import build
from tests.support.site import Lab, Run, booted

HOSTS = ("gpu01", "gpu02")
UNIT = "sglang@minimax-m2.5.service"
QUICK = {
    "metal_rollout_soak_seconds": 2,
    "metal_rollout_drain_seconds": 5,
    "metal_rollout_trial_requests": 8,
    "post_check_figures": [],
}
OLD, NEW = "580.159.04", "595.91.07"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with booted("branch", "branch", "inventories/lab-pair") as lab:
        for playbook in ("site.yml", "playbooks/gateway.yml") if lab.fresh else ():
            run = play(lab, playbook)
            assert run.returncode == 0, run.output
        yield lab


def play(lab: Lab, playbook: str, *arguments: str, **variables: Any) -> Run:
    return lab.play(playbook, "-e", json.dumps(QUICK | variables), *arguments)


def versions(lab: Lab) -> dict[str, str]:
    """The driver of each host."""
    query = "nvidia-smi --query-gpu=driver_version --format=csv,noheader | sort -u"
    return {host: lab.ssh(host, query).strip() for host in HOSTS}


def seconds(lab: Lab, host: str, what: str, *of: str) -> int:
    shown = lab.ssh(host, f"systemctl show --timestamp=unix --value --property={what} {' '.join(of)}")
    return int(shown.strip().removeprefix("@"))


def said(run: Run) -> str:
    return " ".join(run.output.split())


@contextmanager
def asked(lab: Lab) -> Iterator[Counter[str]]:
    """Ask the gateway for a short answer repeatedly; yield how often each kind of outcome occurred."""
    hosts = yaml.safe_load((lab.state / "inventory/hosts.yml").read_text())["all"]
    address = hosts["hosts"]["gw01"]["ansible_host"]
    body = json.dumps(
        {"model": "MiniMaxAI/MiniMax-M2.5", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    )
    headers = {"Authorization": f"Bearer {lab.api_key}", "Content-Type": "application/json"}
    outcomes: Counter[str] = Counter()
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            request = Request(f"http://{address}:30000/v1/chat/completions", body.encode(), headers)
            try:
                with urlopen(request, timeout=30) as answer:  # noqa: S310  the lab's own gateway
                    outcomes[str(answer.status)] += 1
            except HTTPError as error:
                outcomes[str(error.code)] += 1
            except (URLError, OSError) as error:
                outcomes[type(error).__name__] += 1
            time.sleep(0.5)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield outcomes
    finally:
        done.set()
        thread.join(60)


@pytest.fixture(scope="module")
def later(lab: Lab) -> Lab:
    """The lab some months later: hosts run 580, and the vendor's index no longer has it."""
    if lab.fresh:
        assert versions(lab) == dict.fromkeys(HOSTS, OLD)
    build(lab.state / "vendor", lab.state / "vendor-keys", age="later")
    for host in HOSTS:
        lab.ssh(host, "apt-get -qq update >&2")
        assert OLD not in lab.ssh(host, "apt-cache madison nvidia-driver-cuda")
    return lab


def test_a_fleet_keeps_a_branch_that_lives_and_left_the_index(later: Lab) -> None:
    run = play(later, "playbooks/provision.yml", "--tags", "nvidia_driver")
    assert run.returncode == 0, run.output
    assert run.changed == {}
    assert versions(later) == dict.fromkeys(HOSTS, OLD)


def test_a_fleet_whose_branch_is_over_is_refused_and_serves_on(later: Lab) -> None:
    started = {host: seconds(later, host, "ExecMainStartTimestamp", UNIT) for host in HOSTS}
    run = play(later, "playbooks/rollout.yml", metal_plan_date="2028-07-01")
    assert run.returncode != 0
    text = said(run)
    for host in HOSTS:
        assert (
            f"{host}: driver-branch-over" in text
            or "driver branch 580 (LTS), which ended on 2028-06-30" in text
        )
    assert 'set metal_driver_branch: "620" and run playbooks/rollout.yml' in text.replace('\\"', '"')
    assert run.changed == {}
    assert {host: seconds(later, host, "ExecMainStartTimestamp", UNIT) for host in HOSTS} == started


def test_a_rollout_moves_the_fleet_host_by_host_and_clients_notice_nothing(later: Lab) -> None:
    with asked(later) as outcomes:
        run = play(later, "playbooks/rollout.yml", "--tags", "rollout", metal_driver_branch="595")
    assert run.returncode == 0, run.output
    assert versions(later) == dict.fromkeys(HOSTS, NEW)
    assert set(outcomes) == {"200"}, outcomes
    assert outcomes["200"] > 50
    first, last = sorted(HOSTS, key=lambda host: seconds(later, host, "UserspaceTimestamp"))
    # The second went down after the first served again.
    assert seconds(later, last, "UserspaceTimestamp") > seconds(later, first, "ActiveEnterTimestamp", UNIT)
    for host in HOSTS:
        assert later.ssh(host, f"systemctl is-active {UNIT}") == "active\n"
        record = json.loads(later.ssh(host, "cat /var/lib/minimax-metal/releases/current"))
        assert record["plan"]["driver"]["branch"] == "595"
    again = play(later, "playbooks/rollout.yml", "--tags", "rollout", metal_driver_branch="595")
    assert again.returncode == 0, again.output
    assert again.changed == {}


def test_the_way_back_to_a_branch_that_left_the_index_is_one_line(later: Lab) -> None:
    started = {host: seconds(later, host, "ExecMainStartTimestamp", UNIT) for host in HOSTS}
    # Whole: what a rollout needs is looked for before it drains, by the stage that --tags rollout leaves out.
    run = play(later, "playbooks/rollout.yml", metal_driver_branch="580")
    assert run.returncode != 0
    line = said(run)
    assert "found nvidia-kernel-open-dkms 595.91.07, 620.70.06 in apt's lists, expected branch 580" in line
    assert "no longer has a driver of branch 580: set metal_driver_branch to 595 or 620" in line
    assert "Traceback" not in run.output
    assert versions(later) == dict.fromkeys(HOSTS, NEW)
    assert {host: seconds(later, host, "ExecMainStartTimestamp", UNIT) for host in HOSTS} == started

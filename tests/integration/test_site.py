"""site.yml on two fresh lab hosts: check mode, the path to a reply, idempotence, drift, reboot, stop.

Long: it starts engines several times. `METAL_LAB_NAME` names a running lab that is used as it is, and left.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator

import pytest

from tests.support.site import Lab

UNIT = {"gpu01": "sglang@minimax-m2.5.service", "gpu02": "sglang@minimax-m3.service"}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if name := os.environ.get("METAL_LAB_NAME"):
        yield Lab(name)
        return
    fresh = Lab("integration")
    fresh.lab("--file", "lab/labs/demo.yml", "up")
    try:
        yield fresh
    finally:
        fresh.lab("down")


def started(lab: Lab, host: str) -> str:
    return lab.ssh(host, f"systemctl show -P ExecMainStartTimestampMonotonic {UNIT[host]}")


def test_check_mode_on_a_bare_host_runs_through_and_writes_nothing(lab: Lab) -> None:
    if lab.ssh("gpu01", "test -e /opt/minimax-metal && echo there || true").strip():
        pytest.skip("the hosts are not bare: this lab was used before")
    before = {host: lab.written(host) for host in UNIT}
    run = lab.play("site.yml", "--check", "--diff")
    assert run.returncode == 0, run.output
    assert {host: lab.written(host) for host in UNIT} == before


def test_site_ends_in_a_verified_reply(lab: Lab) -> None:
    run = lab.play("site.yml")
    assert run.returncode == 0, run.output
    for host in UNIT:
        address = lab.ssh(host, "hostname -I").split()[0]
        request = urllib.request.Request(
            f"http://{address}:8000/v1/models", headers={"Authorization": f"Bearer {lab.api_key}"}
        )
        with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310 - as above
            assert json.load(reply)["data"][0]["id"].startswith("MiniMaxAI/MiniMax-M")


def test_a_second_run_changes_nothing_and_restarts_nothing(lab: Lab) -> None:
    before = {host: started(lab, host) for host in UNIT}
    run = lab.play("site.yml")
    assert run.returncode == 0, run.output
    assert {host: counts["changed"] for host, counts in run.recap.items()} == dict.fromkeys(UNIT, 0), (
        run.changed
    )
    assert {host: started(lab, host) for host in UNIT} == before


def test_check_mode_on_a_finished_host_writes_nothing(lab: Lab) -> None:
    before = {host: lab.written(host) for host in UNIT}
    run = lab.play("site.yml", "--check", "--diff")
    assert run.returncode == 0, run.output
    assert run.changed == {}
    assert {host: lab.written(host) for host in UNIT} == before


# What is damaged on which host, the role that repairs it, and exactly the tasks that must report a change.
DRIFT = [
    ("gpu01", "rm /usr/local/bin/metal", "host_tools", {"The metal command is on the path"}),
    ("gpu01", "ln -sfn /nowhere /opt/minimax-metal/current", "host_tools", {"The environment is the one in use"}),
    ("gpu01", "rm -r $(realpath /opt/minimax-metal/current)/lib/python3*/site-packages/rich*", "host_tools",
     {"The locked packages and the host-side package are in the environment"}),
    ("gpu01", "chmod 0700 /etc/minimax-metal", "host_tools", {"Directories of the host tools exist"}),
    ("gpu01", "usermod --shell /bin/sh sglang", "host_tools", {"The user of the service exists"}),
    ("gpu01", "echo x >> /etc/minimax-metal/weights/minimax-m2.5.json", "model_weights",
     {"The request says what is to be pulled"}),
    ("gpu01", "echo x >> /etc/systemd/system/metal-weights@minimax-m2.5.service", "model_weights",
     {"The unit of the pull is there"}),
    ("gpu01", "systemctl --quiet disable metal-weights@minimax-m2.5.service", "model_weights",
     {"The pull goes on after a reboot"}),
    ("gpu01", "rm /etc/apt/sources.list.d/minimax-metal-nvidia.sources", "nvidia_driver", {"The repository is apt's"}),
    ("gpu01", "rm /etc/apt/keyrings/minimax-metal-nvidia.asc", "nvidia_driver", {"The key is apt's for this repository"}),
    ("gpu01", "rm /etc/apt/apt.conf.d/80minimax-metal-nvidia", "nvidia_driver", {"The proxy of the repository is apt's"}),
    ("gpu01", "apt-mark unhold $(apt-mark showhold | head -1)", "nvidia_driver", {"The packages of the driver are held"}),
    ("gpu01", "systemctl --quiet disable nvidia-persistenced", "nvidia_driver", {"The services of the driver run"}),
    ("gpu02", "systemctl stop nvidia-fabricmanager", "nvidia_driver", {"The services of the driver run"}),
    ("gpu01", "dpkg --remove --force-depends ninja-build", "cuda_toolkit", {"The compilers and the CUDA toolkit of the plan are installed"}),
    ("gpu01", "echo '# x' >> $(ls /opt/sglang/*/minimax-metal/*.txt)", "sglang_runtime",
     {"The lock and the extra packages are on the host"}),
    ("gpu01", "rm -r $(ls -d /opt/sglang/*/lib/python3*/site-packages/tabulate*)", "sglang_runtime",
     {"The engine and its plug-ins are in the environment, compiled to byte code"}),
    ("gpu01", "systemctl --quiet disable sglang@minimax-m2.5.service", "sglang_service",
     {"The instances and their target start at boot"}),
    ("gpu01", "rm /etc/systemd/system/sglang.target", "sglang_service", {"The target of all instances is there"}),
    ("gpu01", "systemctl stop sglang@minimax-m2.5.service", "sglang_service", {"The instances and their target are started"}),
    ("gpu01", "echo '# x' >> /etc/systemd/system/sglang@minimax-m2.5.service", "sglang_service",
     {"The unit of each instance is there", "Restart changed instances"}),
    ("gpu01", "rm /var/lib/minimax-metal/releases/current", "release_record",
     {"The verified plan is the newest release record"}),
]  # fmt: skip


@pytest.mark.parametrize(("host", "damage", "role", "tasks"), DRIFT, ids=[case[1] for case in DRIFT])
def test_drift_is_repaired_by_exactly_the_task_that_manages_it(
    lab: Lab, host: str, damage: str, role: str, tasks: set[str]
) -> None:
    lab.ssh(host, damage)
    repair = lab.play("site.yml", "--limit", host, "--tags", role)
    assert repair.returncode == 0, repair.output
    assert set(repair.changed.get(host, [])) == tasks, repair.output
    again = lab.play("site.yml", "--limit", host, "--tags", role)
    assert again.returncode == 0, again.output
    assert again.changed == {}


def test_a_reboot_brings_the_endpoint_back_by_itself(lab: Lab) -> None:
    before = lab.ssh("gpu01", "cat /proc/sys/kernel/random/boot_id")
    lab.lab("reboot", "gpu01")
    assert lab.ssh("gpu01", "cat /proc/sys/kernel/random/boot_id") != before
    # Starting a unit that is being started waits for it: this is what an operator would type.
    lab.ssh("gpu01", f"systemctl start {UNIT['gpu01']}")
    check = (
        "metal check http://127.0.0.1:8000 --model MiniMaxAI/MiniMax-M2.5"
        " --api-key-file /etc/sglang/minimax-m2.5/api_key"
    )
    assert lab.ssh("gpu01", f"{check} >&2; echo $?") == "0\n"


def test_status_names_the_release_and_stop_stops(lab: Lab) -> None:
    status = lab.play("playbooks/status.yml", "--limit", "gpu01")
    assert status.returncode == 0, status.output
    assert "ActiveState=active" in status.output
    assert "Release: MiniMaxAI/MiniMax-M2.5 on SGLang" in status.output
    stop = lab.play("playbooks/stop.yml", "--limit", "gpu01")
    assert stop.returncode == 0, stop.output
    assert lab.ssh("gpu01", f"systemctl is-active {UNIT['gpu01']}", check=False) == "inactive\n"
    assert lab.ssh("gpu01", "pgrep -u sglang -c .", check=False) == "0\n"


def test_an_unknown_model_is_refused_before_anything_changes(lab: Lab) -> None:
    before = lab.written("gpu01")
    run = lab.play("site.yml", "--limit", "gpu01", "--extra-vars", "metal_model=MiniMax-M9")
    assert run.returncode != 0
    assert "MiniMax-M9" in run.output
    assert run.changed == {}
    assert lab.written("gpu01") == before

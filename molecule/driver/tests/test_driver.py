"""The driver's life on two hosts: installed and booted, upgraded, downgraded, repaired, left to the operator.

The tests run in order: each goes on from the host that the one before left. They play the scenario's converge
playbook again with other settings; what a run changed is read from what it printed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

from lab.vendor.repository import build
from tests.support.site import Lab, Run

PLAYBOOK = "molecule/driver/converge.yml"
HOSTS = ("gpu01", "gpu02")
FIRST = {"gpu01": "580.159.04", "gpu02": "595.71.05"}
SWITCHES = {"gpu01": False, "gpu02": True}
COUNT = {"gpu01": 4, "gpu02": 8}
ENGINE = """[Unit]
Description=An engine for the driver to stop
[Service]
ExecStart=/usr/bin/sleep infinity
"""


@pytest.fixture(scope="module")
def lab() -> Lab:
    return Lab(os.environ.get("METAL_LAB_NAME", "driver"), "inventories/lab-driver")


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest, lab: Lab) -> Host:
    found = testinfra.get_host(f"ssh://{request.param}", ssh_config=str(lab.state / "ssh_config"))
    found.name = request.param
    return found


@pytest.fixture(scope="module")
def engines(lab: Lab) -> Iterator[None]:
    """A unit of the engine's name runs on both hosts; it is not enabled, so only the role starts it again."""
    for name in HOSTS:
        lab.ssh(
            name,
            f"cat > /etc/systemd/system/sglang@test.service <<'END'\n{ENGINE}END\n"
            "systemctl daemon-reload && systemctl start sglang@test",
        )
    yield
    for name in HOSTS:
        lab.ssh(name, "systemctl stop sglang@test; rm --force /etc/systemd/system/sglang@test.service")


def play(lab: Lab, *arguments: str, **variables: Any) -> Run:
    return lab.play(PLAYBOOK, "--tags", "nvidia_driver", *arguments, "--extra-vars", json.dumps(variables))


def boot(lab: Lab, name: str) -> str:
    return lab.ssh(name, "cat /proc/sys/kernel/random/boot_id").strip()


def versions(lab: Lab, name: str) -> set[str]:
    """Return what runs: the module's version and what nvidia-smi and the fabric manager say of theirs."""
    found = set(lab.ssh(name, "nvidia-smi --query-gpu=driver_version --format=csv,noheader").split())
    found.add(lab.ssh(name, "awk '/NVRM/ {print $(NF-3)}' /proc/driver/nvidia/version").strip())
    if SWITCHES[name]:
        found.add(lab.ssh(name, "nv-fabricmanager --version").split()[-1])
    return found


def assert_one_booted_after_the_other(lab: Lab) -> None:
    """Of two hosts the one that booted last began when the first answered ssh again."""

    def when(name: str, *of: str) -> int:
        shown = lab.ssh(name, f"systemctl show --timestamp=unix --value --property={' '.join(of)}")
        return int(shown.strip().removeprefix("@"))

    begun = {name: when(name, "UserspaceTimestamp") for name in HOSTS}
    first, last = sorted(HOSTS, key=lambda name: begun[name])
    assert begun[last] >= when(first, "ActiveEnterTimestamp", "ssh.service")


def settled(lab: Lab, **variables: Any) -> None:
    """A run that finds everything done changes nothing."""
    again = play(lab, **variables)
    assert again.returncode == 0, again.output
    assert again.changed == {}


def test_driver_runs_at_one_version_and_sees_all_gpus(host: Host, lab: Lab) -> None:
    assert versions(lab, host.name) == {FIRST[host.name]}
    listed = host.check_output("nvidia-smi -L").splitlines()
    assert len(listed) == COUNT[host.name]


def test_what_must_not_move_is_pinned_held_and_out_of_unattended_upgrades(host: Host) -> None:
    held = set(host.check_output("apt-mark showhold").split())
    assert {"nvidia-driver-cuda", "nvidia-kernel-open-dkms", "libcuda1", "libnvidia-ml1"} <= held
    branch = FIRST[host.name].split(".")[0]
    assert host.package(f"nvidia-driver-pinning-{branch}").is_installed
    policy = host.check_output("apt-cache policy nvidia-fabricmanager")
    assert f"Candidate: {FIRST[host.name]}-1" in policy
    blacklist = host.check_output("apt-config dump Unattended-Upgrade::Package-Blacklist")
    for pattern in ("^nvidia-", "^libnvidia-", "^libcuda1"):
        assert f'"{pattern}"' in blacklist


def test_fabric_manager_is_only_where_there_are_switches(host: Host) -> None:
    assert host.package("nvidia-fabricmanager").is_installed == SWITCHES[host.name]
    state = host.check_output("nvidia-smi --query-gpu=fabric.state --format=csv,noheader").splitlines()
    assert set(state) == {"Completed" if SWITCHES[host.name] else "N/A"}


@pytest.mark.usefixtures("engines")
def test_device_nodes_come_before_the_engine_at_boot(host: Host) -> None:
    assert host.service("nvidia-device-nodes").is_enabled
    assert host.service("nvidia-device-nodes").is_running
    assert host.service("nvidia-persistenced").is_enabled
    assert host.run("test -c /dev/nvidia-uvm -a -c /dev/nvidiactl").rc == 0
    order = host.check_output("systemctl show --property=After sglang@test.service")
    assert "nvidia-device-nodes.service" in order
    assert "blacklist nouveau" in host.file("/etc/modprobe.d/minimax-metal-nouveau.conf").content_string


def test_unattended_upgrades_leave_the_driver_alone(lab: Lab) -> None:
    """Without holds and pins the blacklist alone still keeps it; without the blacklist it would move."""
    own = "/etc/apt/apt.conf.d/52minimax-metal-nvidia"
    trial = 'Unattended-Upgrade::Origins-Pattern { "origin=*"; };\\nDir::Etc::PreferencesParts "/nowhere";\\n'
    lab.ssh(
        "gpu01",
        "apt-get -qq -y --no-install-recommends install unattended-upgrades >&2"
        f" && printf '{trial}' > /etc/apt/apt.conf.d/99trial && apt-mark -qq unhold $(apt-mark showhold)",
    )
    would = "unattended-upgrade --dry-run --debug 2>&1 | grep -A1 'Packages that will be upgraded' || true"
    assert "nvidia" not in lab.ssh("gpu01", would)
    lab.ssh("gpu01", f"mv {own} /root/")
    assert "nvidia-driver-cuda" in lab.ssh("gpu01", would)
    lab.ssh("gpu01", "rm /etc/apt/apt.conf.d/99trial && apt-get -qq -y purge unattended-upgrades >&2")
    repair = play(lab, "--limit", "gpu01")
    assert repair.returncode == 0, repair.output
    assert (
        lab.ssh("gpu01", f"cmp {own} /root/{own.rsplit('/', 1)[-1]} && apt-mark showhold | grep -c .") > "1"
    )


DRIFT = {
    "rm /etc/apt/preferences.d/minimax-metal-nvidia.pref": (
        "Keep what the pin leaves out at the driver's version"
    ),
    "rm /etc/apt/apt.conf.d/52minimax-metal-nvidia": ("Write what keeps the driver loaded and as it is"),
    "apt-mark unhold libcuda1": "Hold the packages of the driver",
    "systemctl --quiet disable nvidia-device-nodes": "Start and enable the services of the driver",
    "systemctl stop nvidia-persistenced": "Start and enable the services of the driver",
}


def test_drift_is_repaired_by_the_tasks_that_manage_it(lab: Lab) -> None:
    before = boot(lab, "gpu01")
    lab.ssh("gpu01", " && ".join(DRIFT))
    repair = play(lab, "--limit", "gpu01")
    assert repair.returncode == 0, repair.output
    assert set(repair.changed["gpu01"]) == set(DRIFT.values())
    assert boot(lab, "gpu01") == before
    settled(lab)


def test_check_mode_says_what_would_be_done_and_does_nothing(lab: Lab) -> None:
    before = {name: lab.written(name) for name in HOSTS}
    run = play(lab, "--check", "--diff", metal_driver_branch="610")
    assert run.returncode == 0, run.output
    assert "driver 580.159.04 will be replaced by 610.57.04" in run.output
    assert "Report what is done about the driver" in run.changed["gpu01"]
    after = {name: lab.written(name) for name in HOSTS}
    # By name: of two long listings that differ nobody sees which file it was.
    wrote = {name: sorted(dict(after[name].items() ^ before[name].items())) for name in HOSTS}
    assert wrote == {"gpu01": [], "gpu02": []}


@pytest.mark.usefixtures("engines")
def test_upgrade_to_another_branch_stops_the_engine_and_starts_it_again(lab: Lab) -> None:
    before = {name: boot(lab, name) for name in HOSTS}
    run = play(lab, metal_driver_branch="610")
    assert run.returncode == 0, run.output
    for name in HOSTS:
        assert "Stop the engines on the driver" in run.changed[name]
        assert versions(lab, name) == {"610.57.04"}
        assert boot(lab, name) != before[name]
        assert lab.ssh(name, "systemctl is-active sglang@test") == "active\n"
    settled(lab, metal_driver_branch="610")


@pytest.mark.usefixtures("engines")
def test_downgrade_to_an_older_branch_takes_everything_with_it(lab: Lab) -> None:
    run = play(lab, metal_driver_branch="590", nvidia_driver_reboot_at_once=1)
    assert run.returncode == 0, run.output
    assert_one_booted_after_the_other(lab)
    for name in HOSTS:
        assert versions(lab, name) == {"590.48.01"}
        left = lab.ssh(name, "dpkg-query -W -f '${Package} ${Version}\\n' '*nvidia*' | grep ' 610' || true")
        assert left == ""
        assert lab.ssh(name, "systemctl is-active sglang@test") == "active\n"


@pytest.mark.usefixtures("engines")
def test_upgrade_that_slipped_in_is_taken_back_without_a_reboot(lab: Lab) -> None:
    before = boot(lab, "gpu01")
    lab.ssh(
        "gpu01",
        "apt-mark -qq unhold $(apt-mark showhold)"
        " && apt-get -qq -y -o Dir::Etc::PreferencesParts=/nowhere -o Dir::Etc::Preferences=/nowhere"
        " --allow-change-held-packages --no-install-recommends install nvidia-driver-cuda >&2",
    )
    assert "version mismatch" in lab.ssh("gpu01", "nvidia-smi", check=False)
    repair = play(lab, "--limit", "gpu01", metal_driver_branch="590")
    assert repair.returncode == 0, repair.output
    assert versions(lab, "gpu01") == {"590.48.01"}
    assert boot(lab, "gpu01") == before
    assert lab.ssh("gpu01", "systemctl is-active sglang@test") == "active\n"


@pytest.mark.usefixtures("engines")
def test_fabric_manager_of_another_version_is_named_and_repaired_without_a_reboot(lab: Lab) -> None:
    before = boot(lab, "gpu02")
    lab.ssh(
        "gpu02",
        "apt-get -qq -y --allow-downgrades --allow-change-held-packages install"
        " nvidia-fabricmanager=590.44.01-1 >&2; systemctl restart nvidia-fabricmanager || true",
    )
    named = play(lab, "--limit", "gpu02", metal_driver_branch="590", nvidia_driver_manage=False)
    assert named.returncode != 0
    assert (
        "gpu02: found nvidia-fabricmanager 590.44.01-1 with driver 590.48.01 loaded, "
        "expected the same version" in " ".join(named.output.split())
    )
    repair = play(lab, "--limit", "gpu02", metal_driver_branch="590")
    assert repair.returncode == 0, repair.output
    assert versions(lab, "gpu02") == {"590.48.01"}
    assert boot(lab, "gpu02") == before


@pytest.mark.usefixtures("engines")
def test_reboot_left_to_the_operator_is_listed_and_the_next_run_goes_on(lab: Lab) -> None:
    settings = {"metal_driver_branch": "610", "nvidia_driver_reboot": "never"}
    before = {name: boot(lab, name) for name in HOSTS}
    run = play(lab, **settings)
    assert run.returncode != 0
    assert "2 hosts wait for a reboot: gpu01, gpu02" in run.output
    for name in HOSTS:
        assert f"{name}: found kernel module 590.48.01 is loaded" in " ".join(run.output.split())
        assert boot(lab, name) == before[name]
        lab.lab("reboot", name)
    after = play(lab, **settings)
    assert after.returncode == 0, after.output
    for name in HOSTS:
        assert versions(lab, name) == {"610.57.04"}
        assert lab.ssh(name, "systemctl is-active sglang@test") == "active\n"


def test_removal_leaves_what_was_not_named_and_is_done_once(lab: Lab) -> None:
    weights = ("/srv/models/MiniMaxAI/MiniMax-M2.5/rev", "/srv/models/MiniMaxAI/MiniMax-M3/rev")
    lab.ssh("gpu01", f"mkdir -p {' '.join(weights)} && touch {weights[0]}/shard {weights[1]}/shard")

    def remove(*arguments: str, **wishes: Any) -> Run:
        return lab.play(
            "playbooks/remove.yml", "--limit", "gpu01", "--extra-vars", json.dumps(wishes), *arguments
        )

    unmeant = remove()
    assert unmeant.returncode != 0
    assert unmeant.changed == {}
    wishes = {"metal_remove": True, "metal_remove_driver": True, "metal_remove_weights": ["MiniMax-M3"]}
    before = lab.written("gpu01")
    looked = remove("--check", **wishes)
    assert looked.returncode == 0, looked.output
    assert lab.written("gpu01") == before
    done = remove(**wishes)
    assert done.returncode == 0, done.output
    assert set(looked.changed["gpu01"]) == set(done.changed["gpu01"])
    assert lab.ssh("gpu01", "find /srv/models -name shard") == f"{weights[0]}/shard\n"
    assert "stays on gpu01" in done.output
    assert (
        lab.ssh("gpu01", "dpkg-query -W -f '${db:Status-Status} ${Package}\\n' '*nvidia*' | grep ^i || true")
        == ""
    )
    assert (
        lab.ssh("gpu01", "ls /etc/apt/sources.list.d /etc/systemd/system | grep -e nvidia -e sglang || true")
        == ""
    )
    again = remove(**wishes)
    assert again.returncode == 0, again.output
    assert again.changed == {}
    # The module outlives its packages until the next boot; that is no reason against putting them back.
    before_return = boot(lab, "gpu01")
    back = play(lab, "--limit", "gpu01", metal_driver_branch="610")
    assert back.returncode == 0, back.output
    assert versions(lab, "gpu01") == {"610.57.04"}
    assert boot(lab, "gpu01") == before_return


def test_branch_that_left_the_index_stays_where_it_is_and_comes_to_no_other_host(lab: Lab) -> None:
    """The vendor's repository of a later day: 580 and 610 are gone from it, 595 and 620 are there."""
    build(lab.state / "vendor", lab.state / "vendor-keys", age="later")
    for name in HOSTS:
        lab.ssh(name, "apt-get -qq update >&2")
    settled(lab, metal_driver_branch="610")
    gone = play(lab, metal_driver_branch="590")
    assert gone.returncode != 0
    text = " ".join(gone.output.split())
    for name in HOSTS:
        assert f"{name}: found nvidia-kernel-open-dkms 595.91.07, 620.70.06 in apt's lists" in text
    assert "set metal_driver_branch to 595 or 620" in text
    for name in HOSTS:
        assert versions(lab, name) == {"610.57.04"}
    # 610 is over: a run that names no branch changes nothing and says where to go.
    unnamed = play(lab)
    assert unnamed.returncode != 0
    assert unnamed.changed == {}
    assert "driver branch 610 (new feature), which ended on 2026-08-31" in " ".join(unnamed.output.split())
    moved = play(lab, metal_driver_branch="620")
    assert moved.returncode == 0, moved.output
    for name in HOSTS:
        assert versions(lab, name) == {"620.70.06"}
    settled(lab, metal_driver_branch="620")
    # Alive, it is kept without being named.
    settled(lab)

"""The decisions about a driver, from the real contents of hosts."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from minimax_metal.plan.driver.failure import failure_line
from minimax_metal.plan.driver.kernel import kernel_problem, next_kernel
from minimax_metal.plan.driver.packages import upstream
from minimax_metal.plan.driver.state import driver_state, fabric_state, service_problem
from minimax_metal.plan.driver.work import DriverWork, driver_work
from minimax_metal.plan.model import Plan

MODULES, TOOLS, MANAGER = "nvidia-kernel-open-dkms", "nvidia-driver-cuda", "nvidia-fabricmanager"
OFFERED = ("610.57.04-1", "590.48.01-1", "580.159.04-1", "580.126.20-1")
KERNEL = "6.1.0-40-amd64"
MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.159"


def plan(branch: str = "580", switches: bool = False) -> Plan:
    packages = ["linux-headers-amd64", MODULES, TOOLS]
    if switches:
        packages.append(f"{MANAGER}={branch}.*")
    driver = {
        "branch": branch,
        "minimum": "580.65.06",
        "packages": packages,
        "fabric_manager": switches,
        "pinning_package": f"nvidia-driver-pinning-{branch}",
    }
    return Plan.of_record({"driver": driver, "gpus": {"count": 4}})


def facts(loaded: str | None = None, gpus: int = 4, error: str = "", **more: Any) -> dict[str, Any]:
    lines = (f"{index}, NVIDIA H20, GPU-{index}, 97871 MiB, {loaded}, 9.0" for index in range(gpus))
    smi: dict[str, Any] = {"present": False}
    if loaded:
        smi = {"present": True, "returncode": 0, "stdout": "\n".join(lines), "stderr": ""}
    if error:
        smi = {"present": True, "returncode": 18, "stdout": error, "stderr": ""}
    version = f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {loaded}  Release Build\n"
    return {"nvidia_smi": smi, "driver_version_file": version if loaded else None, **more}


def packages(version: str, *names: str, state: str = "hi", **others: str) -> dict[str, Any]:
    listed = dict.fromkeys((MODULES, TOOLS, "libcuda1", *names), version) | {
        name.replace("_", "-"): other for name, other in others.items()
    }
    found = {
        name: {"state": state, "version": f"{one}-1", "source": "nvidia"} for name, one in listed.items()
    }
    return found | {"linux-headers-amd64": {"state": "ii", "version": "6.1.158-1", "source": "linux-signed"}}


def host(**changes: Any) -> dict[str, Any]:
    names = (MODULES, TOOLS, MANAGER, "libcuda1", "nvidia-persistenced")
    collected: dict[str, Any] = {
        "packages": {},
        "versions": {name: list(OFFERED) for name in names}
        | {"nvidia-driver-pinning-580": ["580-5"], f"linux-headers-{KERNEL}": ["6.1.158-1"]},
        "kernels": {"running": KERNEL, "modules": [KERNEL], "bootable": [KERNEL], "headers": [KERNEL]},
        "container": False,
        "active_units": ["sglang@minimax-m2.5.service"],
        "keys": {},
    }
    return collected | changes


def work(collected: dict[str, Any], raw: dict[str, Any], the_plan: Plan, **wishes: str) -> DriverWork:
    return driver_work(collected, raw, the_plan, wishes)


def test_bare_host_gets_the_newest_release_of_the_branch() -> None:
    done = work(host(), facts(), plan())
    assert (done.action, done.target, done.problem) == ("install", "580.159.04", None)
    assert f"{TOOLS}=580.159.04-1" in done.packages
    assert done.packages[0] == "linux-headers-amd64"
    assert done.summary == "driver 580.159.04 will be installed"


def test_fabric_manager_bounds_the_version_that_is_chosen() -> None:
    collected = host()
    collected["versions"][MANAGER] = ["580.126.20-1"]
    done = work(collected, facts(), plan(switches=True))
    assert done.target == "580.126.20"
    assert f"{MANAGER}=580.126.20-1" in done.packages
    assert done.pins[0].version == "580.126.20-*"


def test_driver_that_is_right_is_left_and_held() -> None:
    collected = host(packages=packages("580.126.20", state="ii"))
    done = work(collected, facts("580.126.20"), plan())
    assert (done.action, done.packages, done.stop_units) == ("none", (), ())
    assert set(done.unheld) == {MODULES, TOOLS, "libcuda1"}


def test_driver_that_is_right_needs_headers_only_for_a_module_that_is_not_built() -> None:
    there = packages("580.126.20")
    del there["linux-headers-amd64"]
    assert work(host(packages=there), facts("580.126.20"), plan()).action == "none"
    kernels = {"running": KERNEL, "modules": [KERNEL], "bootable": [KERNEL], "headers": []}
    built = host(packages=there, kernels=kernels, dkms=[DKMS_3])
    assert work(built, facts("580.126.20"), plan()).action == "none"
    unbuilt = work(host(packages=there, kernels=kernels), facts(), plan())
    assert unbuilt.action == "repair"
    assert unbuilt.packages[:2] == ("linux-headers-amd64", f"linux-headers-{KERNEL}")


def test_driver_of_other_packages_is_accepted() -> None:
    other = {
        "nvidia-headless-580-server": {"state": "ii", "version": "580.126.20-0ubuntu1", "source": "nvidia"}
    }
    done = work(host(packages=other), facts("580.126.20"), plan())
    assert done.action == "none"
    assert "accepted as it is" in done.summary


@pytest.mark.parametrize(
    ("there", "branch", "wish", "action", "target"),
    [
        ("580.159.04", "590", "", "change", "590.48.01"),
        ("590.48.01", "580", "", "change", "580.159.04"),
        ("580.159.04", "580", "580.126.20", "change", "580.126.20"),
        ("580.126.20", "580", "580.126.20", "none", "580.126.20"),
    ],
)
def test_branches_and_releases_change_both_ways(
    there: str, branch: str, wish: str, action: str, target: str
) -> None:
    done = work(host(packages=packages(there)), facts(there), plan(branch), version=wish)
    assert (done.action, done.target) == (action, target)
    if action != "none":
        assert f"libcuda1={target}-1" in done.packages  # what came as a dependency moves along
        assert done.stop_units == ("sglang@minimax-m2.5.service",)


def test_mixed_packages_go_back_to_the_version_that_runs() -> None:
    collected = host(packages=packages("580.126.20", libcuda1="580.159.04"))
    done = work(collected, facts("580.126.20", error=MISMATCH), plan())
    assert (done.action, done.target) == ("repair", "580.126.20")
    assert "libcuda1=580.126.20-1" in done.packages


def test_half_configured_packages_are_repaired() -> None:
    assert work(host(packages=packages("580.126.20", state="iF")), facts(), plan()).action == "repair"


def test_missing_headers_of_the_running_kernel_are_a_problem_before_anything_changes() -> None:
    collected = host()
    del collected["versions"][f"linux-headers-{KERNEL}"]
    collected["kernels"]["headers"] = []
    done = work(collected, facts(), plan())
    assert done.problem is not None
    assert f"linux-headers-{KERNEL}" in done.problem
    assert "reboot into it" in done.problem
    assert work({**collected, "container": True}, facts(), plan()).problem is None


@pytest.mark.parametrize(
    ("keys", "own", "stands"),
    [
        ({}, "check", True),
        ({"/var/lib/dkms/mok.pub": False}, "check", True),
        ({"/var/lib/dkms/mok.pub": True}, "check", False),
        ({}, "trust", False),
    ],
)
def test_secure_boot_stops_an_installation_unless_the_key_is_known(
    keys: dict[str, bool], own: str, stands: bool
) -> None:
    done = work(host(keys=keys), facts(secure_boot=True), plan(), secure_boot=own)
    assert (done.problem is not None) == stands
    if done.problem:
        assert "mokutil --import" in done.problem
        assert not done.lists_stale  # newer package lists would not help: the role stops at once


@pytest.mark.parametrize(
    ("system", "keys", "says", "certificate"),
    [
        ("ID=debian\nVERSION_ID=12\n", {}, "openssl req -new -x509", "/var/lib/dkms/mok.pub"),
        (
            "ID=ubuntu\nVERSION_ID=24.04\n",
            {},
            "update-secureboot-policy --new-key",
            "shim-signed/mok/MOK.der",
        ),
        (
            "ID=debian\nVERSION_ID=13\n",
            {"/var/lib/dkms/mok.pub": False},
            "found secure boot on and the key /var/lib/dkms/mok.pub not enrolled",
            "/var/lib/dkms/mok.pub",
        ),
    ],
)
def test_secure_boot_is_explained_with_what_the_distribution_has(
    system: str, keys: dict[str, bool], says: str, certificate: str
) -> None:
    done = work(host(keys=keys), facts(secure_boot=True, os_release=system), plan())
    assert says in str(done.problem)
    assert re.search(rf"mokutil --import \S*{certificate}, reboot", str(done.problem))
    assert ("openssl" in str(done.problem)) == (system.startswith("ID=debian") and not keys)


def test_secure_boot_is_no_reason_against_a_driver_that_runs() -> None:
    done = work(host(packages=packages("580.126.20")), facts("580.126.20", secure_boot=True), plan())
    assert (done.action, done.problem) == ("none", None)


@pytest.mark.parametrize(
    ("wish", "action", "words"),
    [
        ("refuse", "none", "metal_driver_run_file to replace"),
        ("keep", "none", None),
        ("replace", "replace", None),
    ],
)
def test_run_file_is_named_and_replaced_only_on_request(wish: str, action: str, words: str | None) -> None:
    collected = host(uninstaller="/usr/bin/nvidia-uninstall", modprobe="/usr/bin/nvidia-modprobe")
    done = work(collected, facts("570.133.20"), plan(), run_file=wish)
    assert done.action == action
    if words:
        assert words in str(done.problem)
        assert "570.133.20" in str(done.problem)
    else:
        assert done.problem is None


def test_run_file_that_would_do_is_replaced_on_request_all_the_same() -> None:
    collected = host(uninstaller="/usr/bin/nvidia-uninstall")
    assert work(collected, facts("580.159.04"), plan(), run_file="replace").action == "replace"
    assert work(collected, facts("580.159.04"), plan(), run_file="keep").kept


@pytest.mark.parametrize(
    ("modprobe", "nodes", "services", "problem"),
    [
        ("/usr/bin/nvidia-modprobe", [], ("nvidia-device-nodes.service",), None),
        (None, ["/dev/nvidia-uvm"], (), None),
        (None, ["/dev/nvidia0"], (), "without nvidia-modprobe and no /dev/nvidia-uvm"),
    ],
)
def test_kept_run_file_has_its_device_nodes_made_where_it_can(
    modprobe: str | None, nodes: list[str], services: tuple[str, ...], problem: str | None
) -> None:
    collected = host(uninstaller="/usr/bin/nvidia-uninstall", modprobe=modprobe, nodes=nodes)
    done = work(collected, facts("580.159.04"), plan(), run_file="keep")
    assert done.services == services
    assert (done.problem is None) if problem is None else (problem in str(done.problem))


def test_run_file_without_its_uninstaller_is_not_touched() -> None:
    done = work(host(), facts("570.133.20"), plan(), run_file="replace")
    assert "--uninstall" in str(done.problem)


@pytest.mark.parametrize(
    ("versions", "wish", "words"),
    [
        ({}, "", f"found no package {MODULES} in apt's lists"),
        (
            {MODULES: ["610.57.04-1"], TOOLS: ["610.57.04-1"]},
            "",
            "610.57.04 in apt's lists, expected branch 580",
        ),
        (
            {MODULES: ["620.70.06-1", "595.91.07-1"], TOOLS: ["620.70.06-1", "595.91.07-1"]},
            "",
            "no longer has a driver of branch 580: set metal_driver_branch to 595 or 620",
        ),
        ({MODULES: list(OFFERED), TOOLS: list(OFFERED)}, "580.1.2", "expected version 580.1.2"),
        (
            {MODULES: list(OFFERED), TOOLS: list(OFFERED)},
            "610.57.04",
            "set metal_driver_branch to 610 as well",
        ),
        ({MODULES: ["580.126.20-1"], TOOLS: ["580.159.04-1"]}, "", "that all packages share"),
    ],
)
def test_what_the_repository_lacks_is_named(versions: dict[str, list[str]], wish: str, words: str) -> None:
    done = work(host(versions=versions), facts(), plan(), version=wish)
    assert words in str(done.problem)
    assert done.lists_stale


def ubuntu(branch: str, *names: str) -> Plan:
    """The plan of an Ubuntu host, whose packages have other names from branch 590 on."""
    wanted = plan(branch)
    assert wanted.driver is not None
    return replace(wanted, driver=replace(wanted.driver, packages=("linux-headers-generic", *names)))


OLD_NAMES = ("nvidia-dkms-580-open", "libnvidia-compute-580", "nvidia-utils-580", "nvidia-persistenced")
NEW_NAMES = ("nvidia-dkms-open", "libnvidia-compute", "nvidia-persistenced")


@pytest.mark.parametrize("back", [False, True], ids=["forth", "back"])
def test_packages_of_a_branch_with_other_names_leave_as_the_others_come(back: bool) -> None:
    # Names of NVIDIA's repository for Ubuntu 24.04. That the others must be taken away by name: public
    # installers ("libnvidia-compute-580-" in the transaction that brings 595's libnvidia-compute).
    old = ("580.126.20", OLD_NAMES, ("nvidia-kernel-common-580", "nvidia-firmware-580-580.126.20"))
    new = ("595.91.07", NEW_NAMES, ("nvidia-kernel-common", "nvidia-firmware"))
    (now, there, beside), (then, wanted, _) = (new, old) if back else (old, new)
    versions = {name: ["580.126.20-1ubuntu1"] for name in (*old[1], *old[2])}
    versions |= {name: ["595.91.07-1ubuntu1"] for name in (*new[1], *new[2])}
    versions["nvidia-persistenced"].append("580.126.20-1ubuntu1")
    installed = {
        name: {"state": "hi", "version": f"{now}-1ubuntu1", "source": "nvidia"} for name in (*there, *beside)
    }
    collected = host(packages=installed, versions=versions | {f"linux-headers-{KERNEL}": ["6.8.0-90"]})
    done = work(collected, facts(now), ubuntu(then[:3], *wanted))
    assert (done.action, done.target, done.problem) == ("change", then, None)
    assert [one for one in done.packages if "nvidia" in one] == [f"{name}={then}-1ubuntu1" for name in wanted]
    assert set(done.leaving) == {f"{name}-" for name in (*there, *beside) if name != "nvidia-persistenced"}


def test_what_moves_along_or_is_no_driver_does_not_leave() -> None:
    there = packages(
        "580.126.20", "nvidia-persistenced", "libnvidia-gone1", **{"cuda-compat-13-0": "580.65.06"}
    )
    done = work(host(packages=there), facts("580.126.20"), plan("610"))
    assert (done.action, done.leaving) == ("change", ("libnvidia-gone1-",))
    assert "nvidia-persistenced=610.57.04-1" in done.packages
    assert work(host(packages=packages("580.126.20")), facts("580.126.20"), plan("580")).leaving == ()


def test_branch_without_a_pinning_package_is_pinned_by_preferences() -> None:
    collected = host()
    del collected["versions"]["nvidia-driver-pinning-580"]
    assert [pin.version for pin in work(collected, facts(), plan()).pins] == ["580.159.04-*", "580.*"]


def test_every_problem_is_one_line() -> None:
    collected = host(versions={}, keys={})
    for raw in (facts(), facts(secure_boot=True), facts("570.133.20")):
        problem = work(collected, raw, plan()).problem
        assert problem
        assert "\n" not in problem
        assert problem.startswith("found ")
        assert "expected" in problem


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("580.126.20-1", "580.126.20"),
        ("3:610.57.04-1", "610.57.04"),
        ("580.126.20-0ubuntu0.24.04.1", "580.126.20"),
        ("580-5", None),
        ("2025.10.14-1", None),
        ("13.0.88-1", None),
        ("6.1.158-1", None),
    ],
)
def test_driver_version_is_read_off_a_package_version(version: str, expected: str | None) -> None:
    assert upstream(version) == expected


# What runs, and what failed ---------------------------------------------------------------------------------

DKMS_3 = f"nvidia/580.126.20, {KERNEL}, x86_64: installed"
LOG = ["  CC [M]  nvidia.o", "nvidia.c:12:2: error: #error planted", "make: *** [Makefile:4: all] Error 2"]


@pytest.mark.parametrize("line", [DKMS_3, f"nvidia, 580.126.20, {KERNEL}, x86_64: installed"])
def test_built_module_is_no_problem(line: str) -> None:
    assert kernel_problem(host(dkms=[line], dkms_logs={}), "driver 580") is None


def test_failed_build_comes_with_the_end_of_its_log() -> None:
    collected = host(
        dkms=["nvidia/580.126.20: added"], dkms_logs={"/var/lib/dkms/nvidia/580/build/make.log": LOG}
    )
    line = kernel_problem(collected, "driver 580.126.20")
    assert line
    assert "error: #error planted" in line
    assert "make.log" in line
    failed = {"msg": "Error! Bad return status for module build on kernel: " + KERNEL}
    assert failure_line(failed, "http://mirror", collected, "driver 580.126.20") == line


def test_kernel_that_boots_next_needs_the_module_too() -> None:
    kernels = {"running": KERNEL, "bootable": [KERNEL, "6.1.0-41-amd64"], "headers": [], "modules": []}
    line = kernel_problem(host(kernels=kernels, dkms=[DKMS_3]), "driver 580.126.20")
    assert "6.1.0-41-amd64 (which boots next; " + KERNEL + " is running now)" in str(line)
    assert next_kernel(["6.1.0-9-amd64", "6.1.0-40-amd64", "6.1.0-40-cloud-amd64"]) == "6.1.0-40-cloud-amd64"
    assert kernel_problem(host(container=True, dkms=[]), "driver") is None


def test_driver_that_is_right_is_pending_while_the_next_kernel_has_no_module() -> None:
    collected = host(packages=packages("580.126.20"), dkms=[DKMS_3])
    done = work(collected, facts("580.126.20"), plan())
    assert (done.action, done.unbuilt, done.pending) == ("none", None, False)
    collected["kernels"]["bootable"].append("6.1.0-41-amd64")
    moved = work(collected, facts("580.126.20"), plan())
    assert (moved.action, moved.pending) == ("none", True)
    assert "no module of driver 580.126.20 for kernel 6.1.0-41-amd64 (which boots next" in str(moved.unbuilt)
    # Modules that came ready built are not asked for.
    collected["dkms"] = []
    assert not work(collected, facts("580.126.20"), plan()).pending


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "Failed to update apt cache: W:GPG error: http://m/ InRelease: The following signatures "
            "couldn't be verified because the public key is not available: NO_PUBKEY A4B469963BF863CC",
            "a signature of the package repository that does not match",
        ),
        (
            "E: Failed to fetch http://m/x.deb  Could not connect to m:80 (10.0.0.1), connection timed out",
            "answer",
        ),
        ("Failed to update apt cache after 5 retries: ", "package lists that could not be fetched"),
        (
            "Request failed: <urlopen error [Errno 111] Connection refused>",
            "a package repository that does not answer",
        ),
        (
            "No package matching 'nvidia-driver-cuda' is available",
            "a package that the repository does not have",
        ),
        ("E: Failed to fetch http://m/x.deb  Hash Sum mismatch", "do not match its index"),
        ("dpkg: error: No space left on device", "a full disk"),
        ("E: Could not get lock /var/lib/dpkg/lock-frontend", "apt locked"),
        ("The following packages have unmet dependencies:\n libcuda1", "conflicting packages"),
        ("something\nelse", "something else"),
    ],
)
def test_failures_of_apt_are_explained_in_one_line(said: str, words: str) -> None:
    line = failure_line({"msg": said}, "http://mirror")
    assert words in line
    assert "\n" not in line
    assert line.startswith("found ")


QUERY = """GPU 00000000:0F:00.0
    Fabric
        State      : {}
        Status     : {}
    Processes  : None
"""


@pytest.mark.parametrize(
    ("answer", "ready", "words"),
    [
        ([0, QUERY.format("Completed", "Success") * 8], True, "Completed"),
        ([0, QUERY.format("In Progress", "N/A")], False, "In Progress on 1 of 1"),
        ([0, QUERY.format("Completed", "Failure")], False, "Completed (Failure)"),
        ([0, QUERY.format("N/A", "N/A")], True, "N/A"),
        ([9, "NVIDIA-SMI has failed"], False, "does not answer"),
        (None, False, "does not answer"),
    ],
)
def test_fabric_is_ready_when_every_gpu_is_registered(answer: Any, ready: bool, words: str) -> None:
    found, said = fabric_state(answer)
    assert found == ready
    assert words in said


def test_the_state_of_the_fabric_is_told_as_nvidia_smi_has_it() -> None:
    """Sections follow each other in ``nvidia-smi -q``: a State before "Fabric" is another section's."""
    ecc = "GPU 00000000:0F:00.0\n    State      : Pending\n"
    mixed = (
        QUERY.format("Completed", "Success") + QUERY.format("In Progress", "N/A") + QUERY.format("N/A", "N/A")
    )
    failed = QUERY.format("Completed", "Success") + QUERY.format("Completed", "Failure")
    for output, expected in (
        (ecc + QUERY.format("Completed", "Success"), (True, "fabric state Completed")),
        (
            QUERY.format("Completed", "Success") + QUERY.format("N/A", "N/A"),
            (True, "fabric state Completed, N/A"),
        ),
        ("GPU 00000000:0F:00.0\n", (True, "fabric state not reported")),
        (mixed, (False, "fabric state In Progress on 1 of 3 GPUs")),
        (failed, (False, "fabric state Completed (Failure) on 1 of 2 GPUs")),
        (
            failed + QUERY.format("In Progress", "N/A"),
            (False, "fabric state Completed (Failure), In Progress on 2 of 3 GPUs"),
        ),
        (
            "    Fabric\n        Status     : Failure\n",
            (False, "fabric state unknown (Failure) on 1 of 1 GPUs"),
        ),
    ):
        assert fabric_state([0, output]) == expected
    assert fabric_state(None) == (False, "nvidia-smi -q does not answer")


@pytest.mark.parametrize(
    ("loaded", "manager", "named"),
    [
        ("580.126.20", packages("580.126.20", MANAGER), ""),
        ("580.126.20", packages("580.159.04", MANAGER), "nvidia-fabricmanager 580.159.04-1"),
        ("580.126.20", packages("580.126.2", MANAGER), "nvidia-fabricmanager 580.126.2-1"),
        ("580.126.20", packages("580.159.04", MANAGER, state="rc"), ""),
        (None, packages("580.159.04", MANAGER), ""),
    ],
)
def test_a_fabric_manager_of_another_version_than_the_driver_is_named(
    loaded: str | None, manager: dict[str, Any], named: str
) -> None:
    assert driver_state(facts(loaded), plan(switches=True), host(packages=manager)).manager == named


@pytest.mark.parametrize(
    ("raw", "changes", "words"),
    [
        (facts(), {"nouveau": True}, "modprobe.blacklist=nouveau"),
        (facts(), {"dkms": []}, f"no nvidia module was built for the running kernel {KERNEL}"),
        (facts(secure_boot=True), {"dkms": [DKMS_3]}, "mokutil"),
        (
            facts("580.126.20", error=MISMATCH),
            {"dkms": [DKMS_3]},
            "an upgrade replaced the driver's libraries",
        ),
    ],
)
def test_driver_that_does_not_run_comes_with_advice(raw: dict[str, Any], changes: Any, words: str) -> None:
    state = driver_state(raw, plan(), host(**changes))
    assert state.reboot
    assert words in state.advice


def test_nouveau_is_named() -> None:
    raw = facts() | {"nvidia_smi": {"present": True, "returncode": 9, "stdout": "has failed"}}
    assert "nouveau is loaded" in driver_state(raw, plan(), host(nouveau=True)).found


@pytest.mark.parametrize(
    ("changes", "said", "words"),
    [
        (
            {"packages": packages("580.159.04", MANAGER)},
            "",
            "found nvidia-fabricmanager 580.159.04-1 with driver 580.126",
        ),
        (
            {"nodes": ["/dev/nvidia0"]},
            "Unable to start service nvidia-device-nodes.service",
            "found /dev/nvidia0, exp",
        ),
        ({"fabric": [0, QUERY.format("In Progress", "N/A")]}, "", "fabric state In Progress"),
        (
            {"fabric": [0, QUERY.format("N/A", "N/A")]},
            "Unable to start service x",
            "Unable to start service x",
        ),
    ],
)
def test_service_that_does_not_run_is_explained(changes: Any, said: str, words: str) -> None:
    line = service_problem(host(**changes), facts("580.126.20"), plan(switches=True), said)
    assert words in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "line",
    [
        f"nvidia-fs/2.26.6, {KERNEL}, x86_64: installed",
        f"nvidia/580.126.20, {KERNEL}, x86_64: built",
        f"nvidia/580.126.20, {KERNEL}, x86_64: not installed",
        f"nvidia/580.126.20, {KERNEL}-cloud, x86_64: installed",
    ],
)
def test_other_modules_of_nvidia_and_other_states_are_no_driver(line: str) -> None:
    assert kernel_problem(host(dkms=[line], dkms_logs={}), "driver 580") is not None


@pytest.mark.parametrize(
    "name", ["nvidia", "nvidia-current", "nvidia-current-open", "nvidia-srv", "nvidia-open"]
)
def test_every_name_of_a_driver_in_dkms_is_known(name: str) -> None:
    line = (
        f"{name}/580.126.20, {KERNEL}, x86_64: installed (WARNING! Diff between built and installed module!)"
    )
    assert kernel_problem(host(dkms=[line], dkms_logs={}), "driver 580") is None

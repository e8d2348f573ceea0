"""The facts module, on this machine's own /proc and on a tree like it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from plan_helpers import raw_host

from minimax_metal.plan import Settings, parse_facts, plan
from tests.support.plugins import load_plugin


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return load_plugin("modules/metal_facts")


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["IPv4", "IPv6"]
)
def test_who_listens_on_a_port_is_found(
    module: ModuleType, family: socket.AddressFamily, address: str
) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind((address, 0))
        port = listener.getsockname()[1]
        assert port not in module.listening_sockets().values()
        listener.listen()
        owner = module.port_owners(module.listening_sockets())[str(port)]
    assert owner["program"] == Path("/proc/self/comm").read_text().strip()


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/system-sglang.slice/sglang@minimax-m2.5.service\n", "sglang@minimax-m2.5.service"),
        ("0::/system.slice/vllm.service/worker\n", "vllm.service"),
        ("12:cpu:/\n1:name=systemd:/system.slice/docker-0a1b.scope\n0::/\n", "docker-0a1b.scope"),
        ("0::/user.slice/user-1000.slice/session-3.scope\n", "session-3.scope"),
        ("0::/\n", None),
    ],
)
def test_the_unit_of_a_process_is_read_from_its_cgroup(
    module: ModuleType, tmp_path: Path, cgroup: str, unit: str | None
) -> None:
    process = tmp_path / "4711"
    process.mkdir()
    (process / "comm").write_text("python3\n")
    (process / "cgroup").write_text(cgroup)
    assert module.occupant("4711", tmp_path) == {"program": "python3", "unit": unit}


def test_a_process_that_ended_meanwhile_is_no_error(module: ModuleType, tmp_path: Path) -> None:
    assert module.occupant("4711", tmp_path) == {"program": "process 4711", "unit": None}


class Smi:
    """Stands in for AnsibleModule: answers as nvidia-smi does."""

    def __init__(self, returncode: int, stdout: str) -> None:
        self.answer = (returncode, stdout, "")

    def get_bin_path(self, _name: str) -> str:
        return "/usr/bin/nvidia-smi"

    def run_command(self, _arguments: list[str], **_options: Any) -> tuple[int, str, str]:
        return self.answer


def test_what_links_can_adopt_is_measured(module: ModuleType, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "blobs"
    cache.mkdir(parents=True)
    for name, mode in (("shard", 0o644), ("private", 0o600), ("shared", 0o664)):
        (cache / name).write_bytes(bytes(1000))
        (cache / name).chmod(mode)
    os.link(cache / "shard", cache / "the-same")
    (tmp_path / "cache" / "model.safetensors").symlink_to(cache / "shard")
    named = [str(tmp_path / "cache"), "/nowhere", "/proc/sys/kernel"]
    sizes = module.adoptable(named, str(tmp_path / "models" / "to-come"))
    assert sizes == {named[0]: 1000, "/nowhere": 0, "/proc/sys/kernel": 0}


def test_who_holds_gpu_memory_is_named_once(module: ModuleType) -> None:
    # One line per GPU that a process uses.
    users = module.gpu_users(Smi(0, f"{os.getpid()}\n{os.getpid()}\n"))
    assert [user["program"] for user in users] == [Path("/proc/self/comm").read_text().strip()]
    assert module.gpu_users(Smi(0, "")) == []
    assert module.gpu_users(Smi(9, "NVIDIA-SMI has failed because it couldn't communicate\n")) == []


def decide(**more: Any) -> dict[str, str]:
    facts = parse_facts(raw_host("H20", 4, driver="580.65.06") | more)
    made = plan(Settings.from_variables("gpu01", {"metal_model": "M2.5"}), facts)
    return {one.code: f"{one.found}; {one.remedy}" for one in made.refusals}


def test_what_is_taken_stops_the_host_and_our_own_engine_does_not() -> None:
    stranger = {"program": "vllm", "unit": "docker-0a1b.scope"}
    ours = {"program": "sglang", "unit": "sglang@minimax-m2.5.service"}
    assert "vllm (docker-0a1b.scope)" in decide(port_owners={"8000": stranger})["port-taken"]
    assert "vllm (docker-0a1b.scope)" in decide(gpu_users=[stranger, ours])["gpu-busy"]
    assert {"port-taken", "gpu-busy"}.isdisjoint(decide(port_owners={"8000": ours}, gpu_users=[ours]))
    assert "port-taken" not in decide(port_owners={"8080": stranger})


def test_a_driver_of_a_run_file_is_named_loaded_or_not() -> None:
    found = decide(nvidia_installer="/usr/bin/nvidia-uninstall")
    assert "left /usr/bin/nvidia-uninstall" in found["driver-foreign"]
    assert "metal_driver_run_file to replace" in found["driver-foreign"]


def test_a_module_that_outlived_its_packages_stops_nothing() -> None:
    raw = raw_host("H20", 4, driver="580.65.06") | {"nvidia_smi": {"present": False}, "packages": {}}
    made = plan(Settings.from_variables("gpu01", {"metal_model": "M2.5"}), parse_facts(raw))
    assert made.refusals == ()
    warning = next(one.message for one in made.warnings if one.code == "driver-leftover")
    assert "module 580.65.06 is loaded" in warning


def test_repository_that_another_file_names_is_found(tmp_path: Path) -> None:
    url = "https://mirror.example.org/repos/debian12/x86_64"
    listed = tmp_path / "sources.list.d"
    listed.mkdir()
    (tmp_path / "sources.list").write_text(f"# deb {url} /\ndeb {url}-other /\n")
    (listed / "minimax-metal-nvidia.sources").write_text(f"Types: deb\nURIs: {url}/\nSuites: /\n")
    (listed / "off.sources").write_text(f"Enabled: no\nTypes: deb\nURIs: {url}/\nSuites: /\n")
    find = load_plugin("modules/metal_driver_facts").other_sources
    assert find(url, tmp_path) == []
    (listed / "cuda.list").write_text(f"deb [signed-by=/usr/share/keyrings/cuda.gpg] {url}/ /\n")
    (listed / "two.sources").write_text(
        f"Types: deb\nURIs: https://deb.example.org\n\nURIs: {url}\nTypes: deb\n"
    )
    assert find(f"{url}/", tmp_path) == [str(listed / "cuda.list"), str(listed / "two.sources")]


def test_dpkg_that_was_cut_off_is_told_from_dpkg_at_work(module: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "updates").mkdir()
    (tmp_path / "lock").touch()
    (tmp_path / "updates/tmp.i").touch()
    assert module.dpkg_interrupted(tmp_path) is False
    (tmp_path / "updates/0001").touch()
    assert module.dpkg_interrupted(tmp_path) is True
    holder = (
        "import fcntl, sys; lock = open(sys.argv[1], 'w'); fcntl.lockf(lock, fcntl.LOCK_EX); "
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert module.dpkg_interrupted(tmp_path) is False
        process.communicate(b"")
    assert module.dpkg_interrupted(tmp_path / "nowhere") is False

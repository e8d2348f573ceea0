"""The facts module, on this machine's own /proc and on a similar tree."""

from __future__ import annotations

import ast
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from minimax_metal.common.apart import within
from minimax_metal.plan import Settings, parse_facts, plan
from tests.support.plugins import load_plugin
from tests.unit.plan_helpers import raw_host

STORAGE = load_plugin("module_utils/metal_storage")


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


def test_who_holds_gpu_memory_is_named_with_how_much(module: ModuleType) -> None:
    own = Path("/proc/self/comm").read_text().strip()
    text = f"GPU-0, {os.getpid()}, /usr/bin/a, b, 30 MiB\nGPU-1, 4194999, /opt/vllm/python3, [N/A]\nNo, x\n\n"
    text += "GPU-2, [Insufficient Permissions], [Insufficient Permissions], 900 MiB\n"
    users = module.gpu_users(text)
    assert [(one["gpu_uuid"], one["program"], one["memory"]) for one in users] == [
        ("GPU-0", own, "30 MiB"),
        ("GPU-1", "python3", "[N/A]"),
        ("GPU-2", "an unnamed process", "900 MiB"),
    ]
    assert module.gpu_users("") == []
    assert module.gpu_users("[Not Supported]\n") == []


def stand_in(tmp_path: Path, script: str) -> str:
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n{script}')
    program.chmod(0o755)
    return f"{tmp_path}:/usr/bin:/bin"


def test_an_nvidia_smi_that_hangs_is_asked_once_and_named(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It hung without a limit before, and one such host stopped the whole fleet. A child keeps the pipes open.
    monkeypatch.setattr(module, "PATH", stand_in(tmp_path, "sleep 60 & sleep 60\n"))
    began = time.monotonic()
    answer, users = module.nvidia_smi(0.5, 8)
    assert time.monotonic() - began < 10
    assert (answer["present"], answer["timed_out"], answer["returncode"], users) == (True, True, 124, [])
    assert "did not answer within" in answer["stderr"]
    assert len((tmp_path / "asked").read_text().splitlines()) == 1
    facts = parse_facts(raw_host("H20", 4, driver="580.65.06") | {"nvidia_smi": answer})
    assert facts.smi_code == "hangs"


def test_nvidia_smi_is_asked_for_mig_and_for_what_is_missing(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = """case "$1" in
*mig.mode.current*) printf '0, Enabled\\n' ;;
*gpu_recovery_action*) echo 'Field "gpu_recovery_action" is not a valid field to query.'; exit 2 ;;
*pci.bus_id*) printf '0, 00000000:04:00.0\\n' ;;
*compute-apps*) printf 'GPU-0, 1, init, 5 MiB\\n' ;;
*) printf '0, NVIDIA H20, GPU-0, 97871 MiB, 580.65.06, 9.0\\n' ;;
esac
"""
    monkeypatch.setattr(module, "PATH", stand_in(tmp_path, script))
    answer, users = module.nvidia_smi(20, 4)
    assert answer["mig"] == "0, Enabled\n"
    assert answer["recovery"] == ""
    assert answer["bus_ids"] == "0, 00000000:04:00.0\n"
    assert [one["memory"] for one in users] == ["5 MiB"]
    assert "bus_ids" not in module.nvidia_smi(20, 1)[0]


def test_weights_are_measured_while_a_pull_renames_its_files(tmp_path: Path) -> None:
    # FileNotFoundError before, and the module failed with a traceback.
    revision = tmp_path / "MiniMaxAI" / "MiniMax-M2.5" / "abc.partial"
    revision.mkdir(parents=True)
    (revision / "kept").write_bytes(bytes(100))
    stop = threading.Event()

    def pull() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            part = revision / f"shard-{number % 50}.part"
            part.write_bytes(bytes(10))
            part.rename(revision / f"shard-{number % 50}")
            (revision / f"shard-{(number + 25) % 50}").unlink(missing_ok=True)

    thread = threading.Thread(target=pull)
    thread.start()
    try:
        for _ in range(300):
            assert STORAGE.stored_weights(str(tmp_path))[str(revision)] >= 100
    finally:
        stop.set()
        thread.join()


def test_directories_that_vanish_while_they_are_read_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/b/c", "a/d/e", "f"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a/b/c/file").write_bytes(bytes(7))
    (tmp_path / "a/d/e/file").write_bytes(bytes(7))
    known = STORAGE.names_in

    def vanishing(directory: Path) -> list[str]:
        names = known(directory)
        if Path(directory) == tmp_path / "a":
            shutil.rmtree(tmp_path / "a/d")
        return list(names)

    monkeypatch.setattr(STORAGE, "names_in", vanishing)
    assert STORAGE.stored_weights(str(tmp_path)) == {str(tmp_path / "a/b/c"): 7}
    assert STORAGE.disk(str(tmp_path / "a/d/e"))["path"] == str(tmp_path / "a")
    assert STORAGE.disk(str(tmp_path / "a/b/c/file/below"))["free_bytes"] > 0


def hang() -> None:
    time.sleep(60)


def test_a_directory_that_does_not_answer_holds_nobody_up(tmp_path: Path) -> None:
    began = time.monotonic()
    assert within(0.3, hang) == (None, "no answer within 0.3 s")
    assert time.monotonic() - began < 5
    assert within(20, sorted, [2, 1]) == ([1, 2], None)
    assert within(20, int, "x") == (None, "ValueError: invalid literal for int() with base 10: 'x'")
    assert within(20, sys.exit) == (None, "it ended without an answer")
    # Ansible waits until everybody has closed the module's output; who was left behind has.
    program = "import sys, time; from minimax_metal.common.apart import within; within(0.3, time.sleep, 30)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, env=environment)
    assert time.monotonic() - began < 15


def test_what_modules_bring_to_a_host_runs_on_its_python() -> None:
    # Ubuntu 22.04 has 3.10.
    utils = Path(__file__).parents[2] / "plugins" / "module_utils"
    for path in (*utils.glob("*.py"), *utils.parent.glob("modules/*.py")):
        ast.parse(path.read_text(), feature_version=(3, 10))


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


def test_what_the_pulls_user_plants_leads_nowhere(tmp_path: Path) -> None:
    """Otherwise facts would walk the whole host, including /proc, as root."""
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/b/c/file").write_bytes(bytes(7))
    (tmp_path / "a/b/d").symlink_to("/")
    (tmp_path / "a/b/e").symlink_to(tmp_path / "a")
    assert STORAGE.stored_weights(str(tmp_path)) == {str(tmp_path / "a/b/c"): 7}

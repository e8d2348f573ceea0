"""nvidia-smi's output for lost, sick, partitioned and foreign GPUs, from real machines.

Each case names its public source. All of them were accepted, or misreported, before.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimax_metal.plan import Plan, Settings, parse_facts, plan
from minimax_metal.plan.driver.failure import failure_line
from minimax_metal.plan.driver.state import driver_state, service_problem
from minimax_metal.plan.driver.work import driver_work
from tests.unit.plan_helpers import codes, raw_host, warned

DRIVER = "580.126.20"
HANDLE = "Unable to determine the device handle for"


def smi(raw: dict[str, Any], **changes: Any) -> dict[str, Any]:
    raw["nvidia_smi"] = raw["nvidia_smi"] | changes
    return raw


def h200(**changes: Any) -> dict[str, Any]:
    return smi(raw_host("H200", 8, driver=DRIVER), **changes)


def with_row(index: int, row: str) -> dict[str, Any]:
    raw = h200()
    rows = raw["nvidia_smi"]["stdout"].splitlines()
    rows[index] = row
    return smi(raw, stdout="\n".join(rows) + "\n")


def decide(raw: dict[str, Any] | None, **variables: Any) -> Plan:
    named = {"metal_model": "MiniMax-M2.5"} | {f"metal_{name}": value for name, value in variables.items()}
    return plan(Settings.from_variables("gpu01", named), parse_facts(raw))


def line(result: Plan, code: str) -> str:
    return next(one.line("gpu01") for one in result.refusals if one.code == code)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        # dcgm-exporter#604, and the spellings of other releases (open-gpu-kernel-modules#387, OWOD#81).
        (f"{HANDLE} GPU5: 0000:05:00.0: Unknown Error", "GPU 5 (0000:05:00.0): Unknown Error"),
        (f"{HANDLE} GPU5: Unknown Error", "GPU 5: Unknown Error"),
        (f"{HANDLE} GPU 0000:05:00.0: Unknown Error", "GPU 5 (0000:05:00.0): Unknown Error"),
        (f"{HANDLE} GPU0000:05:00.0: Unknown Error", "GPU 5 (0000:05:00.0): Unknown Error"),
        (
            f"{HANDLE} GPU 00000000:05:00.0: GPU is lost.  Reboot the system to recover this GPU",
            "GPU 5 (0000:05:00.0): GPU is lost. Reboot the system",
        ),
        (f"{HANDLE} GPU 000:BA:80.0: Unknown Error", "a GPU (0000:ba:80.0): Unknown Error"),
    ],
)
def test_a_lost_gpu_is_named_and_refused(words: str, named: str) -> None:
    for stream in ({"stdout": words, "stderr": ""}, {"stdout": "", "stderr": words}):
        result = decide(h200(returncode=255, **stream))
        assert codes(result) == {"gpu-missing"}
        assert named in line(result, "gpu-missing")
        assert "reboot" in line(result, "gpu-missing")


def test_a_lost_gpu_beside_a_table_of_the_others_is_named() -> None:
    # Seven rows without index 3, the message on either stream, status 0 (seen with 580 and RTX 3080s).
    rows = h200()["nvidia_smi"]["stdout"].splitlines()
    del rows[3]
    table = "\n".join(rows) + "\n"
    words = f"{HANDLE} GPU3: 0000:03:00.0: Unknown Error\n"
    for streams in ({"stdout": words + table}, {"stdout": table, "stderr": words}):
        result = decide(h200(**streams))
        assert "lost GPU 3 (0000:03:00.0)" in line(result, "gpu-missing")
    # Nothing but the gap tells.
    assert "GPU 3 is missing" in line(decide(h200(stdout=table)), "gpu-missing")
    # The driver was loaded without it: the others are numbered through, and only addresses tell.
    renumbered = "\n".join(h200()["nvidia_smi"]["stdout"].splitlines()[:7]) + "\n"
    result = decide(h200(stdout=renumbered))
    assert "7 GPUs in nvidia-smi, 8 on the PCI bus" in line(result, "gpu-missing")
    assert "is missing" not in line(result, "gpu-missing")
    ids = "".join(f"{i}, 00000000:{n:02X}:00.0\n" for i, n in enumerate([0, 1, 2, 4, 5, 6, 7]))
    assert "GPU 3 (0000:03:00.0) is missing" in line(
        decide(h200(stdout=renumbered, bus_ids=ids)), "gpu-missing"
    )


ROW = "3, NVIDIA H200, GPU-3, 143771 MiB, 580.126.20, 9.0"


@pytest.mark.parametrize(
    ("old", "cell"),
    [
        ("143771 MiB", "[Unknown Error]"),  # gpud PR#1133
        ("143771 MiB", "[GPU requires reset]"),  # gpud PR#1133
        ("143771 MiB", "[GPU is lost]"),
        ("143771 MiB", "ERR!"),  # nvidia_gpu_exporter#393
        ("143771 MiB", "[N/A]"),
        ("143771 MiB", "[Not Supported]"),
        ("143771 MiB", "[Insufficient Permissions]"),
        ("143771 MiB", ""),
        ("143771 MiB", "143.771 MiB"),
        ("143771 MiB", "0 MiB"),
        ("NVIDIA H200", "[Unknown Error]"),
        ("NVIDIA H200", "ERR!"),
        ("GPU-3", "[GPU is lost]"),
        ("580.126.20", "[Unknown Error]"),
        ("580.126.20", "[N/A]"),
        ("580.126.20", "unknown"),
        (", 9.0", ", [GPU requires reset]"),
        (", 9.0", ", [N/A]"),
        ("3, NVIDIA", "[Unknown Error], NVIDIA"),
        ("NVIDIA H200, GPU-3, 143771 MiB, 580.126.20, 9.0", "[GPU is lost]"),
    ],
)
def test_a_cell_without_a_value_is_a_sick_gpu(old: str, cell: str) -> None:
    result = decide(with_row(3, ROW.replace(old, cell)))
    assert codes(result) == {"gpu-sick"}
    assert "GPU 3: " in line(result, "gpu-sick")
    shown = cell.strip(", ").removesuffix(", NVIDIA") or "nothing"
    assert shown in line(result, "gpu-sick")


def test_the_driver_s_own_advice_is_heard() -> None:
    # gpu_recovery_action of a card with ERR! in its table: nvidia_gpu_exporter#393 and PR#448.
    rows = "".join(f"{n}, {'Reset' if n == 6 else 'None'}\n" for n in range(8))
    result = decide(h200(recovery=rows))
    assert "GPU 6: the driver asks for a recovery: Reset" in line(result, "gpu-sick")
    for sound in ("None", "N/A", "[N/A]", "[Not Supported]"):
        assert decide(h200(recovery="".join(f"{n}, {sound}\n" for n in range(8)))).fits


def test_all_sick_gpus_are_one_line() -> None:
    table = h200()["nvidia_smi"]["stdout"].replace("143771 MiB", "[Unknown Error]")
    result = decide(h200(stdout=table))
    assert codes(result) == {"gpu-sick"}
    assert "GPUs 0, 1, 2, 3, 4, 5, 6, 7: [Unknown Error]" in line(result, "gpu-sick")


def test_a_version_with_prose_behind_it_is_a_version() -> None:
    # R610 writes "610.57.04 [Deprecated; use KMD Version]" where earlier branches have the number alone.
    for prose in ("610.57.04 [Deprecated; use kmd_version]", "610.57.04 [Deprecated, use kmd_version]"):
        raw = h200(stdout=h200()["nvidia_smi"]["stdout"].replace(DRIVER, prose))
        facts = parse_facts(raw)
        assert {gpu.driver for gpu in facts.smi_gpus} == {"610.57.04"}
        assert decide(raw).fits


@pytest.mark.parametrize(
    "prose", ['Deprecated, see "KMD version" instead', "[Deprecated]", "[Deprecated, see kmd_version]"]
)
def test_prose_in_the_place_of_a_version_is_not_a_sick_gpu(prose: str) -> None:
    # nvidia-smi --version of 610.88 says so; the module's file has the number.
    raw = h200(stdout=h200()["nvidia_smi"]["stdout"].replace(DRIVER, prose))
    assert decide(raw).fits
    assert {gpu.compute_capability for gpu in parse_facts(raw).smi_gpus} == {"9.0"}


def test_a_corrupted_inforom_is_named_beside_a_whole_answer() -> None:
    # Status 14 and a last line (nvidia-smi(1); Azure's node health checks look for the same line).
    table = h200()["nvidia_smi"]["stdout"]
    for status in (0, 14):
        result = decide(
            h200(returncode=status, stdout=table + "WARNING: infoROM is corrupted at gpu 0000:05:00.0\n")
        )
        assert codes(result) == {"gpu-sick"}
        assert "GPU 5 (0000:05:00.0): infoROM is corrupted" in line(result, "gpu-sick")
    lifted = decide(
        h200(returncode=14, stdout=table + "WARNING: infoROM is corrupted at gpu 0000:05:00.0\n"),
        accept_refusals=["gpu-sick"],
    )
    assert lifted.fits


@pytest.mark.parametrize(
    ("status", "words", "remedy"),
    [
        (6, "No devices were found", "dmesg"),
        (255, "Failed to initialize NVML: Unknown Error", "dmesg"),
        (9, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", "modprobe"),
        (-11, "", "dmesg"),
        (0, "", "dmesg"),
        (0, "Keine Geräte gefunden", "dmesg"),
    ],
)
def test_nvidia_smi_that_fails_where_a_driver_is_loaded_is_refused(
    status: int, words: str, remedy: str
) -> None:
    result = decide(h200(returncode=status, stdout="", stderr=words))
    assert codes(result) == {"nvidia-smi"}
    assert f"driver {DRIVER} loaded and nvidia-smi failed" in line(result, "nvidia-smi")
    assert words in line(result, "nvidia-smi")
    assert remedy in line(result, "nvidia-smi")
    # No driver is loaded: it is installed and comes with the next boot, which is the role's work.
    bare = h200(returncode=status, stdout="", stderr=words) | {"driver_version_file": None}
    assert decide(bare).fits


def test_what_the_run_itself_mends_stays_a_warning() -> None:
    for words in (
        "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.126",
        'Field "compute_cap" is not a valid field to query.',
    ):
        result = decide(h200(returncode=18, stdout=words, stderr=""))
        assert result.fits
        assert "nvidia-smi" in warned(result)


def test_what_does_not_answer_is_refused_by_name() -> None:
    raw = h200(returncode=124, stdout="", stderr="nvidia-smi did not answer within 30 s", timed_out=True)
    raw["unanswered"] = {
        "nvidia-smi": "no answer within 30 s",
        "weights_directory": "no answer within 30 s",
        "dpkg-query": "no answer within 30 s",
    }
    result = decide(raw)
    assert codes(result) == {"nvidia-smi", "host-silent"}
    lines = [one.line("gpu01") for one in result.refusals]
    assert sum("nvidia-smi" in one for one in lines) == 1
    assert any("weights_directory: no answer within 30 s" in one and "NFS" in one for one in lines)


def test_mig_is_refused_with_the_command_that_turns_it_off() -> None:
    # gpu-operator#132, dask-cuda#583: the usual query looks sound.
    mig = "".join(f"{n}, {'Enabled' if n in (2, 5) else 'Disabled'}\n" for n in range(8))
    result = decide(h200(mig=mig))
    assert codes(result) == {"gpu-mig"}
    assert "MIG on GPUs 2, 5" in line(result, "gpu-mig")
    assert "nvidia-smi -i 2,5 -mig 0" in line(result, "gpu-mig")
    every = decide(h200(mig=mig.replace("Disabled", "Enabled")))
    assert "nvidia-smi -mig 0" in line(every, "gpu-mig")
    assert decide(h200(mig=mig.replace("Enabled", "[N/A]"))).fits


def named(row: str) -> Plan:
    name, memory, capability = row.split(", ")
    raw = raw_host("H200", 8, driver=DRIVER)
    raw["nvidia_smi"]["stdout"] = "".join(
        f"{n}, {name}, GPU-{n}, {memory}, {DRIVER}, {capability}\n" for n in range(8)
    )
    return decide(raw)


@pytest.mark.parametrize(
    ("row", "not_named"),
    [
        # vllm#49147, vllm#50557: hints named a card of another size.
        ("NVIDIA H20Z, 143771 MiB, 9.0", {"H20", "H100"}),
        ("NVIDIA H200-141C, 144384 MiB, 9.0", {"A100-80GB", "H100"}),
        ("NVIDIA H100 80GB HBM2e, 81559 MiB, 9.0", {"H20", "H200"}),
        ("NVIDIA GH300 144G HBM3e, 146831 MiB, 9.0", {"GB200", "GB300", "H100"}),
        ("NVIDIA GB10, [N/A], 12.1", {"GB200", "GB300", "B200"}),
    ],
)
def test_a_board_that_the_catalogue_does_not_know_is_described(row: str, not_named: set[str]) -> None:
    result = named(row)
    assert codes(result) == {"gpu-unknown"}
    text = line(result, "gpu-unknown")
    name, memory, capability = row.split(", ")
    assert f"GPU {name}, " in text
    assert memory in text
    assert f"compute capability {capability}" in text
    assert "not in the catalogue" in text
    assert "metal_catalog_overlay" in text
    assert "did you mean" not in text
    hint = text.partition("boards with the same memory and compute capability: ")[2].rstrip(").").split(", ")
    assert not_named.isdisjoint(hint)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H200-141C", "GRID T4-16Q", "NVIDIA A100-40C", "NVIDIA A100-4-20C", "NVIDIA H100L-94C",
        "NVIDIA L40S-48Q", "NVIDIA A16-8A", "NVIDIA H100-1-10CME", "GRID A100D-80C",
    ],
)  # fmt: skip
def test_a_vgpu_is_said_to_be_one(name: str) -> None:
    text = line(named(f"{name}, 81920 MiB, 9.0"), "gpu-unknown")
    assert "a vGPU" in text
    assert "pass the whole GPU through" in text


def test_a_board_without_a_name_asks_for_a_newer_driver() -> None:
    # NVIDIA forum, open-gpu-kernel-modules#797: a driver that is older than the board
    text = line(named("NVIDIA Graphics Device, 183359 MiB, 10.0"), "gpu-unknown")
    assert "metal_driver_branch" in text
    assert "did you mean" not in text


def test_names_of_whole_boards_are_not_taken_for_vgpus() -> None:
    for name in ("NVIDIA A100-SXM4-64GB", "NVIDIA H20-3f", "NVIDIA A100-PCIE-40GB", "NVIDIA PG506-230"):
        assert "vGPU" not in line(named(f"{name}, 65536 MiB, 8.0"), "gpu-unknown")


def user(program: str, memory: str, unit: str | None = None, gpu: str = "GPU-0") -> dict[str, Any]:
    return {"program": program, "unit": unit, "memory": memory, "gpu_uuid": gpu, "pid": 2214}


def test_a_little_memory_of_a_daemon_stops_nothing() -> None:
    # g1: an MPS server holds 30 MiB of each GPU.
    daemons = [
        user("nvidia-cuda-mps-server", "30 MiB"),
        user("nv-hostengine", "300 MiB", "nvidia-dcgm.service"),
        user("nvidia-persistenced", "[N/A]"),
    ]
    result = decide(h200() | {"gpu_users": daemons})
    assert result.fits
    text = next(one.message for one in result.warnings if one.code == "gpu-shared")
    assert "NVIDIA's MPS server" in text
    assert "DCGM" in text


@pytest.mark.parametrize(
    "users",
    [
        [user("python3", "81920 MiB")],
        [user("python3", "[N/A]")],
        [user("python3", "")],
        [user(f"worker{n}", "700 MiB") for n in range(3)],
        [user("nvidia-cuda-mps-server", "60000 MiB")],
    ],
)
def test_memory_that_an_engine_needs_is_refused(users: list[dict[str, Any]]) -> None:
    result = decide(h200() | {"gpu_users": users})
    assert codes(result) == {"gpu-busy"}
    assert users[0]["program"] in line(result, "gpu-busy")


def test_memory_of_several_gpus_is_not_added_up() -> None:
    users = [user("Xorg", "700 MiB", gpu=f"GPU-{n}") for n in range(8)]
    assert decide(h200() | {"gpu_users": users}).fits


PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=40), st.just("9" * 5000)
)
FOREIGN = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=8,
)
KEYS = sorted({*raw_host("H200", 8, driver=DRIVER), "stored_weights", "adoptable", "port_owners", "gpu_users",
               "engine_environments", "unanswered", "nvidia_installer", "probe"})  # fmt: skip


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), FOREIGN, max_size=6))
def test_any_answer_of_a_host_makes_a_plan(foreign: dict[str, Any]) -> None:
    result = decide(h200() | foreign, weights_adopt=["/data"])
    assert result.as_dict()["host"] == "gpu01"
    assert all("\n" not in one.line("gpu01") for one in result.refusals)
    assert all("\x1b" not in one.line("gpu01") for one in result.refusals)
    driver_state(h200() | foreign, decide(h200()))


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            ["present", "returncode", "stdout", "stderr", "mig", "recovery", "bus_ids", "timed_out"]
        ),
        FOREIGN,
    )
)
def test_any_answer_of_nvidia_smi_makes_a_plan(foreign: dict[str, Any]) -> None:
    decide(h200(**foreign))


CELL = st.sampled_from(
    ["3", "[N/A]", "ERR!", "NVIDIA H200", "143771 MiB", "9.0", "", "[x", "]", DRIVER, "-1"]
)


@settings(deadline=None)
@given(st.lists(st.lists(CELL, max_size=8).map(", ".join), max_size=12).map("\n".join))
def test_any_table_makes_a_plan(table: str) -> None:
    decide(h200(stdout=table, mig=table, recovery=table, bus_ids=table))


def test_a_huge_answer_is_read_in_no_time() -> None:
    raw = h200(stdout="3, " * 10_000_000, stderr="[" * 1_000_000, recovery="]," * 1_000_000)
    raw["os_release"] = "ID='" * 1_000_000
    raw["driver_version_file"] = "NVRM version: " * 500_000
    raw["packages"] = {f"nvidia-{n}": "1" for n in range(100_000)}
    raw["listening_ports"] = list(range(100_000))
    assert not decide(raw).fits


COLLECTED = [
    "packages", "versions", "sources", "kernels", "container", "dkms", "dkms_logs", "nouveau", "uninstaller",
    "modprobe", "keys", "active_units", "stopped_units", "fabric", "nodes", "module_users",
]  # fmt: skip
NAMED = st.dictionaries(
    st.sampled_from(["nvidia-driver-cuda", "state", "version", "running", "modules", "holders", "processes"]),
    FOREIGN,
    max_size=4,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(COLLECTED), FOREIGN | NAMED, max_size=5), st.booleans())
def test_any_answer_about_a_driver_is_decided(collected: dict[str, Any], loaded: bool) -> None:
    # AttributeError and TypeError before, and the play of all hosts ended.
    raw = h200() if loaded else raw_host("H200", 8)
    made = decide(h200())
    driver_state(raw, made, collected)
    driver_work(collected, raw, made)
    service_problem(collected, raw, made, "x")
    failure_line({"msg": "nvidia is in use"}, "https://example.org", collected, "nvidia")

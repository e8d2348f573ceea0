"""The checks of `metal accept`, against published outputs of NVIDIA's programs (data/accept/README.md)."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from minimax_metal.host.accept import boot, dcgm, driver, endpoint, fabric
from minimax_metal.host.accept.compute import judge_bandwidth
from minimax_metal.host.accept.context import Context
from minimax_metal.host.accept.machine import Answer, Node
from minimax_metal.host.accept.smi import active, parse_links, parse_log, throttle_reasons
from minimax_metal.host.engine.diagnosis import find_xids
from tests.support.acceptance import BOOT, fake, host, published

H100 = published("log-8-h100.txt")


def with_log(text: str, gpu: str = "H100", count: int = 8) -> Context:
    context = host(gpu, count)
    fake(context).answers["nvidia-smi -q"] = Answer(0, text)
    return context


def indented(section: str) -> str:
    """A log of one GPU with this section."""
    return f"Driver Version                            : 580.159.04\nGPU 00000000:18:00.0\n{section}"


# What nvidia-smi prints ------------------------------------------------------------------------------------


def test_the_log_is_read_by_its_indentation() -> None:
    log = parse_log(H100)
    assert (log.driver, log.attached, len(log.gpus)) == ("565.57.01", 8, 2)
    gpu = log.gpus[1]
    assert gpu.address == "00000000:2A:00.0"
    assert gpu.log.get("Product Name") == "NVIDIA H100 80GB HBM3"
    assert gpu.log.get("Fabric", "State") == "Completed"
    assert gpu.log.number("FB Memory Usage", "Total") == 81559
    assert gpu.log.get("Fabric", "Health", "Bandwidth") is None  # N/A


def test_a_reason_below_a_reason_is_found_and_a_counter_is_none() -> None:
    text = published("performance-rtx-pro-6000.txt")
    reasons = throttle_reasons(parse_log(text).gpus[0])
    assert reasons is not None
    assert list(active(reasons)) == []
    slowed = text.replace(
        "HW Thermal Slowdown           : Not Active", "HW Thermal Slowdown           : Active"
    )
    assert list(active(throttle_reasons(parse_log(slowed).gpus[0]) or {})) == ["HW Thermal Slowdown"]


def test_links_are_read() -> None:
    a100 = parse_links(published("nvlink-8-a100.txt"))
    assert len(a100) == 8
    assert all(len(gpu.states) == 12 and not gpu.down for gpu in a100)
    assert [gpu.down for gpu in parse_links(published("nvlink-v100-inactive.txt"))] == [[3, 5]]
    assert parse_links("GPU 0: NVIDIA L20 (UUID: GPU-0)\n") == ()


# Boot ------------------------------------------------------------------------------------------------------


def test_nodes_of_every_gpu_are_asked_for() -> None:
    context = host("H20", 4)
    assert boot.check_nodes(context).state == "passed"
    del fake(context).nodes["/dev/nvidia3"], fake(context).nodes["/dev/nvidia-uvm"]
    outcome = boot.check_nodes(context)
    assert outcome.state == "failed"
    assert "/dev/nvidia3, /dev/nvidia-uvm" in outcome.found


def test_a_node_closed_to_the_engine_is_found() -> None:
    context = host("H20", 4)
    fake(context).nodes["/dev/nvidiactl"] = Node("/dev/nvidiactl", True, 0o660, BOOT)
    outcome = boot.check_nodes(context)
    assert (outcome.state, "/dev/nvidiactl" in outcome.found) == ("failed", True)


def test_switches_are_asked_for_where_they_are() -> None:
    context = host("H100", 8)
    assert boot.check_nodes(context).state == "passed"
    del fake(context).nodes["/dev/nvidia-nvswitch0"]
    assert "nvswitch0" in boot.check_nodes(context).found


def test_a_cold_boot_is_seen_by_the_times() -> None:
    assert boot.check_cold_boot(host()).state == "passed"


def test_a_driver_newer_than_the_boot_shows_no_cold_boot() -> None:
    context = host()
    fake(context).times["/var/lib/dpkg/info/libcuda1:amd64.list"] = BOOT + 3600.0
    outcome = boot.check_cold_boot(context)
    assert outcome.state == "limited"
    assert "reboot" in outcome.remedy


def test_nodes_made_after_the_engine_began_fail() -> None:
    context = host()
    nodes = fake(context).nodes
    nodes["/dev/nvidia-uvm"] = replace(nodes["/dev/nvidia-uvm"], made=BOOT + 500.0)
    outcome = boot.check_cold_boot(context)
    assert outcome.state == "failed"
    assert "before the nodes" in outcome.found


def test_a_unit_without_the_order_fails() -> None:
    context = host("H20", 4)
    unit = context.services[0].unit
    fake(context).units[unit] = {**fake(context).units[unit], "After": "network-online.target"}
    assert "is not ordered after" in boot.check_cold_boot(context).found


def test_a_lost_gpu_is_counted() -> None:
    context = host("H100", 8)
    line = "GPU {}: NVIDIA H100 80GB HBM3 (UUID: GPU-4039dfe4-0c97-4b1e-683e-eb7d42699053)\n"
    fake(context).answers["nvidia-smi -L"] = Answer(0, "".join(line.format(number) for number in range(7)))
    outcome = boot.check_gpus(context)
    assert (outcome.state, outcome.found, outcome.expected) == (
        "failed",
        "7 GPUs",
        "8 x NVIDIA H100 80GB HBM3",
    )


# Driver ----------------------------------------------------------------------------------------------------

VERSION = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (dvs-builder@U22)\n"
    "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14+deb12u1)\n"
)


def versions(module: str, smi: str, library: str) -> Context:
    context = host()
    machine = fake(context)
    machine.files["/proc/driver/nvidia/version"] = VERSION.format(module)
    machine.files[f"/usr/lib/x86_64-linux-gnu/libcuda.so.{library}"] = ""
    machine.files["/usr/lib/x86_64-linux-gnu/libcuda.so.1"] = ""
    machine.answers["nvidia-smi --version"] = Answer(
        0, f"NVIDIA-SMI version  : {smi}\nNVML version        : {smi[:-3]}\nDRIVER version      : {module}\n"
    )
    return context


def test_one_version_passes() -> None:
    outcome = driver.check_versions(versions("580.126.20", "580.126.20", "580.126.20"))
    assert (outcome.state, outcome.found) == ("passed", "580.126.20 in module, nvidia-smi and libraries")


def test_a_library_of_another_version_fails() -> None:
    outcome = driver.check_versions(versions("580.126.20", "580.126.20", "580.159.04"))
    assert outcome.state == "failed"
    assert "580.159.04" in outcome.found


def test_nvmls_own_word_for_it_is_passed_on() -> None:
    context = versions("580.126.20", "580.126.20", "580.126.20")
    said = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.159"
    fake(context).answers["nvidia-smi --version"] = Answer(18, said)
    outcome = driver.check_versions(context)
    assert outcome.state == "failed"
    assert "Driver/library version mismatch" in outcome.found


def test_an_old_branch_fails() -> None:
    outcome = driver.check_versions(versions("570.86.15", "570.86.15", "570.86.15"))
    assert (outcome.state, outcome.found) == ("failed", "570.86.15")


@pytest.mark.parametrize(
    ("check", "state"),
    [
        (driver.check_persistence, "passed"),
        (driver.check_clocks, "passed"),
        (driver.check_pcie, "passed"),
        (driver.check_ecc, "passed"),
    ],
)
def test_a_healthy_h100_passes(check, state: str) -> None:  # type: ignore[no-untyped-def]  # parametrised
    assert check(with_log(H100)).state == state


def test_fewer_lanes_than_the_card_has_are_said() -> None:
    outcome = driver.check_pcie(with_log(published("log-l4.txt")))
    assert (outcome.state, "8 of 16 lanes" in outcome.found) == ("limited", True)


def test_heat_fails_and_heat_that_was_is_said() -> None:
    text = published("performance-rtx-pro-6000.txt")
    assert driver.check_clocks(with_log(text)).state == "passed"  # a power cap is no finding
    now = text.replace(
        "SW Thermal Slowdown               : Not Active", "SW Thermal Slowdown               : Active"
    )
    assert driver.check_clocks(with_log(now)).state == "failed"
    before = text.replace(
        "HW Thermal Slowdown               : 0 us", "HW Thermal Slowdown               : 5000000 us"
    )
    outcome = driver.check_clocks(with_log(before))
    assert (outcome.state, "for 5 s" in outcome.found) == ("limited", True)


def test_persistence_mode_off_fails() -> None:
    text = H100.replace(
        "Persistence Mode                      : Enabled", "Persistence Mode                      : Disabled"
    )
    assert driver.check_persistence(with_log(text)).state == "failed"


def test_an_uncorrected_error_fails_and_one_of_last_year_does_not() -> None:
    line = "DRAM Uncorrectable            : 0"
    assert H100.count(line) == 4
    first = H100.replace(line, line[:-1] + "3", 1)
    outcome = driver.check_ecc(with_log(first))
    assert (outcome.state, outcome.figures["uncorrected"]) == ("failed", 3)
    head, aggregate = H100.split("        Aggregate", 1)
    ever = driver.check_ecc(
        with_log(head + "        Aggregate" + aggregate.replace(line, line[:-1] + "3", 1))
    )
    assert (ever.state, ever.figures["uncorrected_ever"]) == ("passed", 3)


def test_rows_that_wait_for_a_reset_fail() -> None:
    text = indented(published("remapped-rows-pending.txt"))
    outcome = driver.check_ecc(with_log(text))
    assert (outcome.state, "Remapped Rows Pending" in outcome.found) == ("failed", True)


def test_a_silent_nvidia_smi_is_no_pass() -> None:
    context = host()
    fake(context).answers["nvidia-smi"] = Answer(9, "NVIDIA-SMI has failed because it couldn't communicate")
    states = {
        check(context).state for check in (driver.check_ecc, driver.check_clocks, driver.check_persistence)
    }
    assert states == {"skipped"}
    assert boot.check_gpus(context).state == "failed"


def test_a_gpus_fault_fails_and_an_applications_is_said() -> None:
    grave = driver.judge_xids(find_xids(published("xids.txt").splitlines()))
    assert grave.state == "failed"
    assert "Xid 79 on 0000:91:00 (GPU has fallen off the bus)" in grave.found
    assert driver.judge_xids(find_xids(published("xid-31.txt").splitlines())).state == "limited"
    assert driver.judge_xids([]).state == "passed"


def test_an_xid_that_nobody_knows_is_no_applications_fault() -> None:
    line = published("xids.txt").splitlines()[1]
    assert driver.judge_xids(find_xids([line])).state == "failed"


def test_a_fault_of_a_switch_is_seen() -> None:
    lines = published("sxids.txt").splitlines()
    errors = driver.switch_errors(lines)
    assert [(one.number, one.fatal) for one in errors] == [(20034, True), (12028, False)]
    assert driver.judge_xids([], errors).state == "failed"
    assert driver.judge_xids([], errors[1:]).state == "limited"


def test_a_lost_gpu_without_an_xid_is_no_sound_host() -> None:
    """NVSentinel#155, gpud PR#1209: it passed as "none since the boot"."""
    lines = [
        "2026-11-20T03:11:07+0000 h kernel: NVRM: GPU 0000:4e:00.0: RmInitAdapter failed! (0x62:0xffff:2477)",
        "2026-11-20T03:11:07+0000 gpu03 kernel: usb 1-1: new device",
    ]
    outcome = driver.judge_xids([], [], driver.hardware_events(lines))
    assert outcome.state == "failed"
    assert "0000:4e:00.0" in str(outcome)
    nonfatal = "NVRM: Xid (PCI:0000:00:1e): 149, NETIR_LINK_DOWN Nonfatal XC1 i2 Link 17 (0xdeadbeef)"
    assert driver.judge_xids(find_xids([nonfatal])).state == "limited"
    assert driver.judge_xids(find_xids([nonfatal.replace("Nonfatal", "Fatal")])).state == "failed"


def test_a_host_without_a_kernel_log_is_not_passed() -> None:
    context = host()
    fake(context).answers["journalctl --dmesg"] = Answer(0, "")
    assert driver.check_xid(context).state == "skipped"
    fake(context).answers["journalctl --dmesg"] = Answer(
        0, "2026-11-22T00:00:00 gpu01 kernel: Linux version 6.1\n"
    )
    context.answers.clear()
    assert driver.check_xid(context).state == "passed"


# Fabric ----------------------------------------------------------------------------------------------------


def switched(text: str, *, active_state: str = "active", package: str = "565.57.01") -> Context:
    context = with_log(text)
    fake(context).units[fabric.MANAGER] = {"ActiveState": active_state, "Result": "success"}
    fake(context).answers["dpkg-query -W"] = Answer(0, f"{package}-1 install ok installed\n")
    return context


def test_a_joined_fabric_passes() -> None:
    outcome = fabric.check_fabric(switched(H100))
    assert (outcome.state, outcome.figures["fabric_manager"]) == ("passed", "565.57.01")


def test_a_manager_of_another_version_fails() -> None:
    outcome = fabric.check_fabric(switched(H100, package="565.57.02"))
    assert (outcome.state, outcome.expected) == ("failed", "the driver's version 565.57.01")


def test_a_manager_that_does_not_run_fails() -> None:
    assert fabric.check_fabric(switched(H100, active_state="failed")).state == "failed"


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("fabric-in-progress.txt", "State In Progress, Status N/A"),
        ("fabric-insufficient-resources.txt", "Status Insufficient Resources"),
    ],
)
def test_a_gpu_outside_the_fabric_fails(section: str, words: str) -> None:
    outcome = fabric.check_fabric(switched(indented(published(section)), package="580.159.04"))
    assert (outcome.state, words in outcome.found) == ("failed", True)


def test_in_a_rack_only_the_gpus_are_asked() -> None:
    context = with_log(indented(published("fabric-in-progress.txt")), "GB200", 4)
    assert fabric.check_fabric(context).state == "failed"
    healthy = host("GB200", 4)
    fake(healthy).answers["nvidia-smi -q"] = Answer(0, H100)
    assert fabric.check_fabric(healthy).state == "passed"
    assert not any("fabricmanager" in words for words in fake(healthy).asked)


def test_without_switches_there_is_no_fabric() -> None:
    assert fabric.check_fabric(host("H20", 4)).state == "skipped"


def links(text: str, gpu: str = "H100", count: int = 8) -> Context:
    context = host(gpu, count)
    fake(context).answers["nvidia-smi nvlink -s"] = Answer(0, text)
    return context


def test_all_links_up_pass() -> None:
    outcome = fabric.check_nvlink(links(published("nvlink-8-a100.txt"), "A100-80GB"))
    assert (outcome.state, outcome.found) == ("passed", "96 links up at 25 GB/s each")


def test_a_link_down_fails() -> None:
    text = published("nvlink-8-a100.txt").replace("Link 7: 25 GB/s", "Link 7: <inactive>", 1)
    outcome = fabric.check_nvlink(links(text, "A100-80GB"))
    assert (outcome.state, outcome.found) == ("failed", "GPU 0: link 7 down")


def test_fewer_links_than_the_catalogue_knows_fail() -> None:
    text = "".join(
        published("nvlink-h100.txt")
        .replace("GPU 0:", f"GPU {number}:")
        .replace("         Link 17: 26.562 GB/s\n", "")
        for number in range(8)
    )
    outcome = fabric.check_nvlink(links(text))
    assert (outcome.state, "GPU 0: 17 links" in outcome.found) == ("failed", True)


def test_a_gpu_whose_links_are_all_down_is_named() -> None:
    # NVML's words instead of the links: leptonai/gpud issue 1085.
    first, _, rest = published("nvlink-8-a100.txt").partition("GPU 1:")
    head, *_ = first.splitlines()
    text = f"{head}\nNVML: Unable to retrieve NVLink information as all links are inActive\nGPU 1:{rest}"
    outcome = fabric.check_nvlink(links(text, "A100-80GB"))
    assert (outcome.state, outcome.found) == ("failed", "GPU 0: no link up")


def test_gpus_without_links_are_missed() -> None:
    outcome = fabric.check_nvlink(links(published("nvlink-h100.txt")))
    assert (outcome.state, outcome.found) == ("failed", "GPU 1, 2, 3, 4, 5, 6, 7: no link up")
    assert fabric.check_nvlink(links("", "L20", 4)).state == "skipped"
    assert fabric.check_nvlink(links("")).state == "failed"


# DCGM ------------------------------------------------------------------------------------------------------


def test_a_setting_is_no_fault_of_the_hardware() -> None:
    outcome = dcgm.judge(Answer(226, published("dcgm-4-persistence.json")))
    assert (outcome.state, "Persistence mode for GPU 0 is disabled" in outcome.found) == ("limited", True)


def test_a_fault_of_the_hardware_fails() -> None:
    # The same document with the severity of a GPU that is to be taken out (DCGM_ERROR_ISOLATE).
    text = published("dcgm-4-persistence.json").replace('"error_severity": 5', '"error_severity": 2')
    assert dcgm.judge(Answer(226, text)).state == "failed"


def test_a_test_that_passed_passes() -> None:
    data = json.loads(published("dcgm-4-persistence.json"))
    result = data["DCGM Diagnostic"]["test_categories"][0]["tests"][0]["results"][0]
    del result["warnings"]
    result["status"] = "Pass"
    outcome = dcgm.judge(Answer(0, "Successfully ran diagnostic for group.\n" + json.dumps(data)))
    assert (outcome.state, outcome.found) == ("passed", "software: 1 results pass")


def test_nothing_that_ran_is_no_pass() -> None:
    assert dcgm.judge(Answer(0, published("dcgm-3-skipped.json"))).state == "skipped"
    assert dcgm.judge(Answer(127, "", "no program dcgmi")).state == "skipped"
    assert (
        dcgm.judge(Answer(1, "Error: unable to establish a connection to the specified host")).state
        == "skipped"
    )


# Figures ---------------------------------------------------------------------------------------------------


def test_bandwidth_is_held_against_what_was_published() -> None:
    interconnect = host("H200", 8).gpus.interconnect
    assert judge_bandwidth({"bandwidth": 470e9}, 8, interconnect).state == "passed"
    slow = judge_bandwidth({"bandwidth": 380e9}, 8, interconnect)
    assert (slow.state, "nccl-tests issue 272" in slow.expected) == ("failed", True)


def test_bandwidth_is_held_against_the_links_where_nothing_was_published() -> None:
    interconnect = host("H20", 4).gpus.interconnect
    assert judge_bandwidth({"bandwidth": 340e9}, 4, interconnect).state == "passed"
    assert judge_bandwidth({"bandwidth": 40e9}, 4, interconnect).state == "failed"


def test_bandwidth_over_pcie_is_only_told() -> None:
    outcome = judge_bandwidth({"bandwidth": 28e9}, 4, host("RTX-PRO-6000", 4).gpus.interconnect)
    assert (outcome.state, outcome.found) == ("limited", "28 GB/s over 4 cards (NCCL None)")


@pytest.mark.parametrize(
    ("planned", "by_hand", "logged", "told", "state"),
    [
        (400_000, None, 410_000, 410_000, "passed"),
        (400_000, None, 410_000, None, "passed"),
        (400_000, None, 430_000, 430_000, "failed"),
        (400_000, None, 379_000, None, "failed"),
        (400_000, None, 400_000, 300_000, "failed"),
        (400_000, 8192, 8192, 8192, "passed"),
        (None, None, 123_456, 123_456, "limited"),
        (400_000, None, None, None, "skipped"),
    ],
)
def test_tokens_within_five_percent(
    planned: int | None, by_hand: int | None, logged: int | None, told: int | None, state: str
) -> None:
    assert endpoint.judge_tokens(planned, by_hand, logged, told).state == state


def test_a_number_in_the_launch_line_counts() -> None:
    assert endpoint.asked_tokens(["sglang", "serve", "--max-total-tokens", "8192"]) == 8192
    assert endpoint.asked_tokens(["--max-total-tokens=4096"]) == 4096
    assert endpoint.asked_tokens(["--port", "8000"]) is None


def test_the_newest_start_in_the_log_counts() -> None:
    context = host("H20", 4)
    # Words of SGLang 0.5.23, managers/scheduler.py.
    line = (
        "max_total_num_tokens=441344, chunked_prefill_size=8192, max_prefill_tokens=16384, context_len=196608"
    )
    fake(context).answers["journalctl --unit=sglang@minimax-m2.5.service"] = Answer(
        0, f"[2026-11-22 TP0] {line}\n"
    )
    assert endpoint.logged_tokens(context, context.services[0]) == 441344
    assert any(re.search(r"--reverse", words) for words in fake(context).asked)

"""The driver, and its data on the GPUs' health: versions, persistence, clocks, PCIe, ECC, Xid."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from minimax_metal.common.documents import digits
from minimax_metal.host.accept.context import Context
from minimax_metal.host.accept.outcome import Outcome, failed, limited, passed, skipped
from minimax_metal.host.accept.smi import Gpu, active, throttle_reasons
from minimax_metal.host.engine.diagnosis import XIDS, Event, Weight, Xid, find_events, find_xids

MISMATCH: Final = "an upgrade without a reboot: reboot, or install matching versions; docs/driver.md"
SILENT: Final = "nvidia-smi -q does not answer: see check gpus"
LIBRARIES: Final = (
    "/usr/lib/x86_64-linux-gnu/libcuda.so.*.*",
    "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.*.*",
    "/usr/lib/aarch64-linux-gnu/libcuda.so.*.*",
    "/usr/lib/aarch64-linux-gnu/libnvidia-ml.so.*.*",
    "/usr/lib/x86_64-linux-gnu/nvidia/current/libcuda.so.*.*",
)
SLOWED: Final = frozenset(
    {"HW Slowdown", "HW Thermal Slowdown", "HW Power Brake Slowdown", "SW Thermal Slowdown", "Sync Boost"}
)
"""Reasons that slow an engine's clocks; a power cap and idle clocks are the normal state."""
REPAIRS: Final = (
    ("Remapped Rows", "Pending"),
    ("Remapped Rows", "Remapping Failure Occurred"),
    ("Retired Pages", "Pending Page Blacklist"),
    ("ECC Errors", "Channel Repair Pending"),
    ("ECC Errors", "TPC Repair Pending"),
    ("ECC Errors", "Unrepairable Memory"),
    ("ECC Errors", "Aggregate", "SRAM Threshold Exceeded"),
    ("GPU Reset Status", "Reset Required"),
    ("GPU Reset Status", "Drain and Reset Recommended"),
)
"""Lines that are ``Yes`` for a GPU that needs a reset, a reboot or a repair."""


def check_versions(context: Context) -> Outcome:
    """The kernel module and the libraries have the same version, of the planned branch."""
    expected = f"one version of driver branch {context.driver.branch}, {context.driver.minimum} or newer"
    text = context.machine.read("/proc/driver/nvidia/version")
    module = re.search(r"Kernel Module(?: for \S+)?\s+(\d+\.[\d.]*\d)", text or "")
    if module is None:
        return failed("driver_version", "no driver loaded", expected, "docs/driver.md")
    answer = context.ask("nvidia-smi-version", "nvidia-smi", "--version")
    if answer.status:
        found = f"nvidia-smi ended with {answer.status}: {answer.words}"
        return failed("driver_version", found, expected, MISMATCH, module=module[1])
    library = re.search(r"NVIDIA-SMI version\s*:\s*([\d.]+)", answer.out)
    files = sorted(
        {
            version[1]
            for pattern in LIBRARIES
            for path in context.machine.list(pattern)
            if (version := re.search(r"\.so\.(\d+\.\d[\d.]*)$", path))
        }
    )
    versions = {module[1], *files, *([library[1]] if library else [])}
    figures = {"module": module[1], "nvidia_smi": library[1] if library else None, "libraries": files}
    if len(versions) != 1:
        found = (
            f"module {module[1]}, nvidia-smi {figures['nvidia_smi']}, libraries {', '.join(files) or 'none'}"
        )
        return failed("driver_version", found, expected, MISMATCH, **figures)
    if _numbers(module[1]) < _numbers(context.driver.minimum):
        return failed("driver_version", module[1], expected, "run site.yml", **figures)
    if module[1].split(".")[0] != context.driver.branch:
        return limited(
            "driver_version",
            module[1],
            expected,
            "a driver that you manage yourself: it is new enough",
            **figures,
        )
    where = f"module, nvidia-smi{' and libraries' if files else ''}"
    return passed("driver_version", f"{module[1]} in {where}", **figures)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(number for part in version.split(".") if (number := digits(part)) is not None)


def check_persistence(context: Context) -> Outcome:
    """Persistence mode is on; otherwise each first user of a GPU waits seconds for it."""
    if not context.logged:
        return skipped("persistence", SILENT)
    off = [gpu.label for gpu in context.logged if gpu.log.get("Persistence Mode") != "Enabled"]
    if off:
        return failed(
            "persistence",
            f"off on {', '.join(off)}",
            "persistence mode on every GPU",
            "systemctl status nvidia-persistenced; nvidia-smi -pm 1",
        )
    return passed("persistence", f"on, {len(context.logged)} GPUs")


def check_clocks(context: Context) -> Outcome:
    """No GPU is slowed down by heat, the power brake or the board."""
    if not context.logged:
        return skipped("clocks", SILENT)
    slowed, counted = [], {}
    known = 0
    for gpu in context.logged:
        reasons = throttle_reasons(gpu)
        if reasons is None:
            continue
        known += 1
        slowed += [f"{gpu.label}: {name}" for name in active(reasons) if name in SLOWED]
        counters = gpu.log.at("Clocks Event Reasons Counters")
        for name in counters.below if counters else ():
            microseconds = gpu.log.number("Clocks Event Reasons Counters", name) or 0
            if microseconds and name in {"HW Thermal Slowdown", "HW Power Braking", "SW Thermal Slowdown"}:
                counted[f"{gpu.label} {name}"] = microseconds / 1e6
    if not known:
        return skipped("clocks", "nvidia-smi -q does not report clock slowdowns")
    if slowed:
        return failed(
            "clocks", "; ".join(slowed), "no GPU slowed down", "cooling, power, nvidia-smi -q -d PERFORMANCE"
        )
    if counted:
        found = "; ".join(f"{name} for {seconds:.0f} s" for name, seconds in sorted(counted.items())[:4])
        return limited(
            "clocks",
            f"{found} since the driver was loaded, but not now",
            "no GPU slowed down",
            "check again under load: nvidia-smi -q -d PERFORMANCE",
            slowed_seconds=counted,
        )
    return passed("clocks", f"no slowdown on {known} GPUs")


def check_pcie(context: Context) -> Outcome:
    """Every GPU has all the PCIe lanes it supports; the generation drops while idle, so it is not checked."""
    narrow, known = [], 0
    for gpu in context.logged:
        path = ("PCI", "GPU Link Info", "Link Width")
        now, most = gpu.log.number(*path, "Current"), gpu.log.number(*path, "Max")
        if now and most:
            known += 1
            if now < most:
                narrow.append(f"{gpu.label}: {now} of {most} lanes")
    if not known:
        return skipped("pcie", "nvidia-smi -q does not report PCIe lanes" if context.logged else SILENT)
    if narrow:
        return limited(
            "pcie",
            "; ".join(narrow),
            "all lanes",
            "reseat the card or its riser; the slot may have fewer lanes",
        )
    return passed("pcie", f"all lanes of {known} GPUs")


def check_ecc(context: Context) -> Outcome:
    """ECC is on, with no uncorrected error since the driver was loaded, and no pending repair."""
    if not context.logged:
        return skipped("ecc", SILENT)
    expected = "ECC on, no uncorrected error since the boot, no repair pending"
    bad: list[str] = []
    corrected = uncorrected = lifetime = 0
    known = 0
    for gpu in context.logged:
        mode = gpu.log.get("ECC Mode", "Current")
        known += mode is not None
        if mode not in {None, "Enabled"}:
            bad.append(f"{gpu.label}: ECC {mode}")
        now = _sum(gpu, "Volatile", lambda key: "Uncorrectable" in key)
        corrected += _sum(gpu, "Volatile", lambda key: " Correctable" in key)
        lifetime += _sum(gpu, "Aggregate", lambda key: "Uncorrectable" in key)
        uncorrected += now
        if now:
            bad.append(f"{gpu.label}: {now} uncorrected error{'s' if now > 1 else ''}")
        bad += [f"{gpu.label}: {' '.join(path)}" for path in REPAIRS if gpu.log.get(*path) == "Yes"]
        action = gpu.log.get("GPU Recovery Action")
        if action:
            bad.append(f"{gpu.label}: the driver asks for {action}")
    figures = {"corrected": corrected, "uncorrected": uncorrected, "uncorrected_ever": lifetime}
    if bad:
        return failed(
            "ecc",
            "; ".join(bad),
            expected,
            "reset the GPUs or reboot; if it returns, have the GPU repaired (nvidia-smi -q -d "
            "ECC,ROW_REMAPPER)",
            **figures,
        )
    if not known:
        return skipped("ecc", "these GPUs don't report ECC")
    ever = f", {lifetime} uncorrected in its lifetime" if lifetime else ""
    return passed("ecc", f"on, {corrected} corrected, 0 uncorrected since the boot{ever}", **figures)


def _sum(gpu: Gpu, period: str, counts: Callable[[str], bool]) -> int:
    entry = gpu.log.at("ECC Errors", period)
    if entry is None:
        return 0
    return sum(entry.number(key) or 0 for key in entry.below if counts(f" {key}"))


def check_xid(context: Context) -> Outcome:
    """The kernel has logged no GPU error since boot."""
    if not context.ask("kernel-first", *_KERNEL, "--lines=1").out.strip():
        return skipped("xid", "the journal has no messages of this host's kernel")
    answer = context.ask("kernel-nvidia", *_KERNEL, f"--grep={_WORDS}")
    lines = answer.out.splitlines()
    return judge_xids(find_xids(lines), switch_errors(lines), hardware_events(lines))


_WORDS: Final = "NVRM|nvidia|NVSwitch|SXid|PCIe Bus Error|AER:|Hardware Error|EDAC|Memory failure|BAR [0-9]"
"""Names of the driver, PCIe and memory in kernel messages; disks are not part of this check."""


def hardware_events(lines: Sequence[str]) -> list[Event]:
    """Return kernel messages about GPUs, PCIe and memory without an Xid: a lost GPU may have none."""
    return [
        event
        for event in find_events(lines)
        if event.code != "nvswitch" and event.weight in {Weight.GRAVE, Weight.BACKING}
    ]


_KERNEL: Final = ("journalctl", "--dmesg", "--boot", "--no-pager", "--quiet", "--output=short-iso")


@dataclass(frozen=True, slots=True)
class SwitchError:
    """An SXid, the error of an NVSwitch."""

    number: int
    device: str
    fatal: bool
    line: str

    def __str__(self) -> str:
        return f"SXid {self.number} on NVSwitch {self.device} ({'fatal' if self.fatal else 'not fatal'})"


_SXID: Final = re.compile(r"SXid \((?:PCI:)?([0-9a-fA-F:.]+)\): (\d+),? ?(Non-fatal)?")


def switch_errors(lines: Sequence[str]) -> list[SwitchError]:
    """Return the SXids in lines of the kernel's log; one that does not say otherwise counts as fatal."""
    found = ((_SXID.search(line), line) for line in lines)
    return [
        SwitchError(int(match[2]), match[1], not match[3], line.strip()) for match, line in found if match
    ]


def judge_xids(
    xids: Sequence[Xid], switches: Sequence[SwitchError] = (), events: Sequence[Event] = ()
) -> Outcome:
    """Judge Xids, SXids and other kernel messages since boot for a host that is to be accepted."""
    if not xids and not switches and not events:
        return passed("xid", "none since the boot")
    counts = Counter([*map(str, xids), *map(str, switches), *(event.text for event in events)])
    found = "; ".join(f"{text}{f', {count} times' if count > 1 else ''}" for text, count in counts.items())
    expected = "no Xid, no SXid and no error of a GPU, PCIe or memory since boot"
    told = [*(xid.line for xid in xids), *(one.line for one in switches), *(event.line for event in events)]
    figures = {"lines": told[-50:]}
    # An unknown one may be a hardware error: somebody must look it up.
    grave = any(xid.rule.operator or xid.number not in XIDS for xid in xids)
    if lost := [event for event in events if event.weight == Weight.GRAVE]:
        return failed("xid", found, expected, lost[0].remedy, **figures)
    if grave or any(one.fatal for one in switches):
        return failed(
            "xid", found, expected, "reset the GPU or reboot; if it returns, have it repaired", **figures
        )
    return limited(
        "xid", found, expected, "usually an application's error; reboot and check again", **figures
    )

"""Device nodes after a cold boot: present, usable, and created before an engine needs them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from minimax_metal.common import nvidia_smi
from minimax_metal.common.documents import digits
from minimax_metal.host.accept.context import MODULE_NODES, Context
from minimax_metal.host.accept.outcome import Outcome, failed, limited, passed
from minimax_metal.host.accept.smi import sick_values
from minimax_metal.plan.gpu_state import REPAIR

CONTROL: Final = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")
MAKE: Final = f"systemctl status {MODULE_NODES}; nvidia-modprobe -c 0 -u creates them by hand"
PACKAGES: Final = (
    "libcuda1*",
    "libnvidia-compute*",
    "libnvidia-ml1*",
    "nvidia-driver*",
    "nvidia-kernel*",
    "nvidia-open*",
    "nvidia-dkms*",
)
"""Names of packages with the driver's module or its libraries, on Debian and on Ubuntu."""


def gpu_nodes(context: Context) -> list[str]:
    """Return the paths of the GPUs' own nodes: by the driver's minor numbers, else counted from 0."""
    minors = []
    for path in context.machine.list("/proc/driver/nvidia/gpus/*/information"):
        found = re.search(r"^Device Minor:\s*(\d+)", context.machine.read(path) or "", re.MULTILINE)
        if found:
            minors.append(int(found[1]))
    # The plan's number counts: a GPU that the driver lost has no node, and is reported missing here.
    numbers = sorted(minors) if len(minors) >= context.gpus.count else range(context.gpus.count)
    return [f"/dev/nvidia{number}" for number in numbers]


def check_gpus(context: Context) -> Outcome:
    """nvidia-smi lists the planned number of GPUs of the planned model."""
    answer = context.ask("nvidia-smi-list", "nvidia-smi", "-L")
    wanted, name = context.gpus.count, context.gpus.name
    expected = f"{wanted} x {name}"
    refusal = nvidia_smi.refusal(f"{answer.out}\n{answer.error}")
    if answer.status or refusal:
        found = f"nvidia-smi ended with {answer.status}: {answer.words}"
        return failed("gpus", found, expected, refusal.remedy if refusal else "docs/driver.md")
    names = re.findall(r"^GPU \d+: (.*?) \(UUID:", answer.out, re.MULTILINE)
    others = sorted(set(names) - {name})
    if len(names) != wanted or others:
        found = f"{len(names)} GPUs" + (f", among them {', '.join(others)}" if others else "")
        return failed("gpus", found, expected, "look for a lost GPU: check xid, lspci -d 10de:")
    return _state(context, expected) or passed("gpus", expected, count=len(names), model=name)


def _state(context: Context, expected: str) -> Outcome | None:
    """Return what prevents a listed GPU from being used: MIG, or values that the driver can't read."""
    mode = context.ask(
        "nvidia-smi-mig", "nvidia-smi", "--query-gpu=index,mig.mode.current", "--format=csv,noheader"
    )
    rows = nvidia_smi.rows(mode.out) if mode.status == 0 else []
    divided = [row[0] for row in rows if len(row) == 2 and nvidia_smi.mig_enabled(row[1])]
    if divided:
        return failed(
            "gpus",
            f"MIG on GPU {', '.join(divided)}",
            f"{expected}, whole: MIG off",
            f"stop what uses them, then nvidia-smi -i {','.join(divided)} -mig 0 as root",
        )
    first = {gpu.label: next(sick_values(gpu.log), None) for gpu in context.logged}
    sick = [f"{label}: {value}" for label, value in first.items() if value]
    if sick:
        return failed("gpus", "; ".join(sick), f"{expected} that nvidia-smi can read", REPAIR)
    return None


def check_nodes(context: Context) -> Outcome:
    """Every device node that CUDA opens exists and is accessible to every user."""
    wanted = [*gpu_nodes(context), *CONTROL]
    switched = context.gpus.nvswitch and context.link == "nvswitch"
    if switched:
        wanted.append("/dev/nvidia-nvswitchctl")
    nodes = {path: context.machine.node(path) for path in wanted}
    missing = [path for path, node in nodes.items() if node is None]
    closed = [path for path, node in nodes.items() if node is not None and not node.usable_by_all]
    switches = [
        path
        for path in context.machine.list("/dev/nvidia-nvswitch*")
        if re.fullmatch(r"/dev/nvidia-nvswitch\d+", path)
    ]
    if switched and not switches:
        missing.append("/dev/nvidia-nvswitch0")
    if missing:
        return failed("device_nodes", f"no {', '.join(missing)}", "device nodes of every GPU", MAKE)
    if closed:
        return failed(
            "device_nodes",
            f"{', '.join(closed)} not accessible to the engine's user",
            "character devices that every user may read and write (crw-rw-rw-)",
            MAKE,
        )
    caps = len(context.machine.list("/dev/nvidia-caps/*"))
    more = f", {len(switches)} NVSwitches" if switches else ""
    return passed(
        "device_nodes",
        f"{len(wanted)} nodes: {context.gpus.count} GPUs, control, uvm{more}",
        nodes=wanted + switches,
        caps=caps,
    )


def installed(context: Context) -> float | None:
    """Return when the driver's packages were last unpacked (dpkg then writes a package's file list)."""
    times = [
        context.machine.modified(path)
        for name in PACKAGES
        for path in context.machine.list(f"/var/lib/dpkg/info/{name}.list")
    ]
    return max((time for time in times if time is not None), default=None)


def spell_time(time: float) -> str:
    """Return a readable time."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def check_cold_boot(context: Context) -> Outcome:
    """The nodes were created at boot, before the engine's units, and not by hand afterwards."""
    boot, driver = context.booted, installed(context)
    nodes = [node for path in [*gpu_nodes(context), *CONTROL] if (node := context.machine.node(path))]
    expected = "device nodes created at a boot after the driver was installed, before the engine's units"
    again = "reboot the host and run this again"
    if boot is None or not nodes:
        what = "no boot time from systemd" if boot is None else "no device nodes"
        return failed("cold_boot", what, expected, again)
    made = max(node.made for node in nodes)
    figures = {"booted": boot, "driver_installed": driver, "nodes_made": made}
    late = []
    for service in context.services:
        unit = context.properties(service.unit, "After", "ExecMainStartTimestamp", "LoadState")
        if unit.get("LoadState") != "loaded":
            return failed("cold_boot", f"no unit {service.unit}", expected, "run site.yml", **figures)
        ordered = set(unit.get("After", "").split())
        # The driver's units come in between: the nodes are created before each of them (role nvidia_driver).
        if not ordered & ({MODULE_NODES} | set(context.driver.services)):
            late.append(f"{service.unit} is not ordered after {MODULE_NODES}")
        started = unit.get("ExecMainStartTimestamp", "").removeprefix("@")
        if (digits(started) or 0) > 0 and float(started) + 1 < made:
            late.append(f"{service.unit} started at {spell_time(float(started))}, before the nodes")
    if late:
        return failed("cold_boot", "; ".join(late), expected, f"{MAKE}; {again}", **figures)
    if driver is None:
        return limited("cold_boot", "no driver package", expected, "a .run file? " + again, **figures)
    if boot < driver:
        return limited(
            "cold_boot",
            f"the host booted {spell_time(boot)}, the driver was installed {spell_time(driver)}",
            expected,
            again,
            **figures,
        )
    return passed(
        "cold_boot",
        f"booted {spell_time(boot)}, nodes {max(0.0, made - boot):.0f} s later, before the engine",
        **figures,
    )

"""Links between the GPUs: fabric manager, fabric state, NVLinks."""

from __future__ import annotations

import re
from typing import Final

from minimax_metal.host.accept.context import Context
from minimax_metal.host.accept.driver import SILENT
from minimax_metal.host.accept.outcome import Outcome, failed, limited, passed, skipped
from minimax_metal.host.accept.smi import parse_links

MANAGER: Final = "nvidia-fabricmanager.service"
LOOK: Final = f"systemctl status {MANAGER}; journalctl -u {MANAGER}; docs/driver.md"


def check_fabric(context: Context) -> Outcome:
    """With NVSwitches, the fabric manager runs at the driver's version and every GPU has joined the fabric.

    The switches of a rack (NVL72) are managed elsewhere: there only the GPUs are checked.
    """
    managed, rack = context.gpus.nvswitch, context.link == "nvl72"
    if not managed and not rack:
        return skipped("fabric", "no NVSwitch on this host: no fabric manager needed")
    if not context.logged:
        return skipped("fabric", SILENT)
    version = None
    if managed:
        problem, version = _manager(context)
        if problem is not None:
            return problem
    bad = []
    for gpu in context.logged:
        joined, status = gpu.log.get("Fabric", "State"), gpu.log.get("Fabric", "Status")
        if joined != "Completed" or status != "Success":
            bad.append(f"{gpu.label}: State {joined or 'N/A'}, Status {status or 'N/A'}")
        health = gpu.log.get("Fabric", "Health", "Summary")
        if health not in {None, "Healthy"}:
            bad.append(f"{gpu.label}: Health {health}")
    if bad:
        return failed("fabric", "; ".join(bad), "State Completed, Status Success on every GPU", LOOK)
    manager = f"; fabric manager {version or 'running'}" if managed else "; managed outside the host"
    found = f"Completed, Success on {len(context.logged)} GPUs{manager}"
    return passed("fabric", found, fabric_manager=version)


def _manager(context: Context) -> tuple[Outcome | None, str | None]:
    """Return what is wrong with the fabric manager, and its package's version."""
    state = context.properties(MANAGER, "ActiveState", "Result")
    driver = context.log.driver if context.log else None
    package = context.ask(
        "dpkg-fabricmanager", "dpkg-query", "-W", "-f=${Version} ${Status}\n", "nvidia-fabricmanager*"
    )
    found = re.search(r"^(?:\d+:)?(\d+\.[\d.]*\d)\S* install ok installed", package.out, re.MULTILINE)
    version = found[1] if found else None
    if state.get("ActiveState") != "active":
        words = f"{MANAGER} {state.get('ActiveState') or 'unknown'} ({state.get('Result') or 'no result'})"
        return failed("fabric", words, "the fabric manager running", LOOK), version
    if version and driver and version != driver:
        words = f"fabric manager {version}"
        return failed("fabric", words, f"the driver's version {driver}", LOOK), version
    return None, version


def check_nvlink(context: Context) -> Outcome:
    """Every NVLink is up, as many as a GPU of this kind has."""
    wanted = context.gpus.interconnect.nvlinks if context.gpus.interconnect else None
    kind = context.link
    answer = context.ask("nvidia-smi-nvlink", "nvidia-smi", "nvlink", "-s")
    if answer.status:
        if kind == "none":
            return skipped("nvlink", f"no NVLink on {context.gpus.model}")
        found = f"nvidia-smi nvlink -s ended with {answer.status}: {answer.words}"
        return failed("nvlink", found, "the state of every NVLink", "nvidia-smi of the driver's version")
    gpus = parse_links(answer.out)
    if not gpus and kind in {"none", "bridge", "unknown", None}:
        return skipped("nvlink", f"no NVLink on {context.gpus.model} here")
    expected = f"{wanted or 'all'} NVLinks of each of {context.gpus.count} GPUs up"
    bad = [f"GPU {gpu.index}: link {', '.join(map(str, gpu.down))} down" for gpu in gpus if gpu.down]
    bad += [
        f"GPU {gpu.index}: {len(gpu.states)} links" for gpu in gpus if wanted and len(gpu.states) != wanted
    ]
    silent = sorted(set(range(context.gpus.count)) - {gpu.index for gpu in gpus})
    if silent and kind not in {"bridge", "unknown"}:
        bad.append(f"GPU {', '.join(map(str, silent))}: no link up")
    figures = {"links": {gpu.index: dict(gpu.states) for gpu in gpus}}
    if bad:
        return failed(
            "nvlink",
            "; ".join(bad),
            expected,
            "check fabric, xid; if links stay down, have the host repaired",
            **figures,
        )
    speeds = sorted({state for gpu in gpus for state in gpu.states.values()})
    total = sum(len(gpu.states) for gpu in gpus)
    if len(speeds) > 1:
        return limited(
            "nvlink", f"links at {' and '.join(speeds)}", "one speed", "check the slow ones", **figures
        )
    return passed("nvlink", f"{total} links up at {speeds[0]} each", **figures)

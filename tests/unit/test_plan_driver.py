"""The state of a host's driver, from real output of nvidia-smi and the kernel module."""

from __future__ import annotations

from typing import Any

import pytest

from minimax_metal.plan.driver.state import driver_state
from minimax_metal.plan.model import Plan

PLAN = Plan.of_record({"driver": {"minimum": "580.65.06"}, "gpus": {"count": 4}})
LOADED = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (dvs-builder@U22-I3)\n"
    "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
)
MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 590.48"


def listing(gpus: int, driver: str = "580.126.20") -> dict[str, Any]:
    lines = (f"{index}, NVIDIA H20, GPU-{index}, 97871 MiB, {driver}, 9.0" for index in range(gpus))
    return {"present": True, "returncode": 0, "stdout": "\n".join(lines) + "\n", "stderr": ""}


@pytest.mark.parametrize(
    ("smi", "loaded", "reboot", "gpus", "found"),
    [
        ({"present": False}, None, True, 0, "no NVIDIA driver is installed"),
        ({"present": True, "returncode": 9, "stdout": "NVIDIA-SMI has failed"}, None, True, 0, "not loaded"),
        (listing(4), "580.126.20", False, 4, "lists 4 GPUs"),
        (listing(3), "580.126.20", False, 3, "lists 3 GPUs"),
        ({"present": True, "returncode": 18, "stdout": MISMATCH}, "580.126.20", True, 0, "version mismatch"),
        (listing(4, "570.133.20"), "570.133.20", True, 4, "driver 570.133.20"),
        (listing(4, "580.9.01"), "580.9.01", True, 4, "driver 580.9.01"),
    ],
)
def test_a_driver_runs_or_needs_a_reboot(
    smi: dict[str, Any], loaded: str | None, reboot: bool, gpus: int, found: str
) -> None:
    facts = {"nvidia_smi": smi, "driver_version_file": LOADED.format(loaded) if loaded else None}
    state = driver_state(facts, PLAN)
    assert (state.reboot, state.gpus, state.loaded) == (reboot, gpus, loaded)
    assert found in state.found
    assert "580.65.06" in state.needed
    assert "4 GPUs" in state.needed

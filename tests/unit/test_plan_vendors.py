"""Hosts with accelerators of another vendor are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from minimax_metal.catalog import packaged_catalog
from minimax_metal.plan import Settings, parse_facts, plan
from minimax_metal.plan.model import Refusal
from tests.unit.plan_helpers import decide, raw_host


def found_on(devices: list[dict[str, Any]]) -> dict[str, Refusal]:
    raw = raw_host() | {"pci_devices": devices, "nvidia_smi": {"present": False}}
    settings = Settings.from_variables("gpu01", {"metal_model": "MiniMax-M2.5"})
    made = plan(settings, parse_facts(raw), packaged_catalog())
    return {one.code: one for one in made.refusals}


def board(vendor: str, device: str, kind: str, count: int = 8) -> list[dict[str, Any]]:
    return [
        {"address": f"0000:{n:02x}:00.0", "vendor": vendor, "device": device, "class": kind}
        for n in range(count)
    ]


BMC = board("0x1a03", "0x2000", "0x030000", 1)


@pytest.mark.parametrize(
    ("devices", "name"),
    [
        # pci.ids: 1002:74a1 MI300X, 1002:740f MI210, 19e5:d802 Ascend 910, 1da3:1060 Gaudi 3.
        (board("0x1002", "0x74a1", "0x120000"), "AMD"),
        (board("0x1002", "0x740f", "0x038000"), "AMD"),
        (board("0x19e5", "0xd802", "0x120000"), "Huawei Ascend"),
        (board("0x1da3", "0x1060", "0x120000"), "Intel Gaudi"),
    ],
)
def test_another_makers_host_is_refused_by_name(devices: list[dict[str, Any]], name: str) -> None:
    refusals = found_on(BMC + devices)
    assert f"8 {name} devices" in refusals["gpu-vendor"].found
    assert "SGLang" in refusals["gpu-vendor"].remedy
    assert "gpu-none" not in refusals


def test_the_display_of_a_management_controller_is_nobodys_gpu() -> None:
    assert "gpu-none" in found_on(BMC)
    # 19e5:1711 is the display of Huawei's own management controller.
    assert "gpu-none" in found_on(board("0x19e5", "0x1711", "0x030000", 1))


@pytest.mark.parametrize("gpu", ["MI300X", "AMD Instinct MI325X", "Ascend 910B", "Gaudi 3"])
def test_a_what_if_names_the_maker(gpu: str) -> None:
    made = decide(gpu, 8, model="MiniMax-M2.5")
    assert "gpu-vendor" in {one.code for one in made.refusals}


def test_nvidia_gpus_beside_another_makers_display_are_planned() -> None:
    raw = raw_host()
    raw["pci_devices"] = [*raw["pci_devices"], *board("0x1002", "0x74a1", "0x030000", 1)]
    settings = Settings.from_variables("gpu01", {"metal_model": "MiniMax-M2.5"})
    assert "gpu-vendor" not in {one.code for one in plan(settings, parse_facts(raw)).refusals}

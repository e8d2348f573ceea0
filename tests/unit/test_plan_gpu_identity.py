"""GPUs that share a name or a PCI id, GPUs of unknown memory, and hosts that are not x86_64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from minimax_metal.catalog import load_catalog, packaged_catalog
from minimax_metal.plan import Plan, Settings, parse_facts, plan
from minimax_metal.plan.gpu_identity import by_smi
from tests.unit.plan_helpers import codes, decide, raw_host, warned

CATALOG = packaged_catalog()
DRIVER = "580.126.20"


def on_host(gpu: str, rows: list[str] | None = None, *, device: str | None = None, **variables: Any) -> Plan:
    """The plan of a real host: bare, or with these cells (name, memory, capability) of nvidia-smi."""
    raw = raw_host(gpu, 8, driver=DRIVER if rows else None)
    if device:
        raw["pci_devices"] = [one | {"device": device} for one in raw["pci_devices"]]
    if rows:
        cells = (row.split(", ") for row in rows)
        raw["nvidia_smi"]["stdout"] = "".join(
            f"{n}, {name}, GPU-{n}, {memory}, {DRIVER}, {capability}\n"
            for n, (name, memory, capability) in enumerate(cells)
        )
    named = {"metal_model": "MiniMax-M2.5"} | {f"metal_{key}": value for key, value in variables.items()}
    return plan(Settings.from_variables("gpu01", named), parse_facts(raw), CATALOG)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        # NVIDIA's list of supported GPUs (driver README, appendix A); sizes from listings.
        ("NVIDIA H100, 95830 MiB, 9.0", "H100-94GB"),
        ("NVIDIA H100, 97871 MiB, 9.0", "H100-96GB"),
        ("NVIDIA GH200 480GB, 97871 MiB, 9.0", "GH200"),
        ("NVIDIA GH200 120GB, 97871 MiB, 9.0", "GH200"),
        ("NVIDIA GH200 144G HBM3e, 146831 MiB, 9.0", "GH200-144GB"),
        ("NVIDIA RTX 6000D, 85651 MiB, 12.0", "RTX-PRO-6000D"),
        ("NVIDIA RTX PRO 6000D Blackwell Workstation Edition, 85651 MiB, 12.0", "RTX-PRO-6000D"),
        ("NVIDIA RTX PRO 5000 Blackwell, 48935 MiB, 12.0", "RTX-PRO-5000"),
        ("NVIDIA RTX PRO 5000 Blackwell, 73415 MiB, 12.0", "RTX-PRO-5000-72GB"),
        ("NVIDIA RTX PRO 5000 72GB Blackwell, 73415 MiB, 12.0", "RTX-PRO-5000-72GB"),
        ("NVIDIA B200, 183359 MiB, 10.0", "B200"),
        ("NVIDIA B200, 160217 MiB, 10.0", "B200-168GB"),
        ("NVIDIA H20 NVL16, 97871 MiB, 9.0", "H20-NVL16"),
        ("NVIDIA H20B, 143771 MiB, 9.0", "H20B"),
    ],
)
def test_a_name_and_a_memory_are_one_gpu(row: str, name: str) -> None:
    result = on_host("H200", [row] * 8)
    assert result.gpus is not None
    assert result.gpus.model == name
    assert result.gpus.memory_bytes == int(row.split(", ")[1].split()[0]) * 2**20
    assert not {"gpu-memory", "gpu-ambiguous"} & (codes(result) | warned(result))


def test_another_memory_than_the_catalogues_is_planned_with_and_said() -> None:
    result = on_host("H200", ["NVIDIA H100, 65536 MiB, 9.0"] * 8)
    assert result.gpus is not None
    assert result.gpus.memory_bytes == 2**36
    (said,) = [one.message for one in result.warnings if one.code == "gpu-memory"]
    assert "65536 MiB" in said
    assert "another board" in said


def test_cards_of_two_sizes_are_different_gpus() -> None:
    rows = [
        "NVIDIA RTX PRO 5000 Blackwell, 48935 MiB, 12.0",
        "NVIDIA RTX PRO 5000 Blackwell, 73415 MiB, 12.0",
    ]
    result = on_host("RTX-PRO-5000", rows * 4)
    assert "gpu-mixed" in codes(result)


def test_one_pci_id_of_two_sizes_is_planned_as_the_smaller_and_said() -> None:
    result = on_host("RTX-PRO-5000")
    assert result.gpus is not None
    assert result.gpus.model == "RTX-PRO-5000"
    (said,) = [one.message for one in result.warnings if one.code == "gpu-ambiguous"]
    assert "RTX-PRO-5000-72GB (73415 MiB)" in said
    assert "gpu-ambiguous" not in warned(on_host("RTX-PRO-6000D"))


@pytest.mark.parametrize("name", ["H20B", "H20 NVL16", "H20-NVL16", "H20B 96GB"])
def test_a_memory_that_nobody_states_is_asked_for(name: str) -> None:
    result = decide(name, 8, model="M2.5")
    assert codes(result) == {"gpu-memory"}
    assert "metal_catalog_overlay" in result.refusals[0].remedy
    assert not decide(name, 8, model="M2.5", accept_refusals=["gpu-memory"]).fits
    own = load_catalog([{"gpus": {one: {"memory_bytes": 10**11} for one in ("H20B", "H20-NVL16")}}])
    stated = decide(name, 8, model="M2.5", catalog=own)
    assert stated.fits
    assert "gpu-memory" not in warned(stated)


def test_a_bare_host_with_such_a_gpu_is_refused_too() -> None:
    assert "gpu-memory" in codes(on_host("H20", device="0x2328"))
    assert "gpu-memory" in codes(on_host("H20", device="0x230c"))


@pytest.mark.parametrize("name", ["B200 168GB", "HGX B200 168GB", "H100 96GB", "A800 PCIe", "H800 NVL"])
def test_a_memory_that_was_not_read_is_said(name: str) -> None:
    assert "gpu-memory" in warned(decide(name, 8, model="M2.5"))


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("RTX PRO 5000 72GB", "RTX-PRO-5000-72GB"),
        ("RTX PRO 5000", "RTX-PRO-5000"),
        ("GH200 480GB", "GH200"),
        ("GH200 144GB", "GH200-144GB"),
        ("H100 SXM5 94GB", "H100-94GB"),
        ("NVIDIA RTX PRO 5000 72GB Blackwell", "RTX-PRO-5000-72GB"),
    ],
)
def test_what_people_say_is_the_gpu_of_that_memory(said: str, name: str) -> None:
    result = decide(said, 8, model="M2.5")
    assert result.gpus is not None
    assert result.gpus.model == name
    entry = CATALOG.gpus[name].memory_bytes
    assert entry is not None
    assert result.gpus.memory_bytes == entry.value


@pytest.mark.parametrize("gpu", ["GH200", "GH200 144GB", "GB200", "GB300"])
def test_a_grace_host_gets_its_own_repository_and_headers_and_no_promise(gpu: str) -> None:
    result = decide(gpu, 4, model="M2.5")
    assert result.driver is not None
    assert result.platform is not None
    assert result.platform.architecture == "aarch64"
    # developer.download.nvidia.com/compute/cuda/repos/debian12/sbsa
    assert result.driver.repository_url.endswith("/debian12/sbsa")
    assert "linux-headers-arm64" in result.driver.packages
    assert not any("amd64" in one for one in result.driver.packages)
    (said,) = [one.message for one in result.warnings if one.code == "architecture"]
    assert "never been installed or run on it" in said
    x86 = decide("H200", 4, model="M2.5").driver
    assert x86 is not None
    assert x86.repository_url.endswith("/debian12/x86_64")
    assert "linux-headers-amd64" in x86.packages


@pytest.mark.parametrize(
    ("gpu", "count", "model", "remedy"),
    [
        ("H20", 3, "M2.5", "metal_tp_size to 2 and metal_ep_size to 1"),
        ("H20", 6, "M2.5", "metal_tp_size to 4 and metal_ep_size to 1"),
        ("H200", 16, "M2.7", "metal_tp_size to 16 and metal_ep_size to 16"),
    ],
)
def test_a_spread_that_nobody_asked_for_is_no_settings_fault(
    gpu: str, count: int, model: str, remedy: str
) -> None:
    result = decide(gpu, count, model=model)
    said = [one.remedy for one in result.refusals if one.code == "parallelism"]
    assert said
    assert all(remedy in one for one in said)
    asked = decide("H200", 8, model=model, tp_size=5)
    assert all("remove metal_tp_size" in one.remedy for one in asked.refusals if one.code == "parallelism")


def test_a_name_that_several_gpus_have_of_unknown_memory_is_the_first_ones() -> None:
    gpus = {name: replace(CATALOG.gpus["H20B"], name=name) for name in ("one", "two")}
    assert {gpu.memory_bytes for gpu in gpus.values()} == {None}
    assert by_smi("NVIDIA H20B", 96 << 30, gpus) is gpus["one"]

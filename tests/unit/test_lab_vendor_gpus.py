"""The PCI bus of a lab host, compared with published ids and the catalogue."""

import stat
from pathlib import Path

import pytest
import yaml

from lab.vendor.gpus import UnknownGpuError, models, pci_devices, write_pci_tree

# The lines of Debian's pci.ids 0.0~2025.06.09-1, under 10de (NVIDIA Corporation).
PCI_IDS = """\
1af1  GA100 [A100 NVSwitch]
20b2  GA100 [A100 SXM4 80GB]
22a3  GH100 [H100 NVSwitch]
2329  GH100 [H20]
232c  GH100 [H20 HBM3e]
2330  GH100 [H100 SXM5 80GB]
2335  GH100 [H200 SXM 141GB]
26b9  AD102GL [L40S]
2901  GB100 [B200]
2bb5  GB202GL [RTX PRO 6000 Blackwell Server Edition]
"""


def gpus_of(model: str, count: int) -> list[str]:
    return [d.address for d in pci_devices(model, count) if d.vendor == 0x10DE and d.pci_class >> 8 == 0x0302]


def switches_of(model: str, count: int) -> set[int]:
    return {d.device for d in pci_devices(model, count) if d.pci_class >> 8 == 0x0680}


def test_every_device_of_nvidia_is_in_pci_ids() -> None:
    known = {int(line[:4], 16) for line in PCI_IDS.splitlines()}
    shown = {d.device for model in models() for d in pci_devices(model, 8) if d.vendor == 0x10DE}
    assert shown == known


@pytest.mark.parametrize("count", [0, 1, 4, 8])
@pytest.mark.parametrize("model", models())
def test_a_host_has_as_many_gpus_as_it_was_given(model: str, count: int) -> None:
    assert len(gpus_of(model, count)) == count


def test_nvswitches_sit_on_eight_gpu_boards_only() -> None:
    assert switches_of("H200", 8) == switches_of("H20", 8) == {0x22A3}
    assert switches_of("A100-80GB", 8) == {0x1AF1}
    assert len([d for d in pci_devices("H20", 8) if d.pci_class >> 8 == 0x0680]) == 4
    assert len([d for d in pci_devices("A100-80GB", 8) if d.pci_class >> 8 == 0x0680]) == 6
    for model, count in (("H20", 4), ("L40S", 8), ("B200", 8)):
        assert not switches_of(model, count)


def test_other_devices_make_filters_work_for_their_answer() -> None:
    devices = pci_devices("H20", 4)
    assert {d.vendor for d in devices} > {0x10DE, 0x8086, 0x15B3}
    assert [d for d in devices if d.pci_class >> 16 == 0x03 and d.vendor != 0x10DE], (
        "a display that is no GPU"
    )


def test_gpus_are_spread_over_two_sockets() -> None:
    nodes = [d.numa_node for d in pci_devices("H20", 8) if d.address in gpus_of("H20", 8)]
    assert nodes == [0, 0, 0, 0, 1, 1, 1, 1]


def test_the_lab_and_the_catalogue_agree() -> None:
    catalogue = yaml.safe_load(Path("src/minimax_metal/catalog/gpus.yml").read_text(encoding="utf-8"))["gpus"]
    shared = set(models()) & set(catalogue)
    assert {"H20", "H200"} <= shared
    for name in shared:
        assert models()[name]["pci"]["device"] in catalogue[name]["pci_ids"]
        assert models()[name]["memory_mib"] * 1024**2 == catalogue[name]["memory_bytes"]["value"]
        assert models()[name]["compute_capability"] == catalogue[name]["compute_capability"]


def test_the_tree_reads_like_sysfs(tmp_path: Path) -> None:
    write_pci_tree(tmp_path, "H100", 8)
    gpu = tmp_path / "0000:0f:00.0"
    assert (gpu / "vendor").read_text() == "0x10de\n"
    assert (gpu / "device").read_text() == "0x2330\n"
    assert (gpu / "class").read_text() == "0x030200\n"
    assert (gpu / "numa_node").read_text() == "0\n"
    assert (gpu / "modalias").read_text() == "pci:v000010DEd00002330sv000010DEsd000016C1bc03sc02i00\n"
    assert "PCI_SLOT_NAME=0000:0f:00.0\n" in (gpu / "uevent").read_text()
    assert len((gpu / "resource").read_text().splitlines()) == 13
    assert stat.S_IMODE((gpu / "vendor").stat().st_mode) == 0o444


def test_the_configuration_space_is_that_of_a_published_dump(tmp_path: Path) -> None:
    # hexdump of an H100's config space: "10de 2330 .... 0010 00a1 0302" and at 0x2c "10de 16c1".
    write_pci_tree(tmp_path, "H100", 1)
    config = (tmp_path / "0000:0f:00.0/config").read_bytes()
    assert config[0:4] == bytes.fromhex("de103023")
    assert config[8:12] == bytes.fromhex("a1000203")
    assert config[0x2C:0x30] == bytes.fromhex("de10c116")


def test_a_second_call_touches_nothing(tmp_path: Path) -> None:
    write_pci_tree(tmp_path, "H20", 4)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    write_pci_tree(tmp_path, "H20", 4)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_another_host_in_the_same_place_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    write_pci_tree(tmp_path, "H200", 8)
    write_pci_tree(tmp_path, "L40S", 2)
    assert {path.name for path in tmp_path.iterdir()} == {d.address for d in pci_devices("L40S", 2)}


def test_unknown_gpus_are_refused_in_one_line() -> None:
    with pytest.raises(UnknownGpuError, match=r"^GPU model 'H21' .* expected one of H20, .* gpus\.json$"):
        pci_devices("H21", 4)
    with pytest.raises(UnknownGpuError, match="9 GPUs"):
        pci_devices("H20", 9)

"""What a host shows of its GPUs before any driver is installed: devices on the PCI bus.

A lab host sees the tree made here as ``/sys/bus/pci/devices``. The driver packages of the lab answer from the
same tree, so there is one place that says which GPUs a host has.

Sources:
- PCI ids: Debian's ``pci.ids`` 0.0~2025.06.09-1 (trixie); 0.0~2023.04.11-1 of bookworm knows neither H20,
  H200, L40S nor Blackwell, so ``lspci`` on a Debian 12 host prints ``Device 2329`` for them, as on a real
  one.
- Subsystem ids and product names: the table of supported GPUs in the README of NVIDIA's
  open-gpu-kernel-modules.
- Memory in MiB as nvidia-smi prints it: published outputs (97871 H20, 81559 H100, 143771 H200, 97887 RTX PRO
  6000).
- ``reserved_mib`` is what the driver keeps for itself (total minus used minus free): 551 on H100, 597 on an
  RTX PRO 6000 in published outputs; approximations for the others.
- Boards: an HGX A100 8-GPU board has six NVSwitches (10de:1af1), HGX H100/H200/H20 8-GPU boards have four
  (10de:22a3), class 0680, both as PCI devices of the host. The 4-GPU HGX boards connect their GPUs to one
  another directly and have none. The NVSwitches of HGX B200 are not on the host's PCI bus.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

NVIDIA = 0x10DE
DATA = Path(__file__).with_name("gpus.json")

# Bus numbers as published for 8-GPU HGX hosts (nvidia-smi of H200 and H20 hosts: 0F, 2D, 44 ...); four of
# them on each socket. A 4-GPU host has two on each socket.
_BUSES = {8: (0x0F, 0x2D, 0x44, 0x5B, 0x89, 0xA8, 0xC0, 0xD8), 4: (0x0F, 0x2D, 0x89, 0xA8)}
_SECOND_SOCKET = 0x80
# CPU lists of the two NUMA nodes of a published 8 x H20 host.
_CPUS = ("0-47,96-143", "48-95,144-191")
# NVSwitch device id and count of the 8-GPU board.
_NVSWITCHES = {"hgx-ampere": (0x1AF1, 6), "hgx-hopper": (0x22A3, 4)}


class UnknownGpuError(ValueError):
    """A lab description names a GPU model the lab has no data for."""


@dataclass(frozen=True)
class PciDevice:
    """One function on the PCI bus, as sysfs shows it."""

    address: str
    vendor: int
    device: int
    subsystem_vendor: int
    subsystem_device: int
    pci_class: int
    revision: int
    numa_node: int
    bars: tuple[tuple[int, int], ...] = ()  # (start, size) in bytes

    def files(self) -> dict[str, bytes]:
        """Return the files of this device's directory and their contents."""
        base, sub, interface = self.pci_class >> 16, self.pci_class >> 8 & 0xFF, self.pci_class & 0xFF
        alias = (
            f"pci:v{self.vendor:08X}d{self.device:08X}sv{self.subsystem_vendor:08X}sd{self.subsystem_device:08X}"
            f"bc{base:02X}sc{sub:02X}i{interface:02X}"
        )
        uevent = (
            f"PCI_CLASS={self.pci_class:X}\nPCI_ID={self.vendor:04X}:{self.device:04X}\n"
            f"PCI_SUBSYS_ID={self.subsystem_vendor:04X}:{self.subsystem_device:04X}\n"
            f"PCI_SLOT_NAME={self.address}\nMODALIAS={alias}\n"
        )
        resources = [(start, start + size - 1, 0x14220C) for start, size in self.bars]
        resources += [(0, 0, 0)] * (13 - len(resources))
        text = {
            "vendor": f"0x{self.vendor:04x}",
            "device": f"0x{self.device:04x}",
            "subsystem_vendor": f"0x{self.subsystem_vendor:04x}",
            "subsystem_device": f"0x{self.subsystem_device:04x}",
            "class": f"0x{self.pci_class:06x}",
            "revision": f"0x{self.revision:02x}",
            "numa_node": str(self.numa_node),
            "local_cpulist": _CPUS[self.numa_node],
            "irq": "0",
            "enable": "0",
            "modalias": alias,
            "resource": "\n".join(
                f"0x{start:016x} 0x{end:016x} 0x{flags:016x}" for start, end, flags in resources
            ),
        }
        files = {name: f"{value}\n".encode() for name, value in text.items()}
        files["uevent"] = uevent.encode()
        files["config"] = self._config()
        return files

    def _config(self) -> bytes:
        """Return the 64-byte header of the configuration space (type 0, little endian), zeros after it."""
        header = bytearray(256)
        header[0x00:0x04] = self.vendor.to_bytes(2, "little") + self.device.to_bytes(2, "little")
        header[0x04:0x06] = (0x0142).to_bytes(2, "little")  # memory space on, SERR and parity reporting on
        header[0x08:0x0C] = bytes([self.revision]) + self.pci_class.to_bytes(3, "little")
        header[0x2C:0x30] = self.subsystem_vendor.to_bytes(2, "little") + self.subsystem_device.to_bytes(
            2, "little"
        )
        for number, (start, _size) in enumerate(self.bars[:3]):
            header[0x10 + 8 * number : 0x18 + 8 * number] = (start | 0xC).to_bytes(
                8, "little"
            )  # 64 bit, prefetchable
        return bytes(header)


@cache
def models() -> dict[str, dict[str, Any]]:
    """Return the GPU models the lab knows, by the name a lab description uses."""
    data: dict[str, dict[str, Any]] = json.loads(DATA.read_text(encoding="utf-8"))
    return data


def pci_devices(model: str, count: int) -> list[PciDevice]:
    """Return the PCI devices of a host with `count` GPUs of `model`: ordinary devices, NVSwitches, GPUs.

    Raises:
        UnknownGpuError: the model is not in gpus.json, or the count is not between 0 and 8.
    """
    known = models()
    if model not in known:
        raise UnknownGpuError(
            f"GPU model {model!r} in the lab description, expected one of {', '.join(known)}:"
            f" add it to {DATA.name}"
        )
    if not 0 <= count <= 8:
        raise UnknownGpuError(f"{count} GPUs in the lab description, expected 0 to 8")
    gpu = known[model]
    pci = gpu["pci"]
    devices = _ordinary_devices(infiniband=gpu["board"] != "pcie")
    if count == 8 and gpu["board"] in _NVSWITCHES:
        switch, switches = _NVSWITCHES[gpu["board"]]
        devices += [
            PciDevice(_address(0x07 + number), NVIDIA, switch, NVIDIA, switch, 0x068000, 0xA1, 0)
            for number in range(switches)
        ]
    buses = _BUSES[4] if count <= 4 else _BUSES[8]
    # BAR 1 is the window on the whole memory: the next power of two.
    window = 1 << (int(gpu["memory_mib"]) * 1024**2 - 1).bit_length()
    for number, bus in enumerate(buses[:count]):
        start = 0x2000_0000_0000 + number * 0x100_0000_0000
        devices.append(
            PciDevice(
                _address(bus),
                NVIDIA,
                int(pci["device"], 16),
                NVIDIA,
                int(pci["subsystem_device"], 16),
                int(pci["class"], 16),
                0xA1,
                int(bus >= _SECOND_SOCKET),
                (
                    (start + window, 16 * 1024**2),
                    (start, window),
                    (start + window + 32 * 1024**2, 32 * 1024**2),
                ),
            )
        )
    return sorted(devices, key=lambda device: device.address)


def write_pci_tree(destination: Path, model: str, count: int) -> None:
    """Make `destination` the ``/sys/bus/pci/devices`` of a host with `count` GPUs of `model`.

    Writes only what differs and removes what does not belong there, so it may be called again while the
    directory is mounted in a running host. In real sysfs each entry is a link into ``/sys/devices``; here it
    is a directory, since only this directory is put over the host's own.
    """
    wanted = {device.address: device.files() for device in pci_devices(model, count)}
    destination.mkdir(parents=True, exist_ok=True)
    for path in destination.iterdir():
        if path.name not in wanted:
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    for address, files in wanted.items():
        directory = destination / address
        directory.mkdir(exist_ok=True)
        for path in directory.iterdir():
            if path.name not in files:
                path.unlink()
        for name, content in files.items():
            path = directory / name
            if not path.is_file() or path.read_bytes() != content:
                path.write_bytes(content)
            path.chmod(0o444)


def _ordinary_devices(infiniband: bool) -> list[PciDevice]:
    """Return what else sits in such a server, so that filters by vendor and class have something to leave
    out."""
    devices = [
        PciDevice("0000:00:00.0", 0x8086, 0x09A2, 0x8086, 0x0000, 0x088000, 0x04, 0),  # system peripheral
        PciDevice("0000:01:00.0", 0x144D, 0xA80A, 0x144D, 0xAA0A, 0x010802, 0x00, 0),  # NVMe drive
        PciDevice("0000:02:00.0", 0x1A03, 0x2000, 0x1A03, 0x2000, 0x030000, 0x52, 0),  # the BMC's display
        PciDevice("0000:03:00.0", 0x15B3, 0x101F, 0x15B3, 0x0061, 0x020000, 0x00, 0),  # Ethernet, two ports
        PciDevice("0000:03:00.1", 0x15B3, 0x101F, 0x15B3, 0x0061, 0x020000, 0x00, 0),
    ]
    if infiniband:
        devices += [
            PciDevice(
                _address(bus), 0x15B3, 0x1021, 0x15B3, 0x0041, 0x020700, 0x00, int(bus >= _SECOND_SOCKET)
            )
            for bus in (0x0E, 0x88)
        ]
    return devices


def _address(bus: int) -> str:
    return f"0000:{bus:02x}:00.0"

#!/usr/bin/python3 -IB
"""Stand-in for loading the NVIDIA kernel module, run at boot by nvidia-kernel-module-standin.service.

This is the only place where the module is stood in for. A lab host shares the machine's kernel and cannot
load modules, so what the module shows to user space is made by hand: a tmpfs over /proc/driver with
nvidia/version and nvidia/gpus/<address>/information, and the device nodes. Which GPUs there are is read from
/sys/bus/pci/devices. As with the real module nothing happens before the boot after its installation.

Sources: formats of the /proc files in kernel-open/nvidia/nv-procfs.c of NVIDIA's open-gpu-kernel-modules and
published copies of them; device numbers in the driver's README, chapter "Device nodes": major 195 for
nvidia0..., nvidiactl (255) and nvidia-modeset (254); the others are assigned when the module is loaded, here
they are fixed.

Python 3.9, standard library only. NVIDIA_STANDIN_ROOT moves the root directory (tests); then nothing is
mounted and no device nodes are made.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import stat
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("NVIDIA_STANDIN_ROOT", "/"))
HERE = Path(__file__).resolve().parent
PCI_DEVICES = ROOT / "sys/bus/pci/devices"
PROC_DRIVER = ROOT / "proc/driver"
# The compiler that DKMS would have used, by the VERSION_ID of Debian.
COMPILERS = {"12": "12.2.0 (Debian 12.2.0-14+deb12u1)", "13": "14.2.0 (Debian 14.2.0-19)"}


def read(address: str, name: str) -> str:
    """Return one attribute of a PCI device."""
    return (PCI_DEVICES / address / name).read_text().strip()


def devices(*classes: str) -> list[str]:
    """Return the addresses of NVIDIA's devices of these PCI classes (first six characters, as "0x0302")."""
    return [
        path.name
        for path in sorted(PCI_DEVICES.glob("*"))
        if read(path.name, "vendor") == "0x10de" and read(path.name, "class")[:6] in classes
    ]


def gpu_uuid(address: str) -> str:
    """Return a UUID that stays the same for this GPU of this host."""
    machine = (ROOT / "etc/machine-id").read_text().strip()
    return f"GPU-{uuid.uuid5(uuid.NAMESPACE_OID, machine + address)}"


def version_text(module: dict[str, Any]) -> str:
    """Return the text of /proc/driver/nvidia/version."""
    release = dict(
        line.split("=", 1) for line in (ROOT / "etc/os-release").read_text().splitlines() if "=" in line
    )
    compiler = COMPILERS.get(release.get("VERSION_ID", "").strip('"'), COMPILERS["12"])
    if module["open"]:
        title = "NVIDIA UNIX Open Kernel Module for x86_64"
    else:
        title = "NVIDIA UNIX x86_64 Kernel Module"
    return (
        f"NVRM version: {title}  {module['version']}  Release Build  (root@{platform.node()})\n"
        f"GCC version:  gcc version {compiler}\n"
    )


def information_text(address: str, minor: int, name: str, version: str) -> str:
    """Return the text of /proc/driver/nvidia/gpus/<address>/information."""
    return (
        f"Model: \t\t {name}\n"
        f"IRQ:   \t\t {300 + minor}\n"
        f"GPU UUID: \t {gpu_uuid(address)}\n"
        "Video BIOS: \t ??.??.??.??.??\n"
        "Bus Type: \t PCIe\n"
        "DMA Size: \t 52 bits\n"
        "DMA Mask: \t 0xfffffffffffff\n"
        f"Bus Location: \t {address}\n"
        f"Device Minor: \t {minor}\n"
        f"GPU Firmware: \t {version}\n"
        "GPU Excluded:\t No\n"
    )


def make_nodes(gpus: list[str], switches: list[str]) -> None:
    """Make the device nodes in /dev, readable and writable by everybody as the driver makes them."""
    nodes = {
        "nvidiactl": (195, 255),
        "nvidia-modeset": (195, 254),
        "nvidia-uvm": (508, 0),
        "nvidia-uvm-tools": (508, 1),
    }
    nodes.update({f"nvidia{minor}": (195, minor) for minor in range(len(gpus))})
    nodes.update({f"nvidia-caps/nvidia-cap{minor}": (511, minor) for minor in (1, 2)})
    if switches:
        nodes["nvidia-nvswitchctl"] = (509, 255)
        nodes.update({f"nvidia-nvswitch{minor}": (509, minor) for minor in range(len(switches))})
    for name, (major, minor) in nodes.items():
        path = Path("/dev", name)
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            os.mknod(path, stat.S_IFCHR, os.makedev(major, minor))
        path.chmod(0o400 if "caps" in name else 0o666)


def main() -> int:
    """Load the "module"; return the exit status."""
    module = json.loads((HERE / "module.json").read_text())
    known = {entry["pci"]["device"]: entry for entry in json.loads((HERE / "gpus.json").read_text()).values()}
    if (PROC_DRIVER / "nvidia/version").exists():
        print("nvidia: the module is already loaded")
        return 0
    # The proprietary module does not drive GPUs that need the open one; the open one drives all that the lab
    # has.
    found = devices("0x0300", "0x0302")
    driven = [a for a in found if module["open"] or not known[read(a, "device")]["open_modules_only"]]
    for address in sorted(set(found) - set(driven)):
        print(
            f"NVRM: The NVIDIA GPU {address} in this system requires use of the NVIDIA open kernel modules."
        )
    if not found:
        print("NVRM: No NVIDIA GPU found.")
        return 0
    if str(ROOT) == "/":
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "mode=0555,size=1m", "nvidia", "/proc/driver"], check=True
        )
    directory = PROC_DRIVER / "nvidia"
    directory.mkdir(parents=True)
    for minor, address in enumerate(driven):
        place = directory / "gpus" / address
        place.mkdir(parents=True)
        name = known[read(address, "device")]["name"]
        (place / "information").write_text(information_text(address, minor, name, module["version"]))
    (directory / "version").write_text(version_text(module))
    if str(ROOT) == "/":
        subprocess.run(["mount", "-o", "remount,ro", "/proc/driver"], check=True)
        make_nodes(driven, devices("0x0680"))
        # A unit whose sandbox mounts a /proc of its own does not see this one; with the real module every
        # /proc has the files. For the NVML stand-in alone; the real one asks the device nodes.
        shutil.copytree(directory, Path("/run/nvidia-standin/driver"), dirs_exist_ok=True)
    print(f"NVRM: loading NVIDIA UNIX Kernel Module  {module['version']}: {len(driven)} GPUs")
    return 0


if __name__ == "__main__":
    sys.exit(main())

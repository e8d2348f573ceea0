"""NVML stand-in: what the host's user space can ask of the driver.

Installed by the lab's libnvidia-ml1, whose version is the version of this "library". It answers from what the
kernel-module stand-in (nvidia-kernel-module-standin) put under /proc/driver/nvidia, and refuses as NVML does
when that is missing or has another version than the library.

Sources: texts and return codes of nvidia-smi's manual page and published logs; the format of
/proc/driver/nvidia/version and gpus/*/information in kernel-open/nvidia/nv-procfs.c of NVIDIA's
open-gpu-kernel-modules.

Python 3.9, standard library only: it runs on the lab's hosts. NVIDIA_STANDIN_ROOT moves the root directory
(tests).
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("NVIDIA_STANDIN_ROOT", "/"))
HERE = Path(__file__).resolve().parent
PROC = ROOT / "proc/driver/nvidia"
PCI_DEVICES = ROOT / "sys/bus/pci/devices"
# State of the stand-ins of a running system; gone after a reboot, like the state of a GPU.
STATE = ROOT / "run/nvidia-standin"

# The CUDA version each driver branch brings (CUDA toolkit release notes, table of driver versions).
CUDA_VERSIONS = {"580": "13.0", "590": "13.1", "595": "13.2", "610": "13.3", "615": "13.4", "620": "13.5"}


class NvmlError(Exception):
    """NVML could not be initialised: `text` is what nvidia-smi prints, `code` its exit status."""

    def __init__(self, text: str, code: int) -> None:
        """Keep the text and the exit status."""
        super().__init__(text)
        self.text = text
        self.code = code


class Gpu:
    """One attached GPU."""

    def __init__(self, information: dict[str, str], pci: dict[str, str], data: dict[str, Any]) -> None:
        """Join what /proc says, what sysfs says and what the data sheet says."""
        self.address = information["Bus Location"]
        self.name = information["Model"]
        self.uuid = information["GPU UUID"]
        self.minor = int(information["Device Minor"])
        self.data = data
        self.pci = pci

    @property
    def bus_id(self) -> str:
        """The address as nvidia-smi writes it: eight digits of domain, upper case."""
        return ("0000" + self.address).upper()

    @property
    def numa_node(self) -> int:
        """The NUMA node, -1 when the platform does not say."""
        return int(self.pci.get("numa_node", "-1"))


def library_version() -> str:
    """Return the version of the installed user-space library."""
    return (HERE / "version").read_text().strip()


def module_version() -> str:
    """Return the version of the loaded kernel module.

    Raises NvmlError (exit status 9) when no module is loaded.
    """
    try:
        text = (_driver() / "version").read_text()
    except OSError:
        raise NvmlError(
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the"
            " latest NVIDIA driver is installed and running.\n",
            9,
        ) from None
    found = re.search(r"Kernel Module(?: for \S+)?\s+(\d+\.[\d.]*\d)", text)
    return found.group(1) if found else ""


def initialise() -> str:
    """Do what nvmlInit does: return the driver version, or refuse.

    Raises NvmlError: 9 when the kernel module is not loaded, 18 when its version is not the library's.
    """
    module, library = module_version(), library_version()
    if module != library:
        short = ".".join(library.split(".")[:2])
        raise NvmlError(
            "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: " + short, 18
        )
    return module


def attached_gpus() -> list[Gpu]:
    """Return the GPUs the kernel module drives, in the order of their PCI addresses (the order of
    nvidia-smi)."""
    data = {entry["name"]: entry for entry in json.loads((HERE / "gpus.json").read_text()).values()}
    gpus = []
    for directory in sorted((_driver() / "gpus").glob("*")):
        information = {}
        for line in (directory / "information").read_text().splitlines():
            key, _, value = line.partition(":")
            information[key.strip()] = value.strip()
        gpus.append(Gpu(information, _read_pci(directory.name), data[information["Model"]]))
    return gpus


def nvswitches() -> list[str]:
    """Return the PCI addresses of the host's NVSwitches."""
    found = []
    for directory in sorted(PCI_DEVICES.glob("*")):
        pci = _read_pci(directory.name)
        if pci.get("vendor") == "0x10de" and pci.get("class", "").startswith("0x0680"):
            found.append(directory.name)
    return found


def fabric() -> tuple[str, str]:
    """Return (state, status) of the NVLink fabric as nvidia-smi -q shows it.

    On a host with NVSwitches a GPU waits ("In Progress") until the fabric manager has configured them; it
    stays registered when the fabric manager stops afterwards.
    """
    if not nvswitches():
        return "N/A", "N/A"
    if (STATE / "fabric-configured").exists():
        return "Completed", "Success"
    return "In Progress", "N/A"


def persistence_enabled(gpu: Gpu) -> bool:
    """Say whether persistence mode is on, by the daemon or by nvidia-smi -pm."""
    if (STATE / ("persistence-" + gpu.address)).exists():
        return True
    try:
        pid = int((ROOT / "run/nvidia-persistenced/nvidia-persistenced.pid").read_text())
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def cuda_version(driver: str) -> str:
    """Return the CUDA version that goes with a driver version."""
    return CUDA_VERSIONS.get(driver.split(".")[0], "N/A")


def _driver() -> Path:
    """Where the module's files are: in a sandbox with a /proc of its own, their copy."""
    return PROC if PROC.exists() else STATE / "driver"


def _read_pci(address: str) -> dict[str, str]:
    values = {}
    for name in (
        "vendor",
        "device",
        "class",
        "subsystem_vendor",
        "subsystem_device",
        "numa_node",
        "local_cpulist",
    ):
        try:
            values[name] = (PCI_DEVICES / address / name).read_text().strip()
        except OSError:
            continue
    return values

"""The meaning of cells, rows and errors of ``nvidia-smi``: pure.

A cell without a value means one of two things. Either this board, driver or permission has no such value
(``[N/A]``), or NVML got no answer from the GPU: then nvidia-smi prints NVML's error in brackets (``[Unknown
Error]``), or ``ERR!``, in every cell that needed the GPU. Such a GPU is sick, even if nvidia-smi itself exits
with 0.

Sources: ``nvmlErrorString`` in nvml.h and pynvml.py (nvidia-ml-py 13); dcgm-exporter#604 (a lost GPU),
nvidia_gpu_exporter#393 (``ERR!``), gpud PR#1133 (``[Unknown Error]``, ``[GPU requires reset]``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

MIB: Final = 1 << 20
FREE_MIB: Final = 2048
"""A GPU with less than this in use is free, whether or not a process is listed: driver, display and NVIDIA's
daemons use some hundred MiB, an engine tens of thousands (choice of this project).
"""

_NO_VALUE: Final = frozenset(
    {"", "-", "n/a", "none", "not supported", "not available", "no data", "not found", "function not found"}
    | {"insufficient permissions", "requested functionality has been deprecated", "not applicable"}
)

_SICK: Final[tuple[tuple[str, str], ...]] = (
    ("is lost", "the driver has lost it"),
    ("fallen off the bus", "the driver has lost it"),
    ("requires reset", "it waits for a reset"),
    ("requires restart", "it waits for a reset"),
    ("reset required", "it waits for a reset"),
    ("err!", "it does not answer the driver"),
    ("unknown error", "it does not answer the driver"),
    ("timeout", "it does not answer the driver"),
    ("interrupt request issue", "its interrupts don't arrive"),
    ("corrupted inforom", "its infoROM is corrupted"),
    ("external power", "a power cable is missing"),
    ("blocked", "the operating system blocks it (IOMMU, lockdown)"),
    ("uninitialized", "the driver did not initialize it"),
    ("driver not loaded", "no driver is loaded for it"),
    ("version mismatch", "the driver's module and libraries differ"),
    ("insufficient memory", "the driver ran out of memory"),
    ("in use by another client", "another client holds it"),
)
"""NVML's error texts in lower case, and what they mean for the GPU."""
_BARE: Final = frozenset({"err!", "unknown error", "gpu is lost", "gpu requires reset", "reset required"})
"""Cells that report an error without brackets."""


def _plain(cell: str) -> str:
    return cell.strip().strip("[]").strip().lower()


def no_value(cell: str) -> bool:
    """Return whether this board has no such value (``[N/A]``); this does not indicate a sick GPU."""
    return _plain(cell) in _NO_VALUE


def sickness(cell: str) -> str | None:
    """Return a cell's error for a GPU that does not answer; None for a value and for ``[N/A]``."""
    words = _plain(cell)
    if "deprecated" in words:  # R610 prints prose instead of a value that moved
        return None
    bracketed = cell.strip().startswith("[") and words not in _NO_VALUE
    if not bracketed and words not in _BARE:
        return None
    return next((meaning for sign, meaning in _SICK if sign in words), "it does not answer the driver")


def row_sickness(cells: list[str] | tuple[str, ...]) -> str | None:
    """Return ``[Unknown Error]: it does not answer the driver`` for a row with such a cell, or None."""
    for cell in cells:
        if meaning := sickness(cell):
            return f"{cell.strip()}: {meaning}"
    return None


def mib(cell: str) -> int | None:
    """Return a number of MiB (``411``, ``411 MiB``), or None (not 0) if the cell contains no number."""
    found = re.fullmatch(r"(\d{1,9})(?: MiB)?", cell.strip())
    return int(found[1]) if found else None


def rows(text: str) -> list[list[str]]:
    """Return the cells of ``--format=csv,noheader``; nvidia-smi quotes nothing."""
    return [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason why nvidia-smi printed no table."""

    code: str
    """``gpu-lost``, ``gpu-reset``, ``gpu-silent``, ``mismatch``, ``no-driver``, ``no-gpu``, ``access``,
    ``field`` (this nvidia-smi does not know the requested field) or ``unknown``.
    """
    meaning: str
    remedy: str
    gpu: str | None = None
    """The GPU, as nvidia-smi names it: ``GPU5 (0000:BA:00.0)``."""
    operator: bool = True
    """Whether the host must be drained; otherwise an upgrade, a package or a setting is the cause."""


_HANDLE: Final = re.compile(
    r"Unable to (?:determine|detect) the device handle for (?:gpu|GPU) ?"
    # GPU5: 0000:BA:00.0, GPU5, GPU 0000:BA:00.0 and GPU0000:BA:00.0: the number of the last one is not an
    # index.
    r"(?:(\d{1,3})(?![0-9a-fA-F]*:[0-9a-fA-F]{2}[:.])(?:: ?)?)?"
    r"([0-9a-fA-F]{3,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-9a-fA-F])?:? ?([^\n]{0,200})"
)
_RESET: Final = (
    "drain the host, reset that GPU (nvidia-smi --gpu-reset) or reboot; if it comes back, have it repaired"
)


def handle(line: str) -> tuple[int | None, str | None, str] | None:
    """Return index, PCI address and reason of a GPU that a line reports as lost; None for other lines."""
    found = _HANDLE.search(line)
    if found is None:
        return None
    return (int(found[1]) if found[1] else None), found[2], found[3].strip()


WARNED: Final = 14
"""Exit status of a complete answer with a warning (nvidia-smi(1), "RETURN VALUE")."""
_WARNING: Final = re.compile(r"WARNING: {0,4}(.{1,80}?) at gpu ([0-9a-fA-F:.]{7,20})", re.IGNORECASE)


def warnings(text: str) -> list[tuple[str, str]]:
    """Return PCI address and text of each of nvidia-smi's warnings about a GPU: ``infoROM is corrupted``.

    It exits with 14 then (nvidia-smi(1), "RETURN VALUE"), after a complete answer.
    """
    return [(found[2], found[1]) for line in text.splitlines() if (found := _WARNING.search(line[:2000]))]


def refusal(text: str) -> Refusal | None:
    """Return the meaning of nvidia-smi's message if it printed no table, or None if the message is unknown.

    Known messages also appear with exit status 0, above a table of the other GPUs.
    """
    if lost := _HANDLE.search(text):
        name = f"GPU{lost[1]}" if lost[1] else "GPU"
        which = f"{name} ({lost[2]})" if lost[2] else name
        words = lost[3].strip().lower()
        if "requires re" in words:
            return Refusal("gpu-reset", f"{which} waits for a reset", _RESET, which)
        return Refusal("gpu-lost", f"{which} is lost: {lost[3].strip() or 'no handle'}", _RESET, which)
    for sign, found in _REFUSALS:
        if sign in text:
            return found
    return None


_REFUSALS: Final[tuple[tuple[str, Refusal], ...]] = (
    (
        "Driver/library version mismatch",
        Refusal(
            "mismatch",
            "the loaded driver and its libraries differ in version",
            "an upgrade without a reboot: reboot the host",
        ),
    ),
    (
        "couldn't communicate with the NVIDIA driver",
        Refusal(
            "no-driver",
            "the NVIDIA driver is not loaded",
            "modprobe nvidia; dmesg says why it does not load; dkms status says whether it is built",
        ),
    ),
    (
        "Driver Not Loaded",
        Refusal("no-driver", "the NVIDIA driver is not loaded", "modprobe nvidia; dmesg says why not"),
    ),
    (
        "No devices were found",
        Refusal(
            "no-gpu",
            "the driver is loaded and no GPU came up",
            "dmesg | grep NVRM says why (RmInitAdapter, BAR, off the bus); reboot, else repair",
        ),
    ),
    (
        "couldn't find libnvidia-ml.so",
        Refusal(
            "no-library",
            "the driver's library libnvidia-ml.so is missing",
            "reinstall it on the host: apt-get install --reinstall libnvidia-ml1 (of Ubuntu: "
            "libnvidia-compute-BRANCH), then ldconfig",
            operator=False,
        ),
    ),
    (
        "blocked by the operating system",
        Refusal(
            "gpu-silent",
            "the operating system blocks the GPUs",
            "look at dmesg: a kernel lockdown, an IOMMU fault or a GPU taken off the bus; in a virtual "
            "machine, update its host's driver",
        ),
    ),
    ("GPU is lost", Refusal("gpu-lost", "a GPU is lost", _RESET)),
    ("GPU requires reset", Refusal("gpu-reset", "a GPU waits for a reset", _RESET)),
    (
        "is not a valid field to query",
        Refusal("field", "this nvidia-smi does not know a field", "use a newer driver", operator=False),
    ),
    (
        "Insufficient Permissions",
        Refusal(
            "access",
            "this user may not ask the GPUs",
            "look at the permissions of /dev/nvidia*",
            operator=False,
        ),
    ),
    (
        "Failed to initialize NVML",
        Refusal(
            "gpu-silent",
            "the driver does not answer",
            "look at dmesg | grep NVRM; in a container, its devices may be gone; else reboot the host",
        ),
    ),
)

DAEMONS: Final[dict[str, str]] = {
    "nvidia-cuda-mps-server": "NVIDIA's MPS server",
    "nvidia-cuda-mps-control": "NVIDIA's MPS daemon",
    "nv-hostengine": "DCGM",
    "dcgm-exporter": "DCGM's exporter",
    "dcgmi": "DCGM",
    "nvvs": "DCGM's diagnosis",
    "dcgmproftester": "DCGM's profiling test",
    "nvidia-persistenced": "NVIDIA's persistence daemon",
    "nvidia-imex": "NVIDIA's IMEX daemon",
    "nv-fabricmanager": "NVIDIA's fabric manager",
    "Xorg": "the X server",
    "Xwayland": "the X server",
    "gnome-shell": "the desktop",
}
"""Programs that legitimately keep a little GPU memory, with their common names."""


def daemon(program: str) -> str | None:
    """Return the common name of a known daemon; None for any other program."""
    name = program.strip().split(" ")[0].rstrip("/").rpartition("/")[2]
    return next((called for known, called in DAEMONS.items() if name.startswith(known)), None)


def mig_enabled(cell: str) -> bool:
    """Return whether a cell of ``mig.mode.current`` means that MIG is on."""
    return _plain(cell) == "enabled"

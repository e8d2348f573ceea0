"""What is known of a host, parsed from what the facts module collected. Never raises on odd facts:
what could not be read is none, and the plan says what it misses.

Raw keys beyond the module's first version are optional: ``stored_weights`` ({directory: bytes} of the
directories under the weights directory, so that weights already there need no room twice), ``adoptable``
({directory: bytes} that can be linked from directories to adopt), and
``engine_environments`` (a list of the directories of engine environments), ``port_owners`` ({port:
{program, unit}}) and ``gpu_users`` ([{program, unit}], from nvidia-smi's compute processes). A host that
could not be read further than a shell brings ``probe``, one line ``python3=PATH sudo=PATH uid=N``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NVIDIA = "0x10de"
_MIB = 1024 * 1024


@dataclass(frozen=True)
class SmiGpu:
    """One GPU as nvidia-smi prints it."""

    index: int
    name: str
    uuid: str
    memory_bytes: int | None
    driver: str
    compute_capability: str | None


@dataclass(frozen=True)
class Occupant:
    """Who holds a port or GPU memory: a program, and the unit it runs under (none: no unit)."""

    program: str
    unit: str | None

    @property
    def ours(self) -> bool:
        """Whether it is an engine that these plays started."""
        return (self.unit or "").startswith("sglang@")

    def __str__(self) -> str:
        return f"{self.program} ({self.unit})" if self.unit else self.program


@dataclass(frozen=True)
class Disk:
    """Room of the file system that holds a path (or the nearest parent that exists)."""

    free_bytes: int
    total_bytes: int
    device: int | None = None
    """Number of the file system, where it was read."""


@dataclass(frozen=True)
class HostFacts:
    """One host as found. ``reachable`` false means that nothing else is known."""

    reachable: bool
    what_if: bool = False
    hostname: str | None = None
    distribution: str | None = None
    version: str | None = None
    codename: str | None = None
    architecture: str | None = None
    kernel: str | None = None
    python: str | None = None
    pci_gpus: tuple[str, ...] = ()
    """PCI device ids of NVIDIA display devices, in address order."""
    nvswitches: int = 0
    smi_present: bool = False
    smi_gpus: tuple[SmiGpu, ...] = ()
    smi_error: str | None = None
    loaded_driver: str | None = None
    nvidia_installer: str | None = None
    """Path of the uninstaller that a .run file of NVIDIA's left."""
    memory_total_bytes: int | None = None
    cpu_count: int | None = None
    disks: Mapping[str, Disk] = field(default_factory=dict)
    secure_boot: bool | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    listening_ports: frozenset[int] = frozenset()
    port_owners: Mapping[int, Occupant] = field(default_factory=dict)
    gpu_users: tuple[Occupant, ...] = ()
    stored_weights: Mapping[str, int] | None = None
    engine_environments: frozenset[str] | None = None
    adoptable: Mapping[str, int] | None = None
    """Directory to adopt weights from: bytes in it that links can put below the weights directory."""
    is_root: bool | None = None
    sudo: bool | None = None
    """Whether there is a way to root; known only where the host could not be read further."""


UNREACHABLE = HostFacts(reachable=False)


def parse_facts(raw: Mapping[str, Any] | None) -> HostFacts:
    """Facts from the raw dictionary of the facts module; none or ``reachable: false`` is unreachable."""
    if not isinstance(raw, Mapping) or not raw.get("reachable", True):
        return UNREACHABLE
    release = _os_release(_text(raw.get("os_release")) or "")
    devices = [item for item in _list(raw.get("pci_devices")) if isinstance(item, Mapping)]
    devices.sort(key=lambda item: str(item.get("address", "")))
    nvidia = [item for item in devices if str(item.get("vendor", "")).lower() == NVIDIA]
    smi = raw.get("nvidia_smi")
    smi = smi if isinstance(smi, Mapping) else {}
    smi_gpus, smi_error = _smi(smi)
    probe = _text(raw.get("probe")) or ""
    return HostFacts(
        reachable=True,
        hostname=_text(raw.get("hostname")),
        distribution=release.get("ID"),
        version=release.get("VERSION_ID"),
        codename=release.get("VERSION_CODENAME"),
        architecture=_text(raw.get("machine")),
        kernel=_text(raw.get("kernel")),
        python=_text(raw.get("python")) or ("3" if "python3=/" in probe else None),
        pci_gpus=tuple(
            str(item.get("device", "")).lower()
            for item in nvidia
            if str(item.get("class", "")).lower().startswith(("0x0300", "0x0302"))
        ),
        nvswitches=sum(str(item.get("class", "")).lower().startswith("0x0680") for item in nvidia),
        smi_present=bool(smi.get("present")),
        smi_gpus=smi_gpus,
        smi_error=smi_error,
        nvidia_installer=_text(raw.get("nvidia_installer")),
        loaded_driver=_driver_version(_text(raw.get("driver_version_file"))),
        memory_total_bytes=_whole(raw.get("memory_total_bytes")) or None,
        cpu_count=_whole(raw.get("cpu_count")),
        disks=_disks(raw.get("disks")),
        secure_boot=raw.get("secure_boot") if isinstance(raw.get("secure_boot"), bool) else None,
        packages={str(k): str(v) for k, v in _mapping(raw.get("packages")).items()},
        listening_ports=frozenset(
            port for item in _list(raw.get("listening_ports")) if (port := _whole(item)) is not None
        ),
        stored_weights=_sizes(raw.get("stored_weights")),
        adoptable=_sizes(raw.get("adoptable")),
        port_owners={
            port: Occupant(str(owner.get("program") or "a program"), _text(owner.get("unit")))
            for number, owner in _mapping(raw.get("port_owners")).items()
            if (port := _whole(number)) is not None and isinstance(owner, Mapping)
        },
        gpu_users=tuple(
            Occupant(str(user.get("program") or "a program"), _text(user.get("unit")))
            for user in _list(raw.get("gpu_users"))
            if isinstance(user, Mapping)
        ),
        engine_environments=(
            frozenset(str(item) for item in _list(raw["engine_environments"]))
            if "engine_environments" in raw
            else None
        ),
        is_root=raw.get("user_is_root") if isinstance(raw.get("user_is_root"), bool) else None,
        sudo=("sudo=/" in probe or re.search(r"\buid=0\b", probe) is not None) if probe else None,
    )


def _text(value: Any) -> str | None:
    return str(value) if value not in (None, "") else None


def _whole(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _sizes(value: Any) -> dict[str, int] | None:
    if not isinstance(value, Mapping):
        return None
    return {str(key): size for key, item in value.items() if (size := _whole(item)) is not None}


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _os_release(text: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, mark, value = line.strip().partition("=")
        if mark and not key.startswith("#"):
            try:
                values[key] = "".join(shlex.split(value)[:1])
            except ValueError:
                values[key] = value.strip("\"'")
    return values


def _driver_version(text: str | None) -> str | None:
    # "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build ..."
    found = re.search(r"NVRM version:.*?\s(\d+\.\d+(?:\.\d+)?)\s", text or "")
    return found.group(1) if found else None


def _smi(raw: Mapping[str, Any]) -> tuple[tuple[SmiGpu, ...], str | None]:
    if not raw.get("present"):
        return (), None
    if raw.get("returncode"):
        words = " ".join((str(raw.get("stderr") or "") + " " + str(raw.get("stdout") or "")).split())
        return (), words or f"nvidia-smi ended with {raw.get('returncode')}"
    gpus: list[SmiGpu] = []
    for line in str(raw.get("stdout") or "").splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) < 6 or (index := _whole(cells[0])) is None:
            continue
        memory = re.match(r"(\d+)", cells[3])
        capability = cells[5] if re.fullmatch(r"\d+\.\d+", cells[5]) else None
        gpus.append(
            SmiGpu(
                index=index,
                name=cells[1],
                uuid=cells[2],
                memory_bytes=int(memory.group(1)) * _MIB if memory else None,
                driver=cells[4],
                compute_capability=capability,
            )
        )
    return tuple(sorted(gpus, key=lambda gpu: gpu.index)), None


def _disks(raw: Any) -> dict[str, Disk]:
    disks: dict[str, Disk] = {}
    for path, room in _mapping(raw).items():
        free, total = _whole(_mapping(room).get("free_bytes")), _whole(_mapping(room).get("total_bytes"))
        if free is not None:
            device = _whole(_mapping(room).get("device"))
            disks[str(path)] = Disk(free, total if total is not None else free, device)
    return disks

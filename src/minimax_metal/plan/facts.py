"""A host's facts, parsed from what the facts module collected. Never raises on odd facts: unreadable ones are
None, and the plan reports what is missing.

Raw keys beyond the module's first version are optional: ``stored_weights`` ({directory: bytes} of the
directories under the weights directory, so that stored weights need no space twice), ``adoptable``
({directory: bytes} that can be linked from directories to adopt), and ``engine_environments`` (a list of the
directories of engine environments), ``port_owners`` ({port: {program, unit}}), ``gpu_users`` ([{program,
unit, gpu_uuid, memory}], nvidia-smi's compute processes) and ``unanswered`` ({name: reason} of programs and
directories that did not answer in time). A host on which only a shell could run has ``probe``, one line
``python3=PATH sudo=PATH uid=N``; one that could not be read at all has ``answer``, Ansible's result, with the
``host`` and ``user`` of the connection.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minimax_metal.common.nvidia_smi import MIB, mib
from minimax_metal.common.text import one_line
from minimax_metal.plan.connection import Trouble, trouble_of
from minimax_metal.plan.gpu_facts import LostGpu, SmiGpu, lines, read_smi, version

__all__ = ("UNREACHABLE", "Disk", "HostFacts", "LostGpu", "Occupant", "SmiGpu", "parse_facts")

NVIDIA = "0x10de"
_MOST = 10_000
"""Maximum entries read of a list or a mapping that a host sent; the rest is dropped."""


@dataclass(frozen=True)
class Occupant:
    """Holder of a port or GPU memory: a program, and its unit (None: no unit)."""

    program: str
    unit: str | None
    gpu: str = ""
    """UUID of the GPU whose memory it holds."""
    memory_bytes: int | None = None
    """How much of it; None if nvidia-smi has no number."""

    @property
    def ours(self) -> bool:
        """Whether it is an engine that these playbooks started."""
        return (self.unit or "").startswith("sglang@")

    def __str__(self) -> str:
        return f"{self.program} ({self.unit})" if self.unit else self.program


@dataclass(frozen=True)
class Disk:
    """Space of the file system that contains a path (or its nearest existing parent)."""

    free_bytes: int
    total_bytes: int
    device: int | None = None
    """Device number of the file system, if it was read."""
    error: str | None = None
    """Why it could not be measured."""


@dataclass(frozen=True)
class HostFacts:
    """The state of one host. ``reachable`` false means that nothing else is known."""

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
    pci_addresses: tuple[str, ...] = ()
    """Their addresses, as sysfs writes them."""
    other_devices: tuple[tuple[str, str, str], ...] = ()
    """Vendor, device and class of other vendors' displays and accelerators, as sysfs prints them."""
    nvswitches: int = 0
    smi_present: bool = False
    smi_gpus: tuple[SmiGpu, ...] = ()
    smi_error: str | None = None
    smi_code: str | None = None
    """Kind of that failure; ``hangs`` for an nvidia-smi that did not answer in time."""
    smi_remedy: str = ""
    smi_addresses: tuple[str, ...] = ()
    """PCI addresses of the GPUs that answer, if they were read."""
    lost_gpus: tuple[LostGpu, ...] = ()
    warned_gpus: tuple[LostGpu, ...] = ()
    """GPUs that answer and that nvidia-smi warns about."""
    mig_gpus: tuple[int, ...] = ()
    """Indices of GPUs with MIG on."""
    unanswered: Mapping[str, str] = field(default_factory=dict)
    """Programs and directories that did not answer in time, with details."""
    loaded_driver: str | None = None
    nvidia_installer: str | None = None
    """Path of the uninstaller that NVIDIA's .run file left."""
    memory_total_bytes: int | None = None
    address: str | None = None
    """The host's source address on its default route (IPv4)."""
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
    """Directory to adopt weights from: bytes in it that can be linked below the weights directory."""
    is_root: bool | None = None
    sudo: bool | None = None
    """Whether the user can become root; known only if the host could not be read further."""
    trouble: Trouble | None = None
    """Why it could not be read, if Ansible, SSH or sudo gave a reason."""


UNREACHABLE = HostFacts(reachable=False)


def parse_facts(raw: Mapping[str, Any] | None) -> HostFacts:
    """Return facts from the raw dictionary of the facts module; None or ``reachable: false`` is unreachable.

    A host may be broken or hostile: its answer has any shape and size, and is bounded here. For a host that
    could not be read, ``answer`` has Ansible's result instead.
    """
    if isinstance(raw, Mapping) and isinstance(raw.get("answer"), Mapping):
        answer = raw["answer"]
        names = (_text(raw.get("host")) or "", _text(raw.get("user")) or "")
        return HostFacts(reachable=False, trouble=trouble_of(answer, *names))
    if not isinstance(raw, Mapping) or not raw.get("reachable", True):
        return UNREACHABLE
    release = _os_release(raw.get("os_release"))
    devices = [item for item in _list(raw.get("pci_devices")) if isinstance(item, Mapping)]
    devices.sort(key=lambda item: str(item.get("address", "")))
    nvidia = [item for item in devices if str(item.get("vendor", "")).lower() == NVIDIA]
    gpus = [item for item in nvidia if str(item.get("class", "")).lower().startswith(("0x0300", "0x0302"))]
    smi = read_smi(raw.get("nvidia_smi"))
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
        pci_gpus=tuple(one_line(str(item.get("device", "")), 20).lower() for item in gpus),
        pci_addresses=tuple(one_line(str(item.get("address", "")), 20).lower() for item in gpus),
        other_devices=tuple(
            (name, one_line(str(item.get("device", "")), 20).lower(), kind)
            for item in devices
            if (name := one_line(str(item.get("vendor", "")), 20).lower()) != NVIDIA
            and (kind := one_line(str(item.get("class", "")), 20).lower()).startswith(("0x03", "0x12"))
        ),
        nvswitches=sum(str(item.get("class", "")).lower().startswith("0x0680") for item in nvidia),
        smi_present=smi.present,
        smi_gpus=smi.gpus,
        smi_error=smi.error,
        smi_code=smi.code,
        smi_remedy=smi.remedy,
        smi_addresses=smi.addresses,
        lost_gpus=smi.lost,
        warned_gpus=smi.warned,
        mig_gpus=smi.mig,
        unanswered={
            one_line(str(what), 60): one_line(str(why), 200)
            for what, why in list(_mapping(raw.get("unanswered")).items())[:20]
        },
        nvidia_installer=_text(raw.get("nvidia_installer")),
        loaded_driver=_driver_version(raw.get("driver_version_file")),
        memory_total_bytes=_whole(raw.get("memory_total_bytes")) or None,
        address=str(raw.get("address") or "") or None,
        cpu_count=_whole(raw.get("cpu_count"), 1 << 16) or None,
        disks=_disks(raw.get("disks")),
        secure_boot=raw.get("secure_boot") if isinstance(raw.get("secure_boot"), bool) else None,
        packages={str(k): one_line(str(v), 200) for k, v in _items(raw.get("packages"))},
        listening_ports=frozenset(
            port for item in _list(raw.get("listening_ports")) if (port := _whole(item, 65535)) is not None
        ),
        stored_weights=_sizes(raw.get("stored_weights")),
        adoptable=_sizes(raw.get("adoptable")),
        port_owners={
            port: _occupant(owner)
            for number, owner in _items(raw.get("port_owners"))
            if (port := _whole(number, 65535)) is not None and isinstance(owner, Mapping)
        },
        gpu_users=tuple(_occupant(user) for user in _list(raw.get("gpu_users")) if isinstance(user, Mapping)),
        engine_environments=(
            frozenset(str(item) for item in raw["engine_environments"][:_MOST])
            if isinstance(raw.get("engine_environments"), list)
            else None
        ),
        is_root=raw.get("user_is_root") if isinstance(raw.get("user_is_root"), bool) else None,
        sudo=("sudo=/" in probe or re.search(r"\buid=0\b", probe) is not None) if probe else None,
    )


def _text(value: Any) -> str | None:
    if not isinstance(value, (str, int, float)) or value == "":
        return None
    return one_line(str(value), 4_000)


def _whole(value: Any, most: int = 1 << 62) -> int | None:
    """Return a whole number from 0 to ``most``; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = int(value)
    except (ValueError, OverflowError):
        return None
    return number if 0 <= number <= most else None


def _sizes(value: Any) -> dict[str, int] | None:
    if not isinstance(value, Mapping):
        return None
    return {str(key): size for key, item in _items(value) if (size := _whole(item)) is not None}


def _occupant(raw: Mapping[str, Any]) -> Occupant:
    memory = mib(str(raw.get("memory") or ""))
    return Occupant(
        program=one_line(str(raw.get("program") or "a program"), 200),
        unit=_text(raw.get("unit")),
        gpu=one_line(str(raw.get("gpu_uuid") or ""), 60),
        memory_bytes=None if memory is None else memory * MIB,
    )


def _list(value: Any) -> list[Any]:
    return list(value[:_MOST]) if isinstance(value, (list, tuple)) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _items(value: Any) -> list[tuple[Any, Any]]:
    return list(_mapping(value).items())[:_MOST]


def _os_release(text: Any) -> dict[str, str]:
    values: dict[str, str] = {}
    for line in lines(text):
        key, mark, value = line.strip().partition("=")
        if mark and not key.startswith("#"):
            try:
                values[key] = one_line("".join(shlex.split(value)[:1]), 200)
            except ValueError:
                values[key] = one_line(value.strip("\"'"), 200)
    return values


def _driver_version(text: Any) -> str | None:
    # "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build ..."
    for line in lines(text):
        if "NVRM version:" in line:
            return next((found for word in line.split() if (found := version(word))), None)
    return None


def _disks(raw: Any) -> dict[str, Disk]:
    disks: dict[str, Disk] = {}
    for path, room in _items(raw):
        free, total = _whole(_mapping(room).get("free_bytes")), _whole(_mapping(room).get("total_bytes"))
        error = _text(_mapping(room).get("error"))
        if free is not None:
            device = _whole(_mapping(room).get("device"))
            disks[str(path)] = Disk(free, total if total is not None else free, device)
        elif error is not None:
            disks[str(path)] = Disk(0, 0, None, error)
    return disks

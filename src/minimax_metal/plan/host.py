"""The host's platform and GPUs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from minimax_metal.catalog import Catalog, Gpu, Platform
from minimax_metal.plan.connection import trouble_in
from minimax_metal.plan.facts import HostFacts
from minimax_metal.plan.findings import Findings
from minimax_metal.plan.gpu_identity import by_pci, by_smi, memory_of, warn_ambiguous
from minimax_metal.plan.gpu_state import (
    check_answers,
    check_lost,
    check_memory,
    check_mig,
    check_sick,
    refuse_unknown_gpu,
)
from minimax_metal.plan.model import GpusPlan, InterconnectPlan, PlatformPlan
from minimax_metal.plan.settings import Settings

COUNTS = (4, 8)
"""GPU counts that the guides use."""


@dataclass(frozen=True)
class Board:
    """The GPUs of a host, from nvidia-smi or, without a driver, from PCI."""

    gpu: Gpu | None
    """None if the GPU is not in the catalogue and the user lifted that refusal."""
    name: str
    count: int
    memory_bytes: int
    capability: str
    indices: tuple[int, ...]
    nvswitch: bool

    @property
    def label(self) -> str:
        """The catalogue's name, or the host's own."""
        return self.gpu.name if self.gpu else self.name


def check_host(facts: HostFacts, found: Findings) -> bool:
    """Return whether the host could be read at all; otherwise report why not."""
    if not facts.reachable:
        trouble = facts.trouble or trouble_in("", unreachable=True)
        found.refuse(trouble.code, trouble.found, trouble.needed, trouble.remedy)
        return False
    if facts.what_if:
        return True
    if facts.python is None:
        found.refuse("python-missing", "no Python 3", "Python 3 on the host", "install python3 there")
    if facts.sudo is False:
        found.refuse("sudo-missing", "no sudo", "sudo, or SSH as root", "install sudo on the host")
    if facts.python is None or facts.sudo is False:
        return False
    if facts.is_root is False:
        found.refuse(
            "not-root", "a user other than root", "root", "let plays become root: sudo for the SSH user"
        )
    if facts.secure_boot:
        found.warn(
            "secure-boot",
            "secure boot is on: the driver's modules load only with a key enrolled in the firmware",
        )
    return True


def check_occupants(facts: HostFacts, ports: range, found: Findings) -> None:
    """Check whether another program holds what the endpoint needs. Our own engine does not count."""
    for port in ports:
        owner = facts.port_owners.get(port)
        if owner and not owner.ours:
            found.refuse(
                "port-taken",
                f"port {port} held by {owner}",
                "a free port",
                "stop that program, or set metal_port to another port",
            )
    check_memory(facts, found)


def find_platform(facts: HostFacts, catalog: Catalog, found: Findings) -> Platform | None:
    """The host's distribution in the catalogue."""
    if facts.architecture not in (None, "x86_64", "aarch64"):
        found.refuse(
            "architecture", str(facts.architecture), "x86_64, or aarch64 with Grace", "use another host"
        )
    if facts.architecture == "aarch64":
        found.warn(
            "architecture",
            "aarch64: this project has never been installed or run on it; its locks were made for "
            "x86_64 and lack at least av, which SGLang needs on aarch64 (uv's dry run with 0.5.23's "
            "lock, 2026-11-29)",
        )
    for platform in catalog.platforms.values():
        same = (facts.distribution or "").casefold() == platform.distribution.casefold()
        if same and facts.version == platform.version:
            return platform
    names = ", ".join(f"{p.distribution} {p.version}" for p in catalog.platforms.values())
    found.refuse(
        "platform-unknown",
        " ".join(filter(None, (facts.distribution or "an unknown distribution", facts.version))),
        f"one of {names}",
        "install one of them on the host",
    )
    return None


def platform_plan(platform: Platform, facts: HostFacts) -> PlatformPlan:
    """The platform's part of the plan."""
    return PlatformPlan(
        slug=platform.slug,
        distribution=platform.distribution,
        version=platform.version,
        codename=platform.codename,
        python=platform.python,
        architecture=facts.architecture or "x86_64",
    )


def gpus_plan(board: Board) -> GpusPlan:
    """The GPUs' part of the plan."""
    return GpusPlan(
        model=board.label,
        name=board.name,
        count=board.count,
        memory_bytes=board.memory_bytes,
        nvswitch=board.nvswitch,
        indices=board.indices,
        compute_capability=board.capability,
        interconnect=interconnect_plan(board.gpu) if board.gpu else None,
    )


def interconnect_plan(gpu: Gpu) -> InterconnectPlan:
    """Return the catalogue's data on the links between these GPUs: `metal accept` compares with it."""
    return InterconnectPlan(
        kind=gpu.nvlink,
        nvlinks=gpu.nvlinks.value if gpu.nvlinks else None,
        bandwidth=gpu.nvlink_bandwidth.value if gpu.nvlink_bandwidth else None,
        bandwidth_source=gpu.nvlink_bandwidth.source if gpu.nvlink_bandwidth else None,
        all_reduce_bandwidth={count: figure.value for count, figure in gpu.all_reduce_bandwidth.items()},
        all_reduce_source={count: figure.source for count, figure in gpu.all_reduce_bandwidth.items()},
    )


def find_board(settings: Settings, facts: HostFacts, catalog: Catalog, found: Findings) -> Board | None:
    """Return the GPUs of the host, if they are of one model in the catalogue."""
    check_answers(facts, found)
    pci = facts.pci_gpus
    if facts.what_if and not pci:
        found.refuse(
            "gpu-count", "0 GPUs (--count 0)", "4 or 8 GPUs, as the guides launch", "give --count 4 or 8"
        )
        return None
    if not facts.smi_gpus and _refuse_vendor(facts, catalog, found):
        return None
    if not facts.smi_gpus and not pci:
        if facts.loaded_driver is None or not facts.smi_error:
            found.refuse(
                "gpu-none",
                "no NVIDIA GPU",
                "4 or 8 GPUs of one model",
                "check the host's PCI devices (lspci)",
            )
        return None
    check_lost(facts, found)
    check_sick(facts, catalog.gpus.values(), found)
    check_mig(facts, found)
    # A sick GPU's error is not its name: the others stand for it.
    smi = tuple(one for one in facts.smi_gpus if one.sick is None)
    kinds: list[Gpu | None]
    if smi:
        cards = sorted({(one.name, one.memory_bytes or 0) for one in smi})
        names = [name for name, _ in cards]
        kinds = [by_smi(name, memory or None, catalog.gpus) for name, memory in cards]
    elif pci:
        names = sorted(set(pci))
        several = [by_pci(device, catalog.gpus) for device in names]
        kinds = [next(iter(one), None) for one in several]
        for one in several:
            warn_ambiguous(one, found)
    else:
        return None
    count = len(facts.smi_gpus) or len(pci)
    labels = sorted({kind.name if kind else name for kind, name in zip(kinds, names, strict=True)})
    if len(labels) > 1:
        found.refuse(
            "gpu-mixed",
            f"different GPUs in one host: {', '.join(labels)}",
            "GPUs of one model",
            "remove the others",
        )
        return None
    if count not in COUNTS:
        found.refuse(
            "gpu-count",
            f"{count} GPU{'s' if count != 1 else ''}",
            "4 or 8 GPUs, as the guides launch",
            "use a host with 4 or 8 GPUs",
        )
    gpu, name = kinds[0], names[0]
    memory = memory_of(gpu, [one.memory_bytes for one in smi if one.memory_bytes], found)
    if memory is None:
        return None
    capability = next((one.compute_capability for one in smi if one.compute_capability), None)
    capability = capability or (gpu.compute_capability if gpu else "")
    if gpu is None:
        lifted = refuse_unknown_gpu(name, facts, catalog, found)
        if not (lifted and memory and capability):
            return None
    return Board(
        gpu=gpu,
        name=name if smi else f"NVIDIA {gpu.name if gpu else name}",
        count=count,
        memory_bytes=memory,
        capability=capability,
        indices=tuple(one.index for one in facts.smi_gpus) if len(smi) == count else tuple(range(count)),
        nvswitch=(
            _has_nvswitch(facts, gpu, count) if settings.fabric_manager is None else settings.fabric_manager
        ),
    )


def _refuse_vendor(facts: HostFacts, catalog: Catalog, found: Findings) -> bool:
    """Refuse a host with another vendor's accelerators, by name; false if it has none."""
    for vendor in catalog.vendors.values():
        here = [
            device
            for name, device, kind in facts.other_devices
            if name == vendor.pci_vendor and kind.startswith(vendor.pci_classes)
        ]
        if facts.what_if and facts.pci_gpus and re.fullmatch(vendor.names, facts.pci_gpus[0].casefold()):
            what = f"{len(facts.pci_gpus)} x {facts.pci_gpus[0]} ({vendor.name})"
        elif here and not facts.pci_gpus:
            ids = ", ".join(sorted({f"{vendor.pci_vendor[2:]}:{one.removeprefix('0x')}" for one in here}))
            what = f"{len(here)} {vendor.name} device{'s' if len(here) > 1 else ''} (PCI {ids})"
        else:
            continue
        found.refuse(
            "gpu-vendor",
            f"{what} and no NVIDIA GPU",
            "4 or 8 NVIDIA GPUs of one model",
            f"use another host, or install by hand: {vendor.offers}",
        )
        return True
    return False


def _has_nvswitch(facts: HostFacts, gpu: Gpu | None, count: int) -> bool:
    """Return whether a fabric manager is needed: by the host's PCI bus, or else by the catalogue."""
    if facts.nvswitches:
        return True
    if gpu is None or count not in gpu.nvswitch_counts:
        return False
    return facts.what_if or gpu.nvlink == "nvlink5-switch"

"""Whether a host's GPUs can be used: lost and sick ones, MIG, and other users of their memory."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from minimax_metal.catalog import Catalog, Gpu
from minimax_metal.common import nvidia_smi
from minimax_metal.plan.facts import HostFacts, LostGpu, Occupant, SmiGpu
from minimax_metal.plan.findings import Findings, near_of_all

REPAIR: Final = (
    "drain the host, reset the GPU (nvidia-smi --gpu-reset -i INDEX) or reboot; look for its Xid in "
    "dmesg; if the error returns, have it repaired"
)
_PASSING: Final = frozenset({"mismatch", "field"})
"""Failures of nvidia-smi that a run fixes: an upgraded driver without a reboot, or an old one."""
_VGPU: Final = re.compile(r"\bGRID\b|-\d{1,3}(?:[ABCQ]|CME|QME)$")
"""Names of vGPUs: ``GRID T4-16Q``, ``NVIDIA H200-141C``, ``NVIDIA A100-4-20C``, ``NVIDIA H100-1-10CME``
(vGPU User Guide, "Virtual GPU Types for Supported GPUs")."""
_SAME_SIZE: Final = 0.01
"""How far memory sizes of the same card may differ: ECC and reserved pages take some MiB."""
_SPOKEN_SIZE: Final = 0.08
"""How far a nominal size (144 GB) may differ from nvidia-smi's, in GiB or in GB."""
_SIZE: Final = re.compile(r"(\d{1,4})\s?(?:G|GB|GiB)\b", re.IGNORECASE)


def check_answers(facts: HostFacts, found: Findings) -> None:
    """Refuse a host if nvidia-smi fails although a driver is loaded, or if something did not answer."""
    if facts.smi_error is not None and facts.smi_code not in {"gpu-lost", "gpu-reset"}:
        words = f"nvidia-smi is installed but failed: {facts.smi_error}"
        bad = facts.loaded_driver is not None and facts.smi_code not in _PASSING
        if facts.smi_code == "hangs":
            found.refuse("nvidia-smi", "nvidia-smi did not answer in time", "an answer", facts.smi_remedy)
        elif bad:
            found.refuse(
                "nvidia-smi",
                f"driver {facts.loaded_driver} loaded and nvidia-smi failed: {facts.smi_error}",
                "an nvidia-smi that lists the GPUs",
                facts.smi_remedy or "look at dmesg | grep -i -e nvrm -e xid; reboot the host",
            )
        else:
            found.warn("nvidia-smi", words)
    for what, why in facts.unanswered.items():
        if what == "nvidia-smi":
            if facts.smi_code != "hangs":
                found.refuse(
                    "nvidia-smi",
                    f"nvidia-smi: {why}",
                    "an answer",
                    "look for a lost GPU (dmesg | grep -i -e xid -e nvrm) and reboot the host",
                )
        elif what == "dpkg-query":
            found.refuse(
                "host-silent", f"dpkg-query: {why}", "an answer", "find the process that hangs: ps, dmesg"
            )
        else:
            found.refuse(
                "host-silent",
                f"{what}: {why}",
                "a file system that answers",
                "look for a dead NFS or FUSE mount (findmnt, dmesg) and unmount it",
            )


def check_lost(facts: HostFacts, found: Findings) -> None:
    """Refuse a host with a GPU that the driver has lost, by its index."""
    lost = list(facts.lost_gpus)
    count, pci = len(facts.smi_gpus), len(facts.pci_gpus)
    if not lost and (not count or pci in (0, count)):
        return
    if lost:
        named = ", ".join(f"{_placed(one, facts)}: {one.why}" for one in lost)
        words = f"{named}" if not count else f"{named} ({count} other GPUs answer)"
        found.refuse("gpu-missing", f"lost {words}", "a driver that reaches every GPU", REPAIR)
        return
    missing = _missing(facts)
    found.refuse(
        "gpu-missing",
        f"{count} GPUs in nvidia-smi, {pci} on the PCI bus" + (f"; {missing} is missing" if missing else ""),
        "the same number in both",
        "look for a failed GPU in dmesg (Xid) and reboot or repair the host",
    )


def _placed(one: LostGpu, facts: HostFacts) -> str:
    """Return the GPU by index; if nvidia-smi prints only the address, by its place on the PCI bus."""
    if one.index is None and one.address in facts.pci_addresses:
        return f"GPU {facts.pci_addresses.index(one.address)} ({one.address})"
    return str(one)


def _missing(facts: HostFacts) -> str:
    """Return which GPU nvidia-smi leaves out; empty if unknown."""
    if facts.smi_addresses and facts.pci_addresses:
        gone = [one for one in facts.pci_addresses if one not in facts.smi_addresses]
        if gone and len(gone) < len(facts.pci_addresses):
            return ", ".join(f"GPU {facts.pci_addresses.index(one)} ({one})" for one in gone)
    known = {gpu.index for gpu in facts.smi_gpus}
    gaps = [index for index in range(len(facts.pci_gpus)) if index not in known]
    # Only a gap shows it: a driver that was loaded without the GPU numbers the others from 0.
    inside = gaps and max(known, default=0) >= len(known)
    return ", ".join(f"GPU {index}" for index in gaps) if inside else ""


def check_sick(facts: HostFacts, known: Iterable[Gpu], found: Findings) -> None:
    """Refuse a host with a GPU whose row contains no values, or that needs a reset."""
    catalogue = tuple(known)
    bad: dict[str, list[int]] = defaultdict(list)
    for gpu in facts.smi_gpus:
        if why := sick_of(gpu, catalogue):
            bad[why].append(gpu.index)
    for one in facts.warned_gpus:
        found.refuse(
            "gpu-sick", f"{_placed(one, facts)}: {one.why}", "GPUs that nvidia-smi reports as healthy", REPAIR
        )
    for why, indices in bad.items():
        found.refuse(
            "gpu-sick",
            f"{_listed(indices)}: {why}",
            "GPUs that nvidia-smi can read",
            REPAIR.replace("INDEX", ",".join(map(str, indices))),
        )


def sick_of(gpu: SmiGpu, known: Iterable[Gpu]) -> str | None:
    """Return why a GPU can't be used. One outside the catalogue may share the host's memory (GB10:
    ``[N/A]``).
    """
    if gpu.sick is not None or gpu.memory_bytes is not None:
        return gpu.sick
    board = any(re.fullmatch(one.smi_pattern, gpu.name) for one in known)
    return f"{gpu.memory_cell or 'nothing'} as its memory" if board else None


def _listed(indices: list[int]) -> str:
    return f"GPU{'s' if len(indices) > 1 else ''} {', '.join(map(str, indices))}"


def check_mig(facts: HostFacts, found: Findings) -> None:
    """Refuse a host with MIG enabled."""
    if not facts.mig_gpus:
        return
    indices = list(facts.mig_gpus)
    every = len(indices) == len(facts.smi_gpus)
    which = "" if every else f" -i {','.join(map(str, indices))}"
    found.refuse(
        "gpu-mig",
        f"MIG on {'every GPU' if every else _listed(indices)}",
        "whole GPUs: MIG off",
        f"stop the programs that use them, then run nvidia-smi{which} -mig 0 on the host as root "
        "(reboot if it reports that the change is pending)",
    )


def check_memory(facts: HostFacts, found: Findings) -> None:
    """Refuse GPUs whose memory is in use; small amounts of NVIDIA's own daemons are only reported.

    One threshold counts, per GPU: :data:`minimax_metal.common.nvidia_smi.FREE_MIB`. A process without a
    number in nvidia-smi may hold everything.
    """
    strangers = [user for user in facts.gpu_users if not user.ours]
    limit = nvidia_smi.FREE_MIB * nvidia_smi.MIB
    held: dict[str, int] = defaultdict(int)
    for user in strangers:
        held[user.gpu] += user.memory_bytes or 0
    refused: set[str] = set()
    small: set[str] = set()
    for user in strangers:
        unknown = user.memory_bytes is None and nvidia_smi.daemon(user.program) is None
        (refused if unknown or held[user.gpu] >= limit else small).add(_named(user))
    if refused:
        found.refuse(
            "gpu-busy",
            f"GPU memory held by {', '.join(sorted(refused))}",
            "GPUs that no other program uses",
            "stop those programs",
        )
    if small:
        found.warn(
            "gpu-shared",
            f"{', '.join(sorted(small))} hold less than {nvidia_smi.FREE_MIB} MiB of memory on each "
            "GPU, which is harmless",
        )


def _named(user: Occupant) -> str:
    called = nvidia_smi.daemon(user.program)
    name = f"{called}: {user}" if called else str(user)
    return name if user.memory_bytes is None else f"{name}, {user.memory_bytes // nvidia_smi.MIB} MiB"


def refuse_unknown_gpu(name: str, facts: HostFacts, catalog: Catalog, found: Findings) -> bool:
    """Refuse a GPU that is not in the catalogue, with everything known about it; true if that is lifted."""
    add = "it is not in the catalogue: describe it in a file that metal_catalog_overlay names (docs/plan.md)"
    if facts.what_if:
        hint = _spoken(name, catalog)
        return found.refuse("gpu-unknown", f"GPU {name}", "a GPU from the catalogue", f"{hint}{add}")
    seen = next((gpu for gpu in facts.smi_gpus if gpu.name == name), None)
    if seen is None:
        what = f"GPU with PCI device id {name}"
        return found.refuse("gpu-unknown", what, "a GPU from the catalogue", add)
    memory = (
        f"{seen.memory_bytes // nvidia_smi.MIB} MiB" if seen.memory_bytes else f"memory {seen.memory_cell}"
    )
    what = f"GPU {name}, {memory}, compute capability {seen.compute_capability or 'unknown'}"
    if name.endswith("Graphics Device"):
        return found.refuse(
            "gpu-unknown",
            f"{what}: the driver is older than the board and has no name for it",
            "a driver that knows the GPU",
            "set metal_driver_branch to a branch that lists it (lspci -nn -d 10de: shows its device "
            f"id); an engineering sample has no name in any driver: in that case {add}",
        )
    if _VGPU.search(name):
        return found.refuse(
            "gpu-unknown",
            f"{what}: a vGPU, a hypervisor's share of a GPU",
            "whole GPUs from the catalogue",
            f"pass the whole GPU through to this host; for a vGPU {add}",
        )
    alike = [
        gpu.name
        for gpu in catalog.gpus.values()
        if seen.memory_bytes
        and gpu.memory_bytes
        and abs(gpu.memory_bytes.value - seen.memory_bytes) <= _SAME_SIZE * seen.memory_bytes
        and gpu.compute_capability == seen.compute_capability
    ]
    hint = f" (boards with the same memory and compute capability: {', '.join(alike)})" if alike else ""
    return found.refuse("gpu-unknown", what, "a GPU from the catalogue", add + hint)


def _spoken(name: str, catalog: Catalog) -> str:
    """Return a hint for a typed name, never a card with another memory size than the typed one."""
    size = _SIZE.search(name)
    if _VGPU.search(name):
        return "that is a vGPU; "
    names = [
        gpu.name
        for gpu in catalog.gpus.values()
        if size is None
        or (
            gpu.memory_bytes
            and any(
                abs(int(size[1]) - one) <= one * _SPOKEN_SIZE
                for one in (gpu.memory_bytes.value / 2**30, gpu.memory_bytes.value / 1e9)
            )
        )
    ]
    wanted = _SIZE.sub("", name.removeprefix("NVIDIA ")).strip(" -")
    return f"{near_of_all(wanted, names)}; " if names else ""

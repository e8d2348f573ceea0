"""Which GPU of the catalogue a host has (by nvidia-smi's name or by PCI id), and its memory. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from minimax_metal.catalog import Gpu
from minimax_metal.common.nvidia_smi import MIB
from minimax_metal.plan.findings import Findings

_SAME_CARD: Final = 0.05
"""How far nvidia-smi's memory may differ from the catalogue's for GPUs that only memory distinguishes."""
_TAKEN_OVER: Final = "C"
"""Confidence of a memory size that was not measured for this GPU."""


def by_smi(name: str, memory_bytes: int | None, gpus: Mapping[str, Gpu]) -> Gpu | None:
    """Return the GPU by nvidia-smi's name; if several match, the one with this memory or the first."""
    named = [gpu for gpu in gpus.values() if re.fullmatch(gpu.smi_pattern, name)]
    if len(named) < 2 or memory_bytes is None:
        return next(iter(named), None)
    sized = [(abs(gpu.memory_bytes.value - memory_bytes), gpu) for gpu in named if gpu.memory_bytes]
    near = [one for one in sized if one[0] <= _SAME_CARD * memory_bytes]
    return min(near, key=lambda one: one[0])[1] if near else named[0]


def by_pci(device: str, gpus: Mapping[str, Gpu]) -> list[Gpu]:
    """Return the GPUs with a PCI device id, smallest memory first; a catalogue name stands for itself."""
    if device in gpus:
        return [gpus[device]]
    return sorted((gpu for gpu in gpus.values() if device in gpu.pci_ids), key=_size)


def _size(gpu: Gpu) -> int:
    return gpu.memory_bytes.value if gpu.memory_bytes else 0


def warn_ambiguous(kinds: Sequence[Gpu], found: Findings) -> None:
    """Report which of several GPUs with one PCI id is planned while no driver runs."""
    if len(kinds) > 1:
        names = " or ".join(f"{gpu.name} ({_size(gpu) // MIB} MiB)" for gpu in kinds)
        found.warn(
            "gpu-ambiguous",
            f"{names}: they share a PCI id, and no driver runs that could tell them apart; planned "
            f"as {kinds[0].name}, which has the least memory; the next run after the driver's "
            "installation decides by nvidia-smi",
        )


def memory_of(gpu: Gpu | None, measured: Iterable[int], found: Findings) -> int | None:
    """Return the memory of one GPU in bytes: nvidia-smi's, else the catalogue's; None, with a refusal, if
    unknown.
    """
    if (least := min(measured, default=None)) is not None:
        expected = gpu.memory_bytes.value if gpu and gpu.memory_bytes else least
        if gpu and abs(expected - least) > _SAME_CARD * expected:
            found.warn(
                "gpu-memory",
                f"nvidia-smi reports {least // MIB} MiB for {gpu.name}, the catalogue "
                f"{expected // MIB} MiB: the plan uses nvidia-smi's value; this may be another board "
                "of that name",
            )
        return least
    if gpu is None:
        return 0
    if gpu.memory_bytes is None:
        found.refuse(
            "gpu-memory",
            f"GPU {gpu.name}, whose memory no public source states",
            "its memory, as nvidia-smi prints it",
            f"set gpus: {{{gpu.name}: {{memory_bytes: BYTES}}}} in a file that metal_catalog_overlay "
            "names, or install a driver by hand, so that nvidia-smi can be read",
        )
        return None
    if gpu.memory_bytes.confidence == _TAKEN_OVER:
        found.warn(
            "gpu-memory",
            f"memory of {gpu.name} is assumed to be {gpu.memory_bytes.value // MIB} MiB; it was not "
            f"measured ({gpu.memory_bytes.source}); nvidia-smi decides once a driver runs",
        )
    return gpu.memory_bytes.value

"""Facts of an imagined host: a GPU by name, a count, a distribution."""

from __future__ import annotations

import re
from dataclasses import replace

from minimax_metal.catalog import Catalog, Gpu, Platform
from minimax_metal.common.errors import UserError
from minimax_metal.plan.facts import HostFacts
from minimax_metal.plan.findings import near

_MEMORY = re.compile(r"\b(\d{1,6})\s{0,3}G(?:i?B)?\b", re.IGNORECASE)
_NEAR_ENOUGH = 0.08
"""How far a nominal memory size ("144GB") may differ from nvidia-smi's, in GiB or GB."""


def _folded(text: str) -> str:
    return " ".join(re.sub(r"[-_]", " ", text.casefold().removeprefix("nvidia ")).split())


def find_gpu(text: str, catalog: Catalog) -> Gpu | None:
    """Return the GPU for "H20", "H20 96GB", "NVIDIA H100 80GB HBM3" or "h200"; None if unknown.

    A name with another memory size than that GPU's matches nothing.
    """
    wanted = _folded(text)
    for gpu in catalog.gpus.values():
        if wanted in {_folded(one) for one in (gpu.name, *gpu.aliases)}:
            return gpu
    for gpu in catalog.gpus.values():
        if re.fullmatch(gpu.smi_pattern, text):
            return gpu
    size = _MEMORY.search(text)
    if size is None:
        return None
    base, said = _folded(_MEMORY.sub(" ", text)), int(size.group(1))
    for gpu in catalog.gpus.values():
        names = {_folded(_MEMORY.sub(" ", one)) for one in (gpu.name, *gpu.aliases)}
        if base not in names:
            continue
        # A GPU of unknown memory matches any size; the plan asks for it.
        memory = gpu.memory_bytes
        if memory is None or any(
            abs(said - one) <= one * _NEAR_ENOUGH for one in (memory.value / 2**30, memory.value / 1e9)
        ):
            return gpu
    return None


_COUNTED = (
    re.compile(r"(?P<count>[0-9]{1,4})\s*[x×*]\s*(?P<name>\S.*)", re.IGNORECASE),
    # The x of "RTX 6000" is part of the name: a multiplication sign follows a digit or a space.
    re.compile(r"(?P<name>.*(?<=[0-9\s]))[x×*]\s*(?P<count>[0-9]{1,4})", re.IGNORECASE),
)


def counted(text: str, catalog: Catalog) -> tuple[str, int | None]:
    """Return name and number of GPUs in "8xH100", "8 x H20 96GB" or "h200 x 4"; the number may be None."""
    text = text.strip()
    if find_gpu(text, catalog) is None:
        for pattern in _COUNTED:
            if said := pattern.fullmatch(text):
                return said["name"].strip(), int(said["count"])
    return text, None


def find_platform(text: str, catalog: Catalog) -> Platform:
    """Return the distribution for "debian12", "ubuntu 24.04" or "noble"; raises ``UserError``."""
    wanted = re.sub(r"[\s._-]", "", text.casefold())
    for platform in catalog.platforms.values():
        names = (platform.slug, platform.distribution + platform.version, platform.codename)
        if wanted in {re.sub(r"[\s._-]", "", name.casefold()) for name in names}:
            return platform
    raise UserError(
        f"found platform {text}, expected one of the catalogue's; {near(text, catalog.platforms)}"
    )


def what_if_facts(gpu: str, count: int, platform: Platform, catalog: Catalog) -> HostFacts:
    """Return facts of a host with ``count`` GPUs; an unknown GPU stays a name, and the plan refuses it."""
    facts = HostFacts(
        reachable=True,
        what_if=True,
        distribution=platform.distribution,
        version=platform.version,
        codename=platform.codename,
        architecture="x86_64",
        python=platform.python,
    )
    known = find_gpu(gpu, catalog)
    if known is None:
        return replace(facts, pci_gpus=(gpu,) * count)
    # By name: GPUs that differ in memory may share a PCI id.
    return replace(facts, architecture=known.architecture, pci_gpus=(known.name,) * count)

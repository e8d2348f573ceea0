"""Room on a host's disks: for the weights, beside what is there, and for the engine's environment."""

from __future__ import annotations

from minimax_metal.plan.facts import Disk, HostFacts
from minimax_metal.plan.findings import Findings
from minimax_metal.plan.model import DiskPlan, DraftPlan, EnginePlan, ModelPlan
from minimax_metal.plan.settings import Settings

ENGINE_BYTES = 12_000_000_000
"""Room an engine environment wants while it is installed: 9.5 GB measured, and the cache beside it."""


def _disk(facts: HostFacts, path: str) -> Disk | None:
    """The file system where ``path`` will be: that of the measured directory that is nearest above it."""
    best: tuple[int, Disk] | None = None
    for place, disk in facts.disks.items():
        inside = path == place or path.startswith(place.rstrip("/") + "/")
        if inside and (best is None or len(place) > best[0]):
            best = (len(place), disk)
    return best[1] if best else None


def disk_plan(
    settings: Settings,
    facts: HostFacts,
    model: ModelPlan,
    engine: EnginePlan | None,
    found: Findings,
    draft: DraftPlan | None = None,
) -> DiskPlan:
    """Room for the weights; what is stored already, whole or partly, needs none again."""
    stored = facts.stored_weights or {}
    # A pull gathers beside its directory: PATH.partial.
    missing = 0
    for one in (model, draft):
        if one is not None:
            present = sum(
                size
                for directory, size in stored.items()
                if directory == one.path or directory.startswith(one.path + ".")
            )
            missing += max(0, one.bytes - present)
    # One part in a hundred for the file system's own needs.
    needed = missing * 101 // 100
    weights_disk = _disk(facts, settings.weights_directory)
    if weights_disk is not None and weights_disk.free_bytes < needed:
        _check_adoption(settings, facts, model, weights_disk.free_bytes, needed, found)
    _check_engine(settings, facts, engine, weights_disk, needed, found)
    return DiskPlan(needed_bytes=needed, path=settings.weights_directory)


def _check_engine(
    settings: Settings,
    facts: HostFacts,
    engine: EnginePlan | None,
    weights_disk: Disk | None,
    weights_bytes: int,
    found: Findings,
) -> None:
    """Warn where a new engine environment may not fit, on a disk that it shares with the weights too."""
    disk = _disk(facts, settings.engine_directory)
    if engine is None or disk is None:
        return
    if facts.engine_environments is not None and engine.environment in facts.engine_environments:
        return
    shared = weights_disk is not None and disk.device is not None and disk.device == weights_disk.device
    # Weights that don't fit are a matter of their own, and those that are linked may take nothing.
    counted = shared and not settings.weights_adopt and weights_bytes <= disk.free_bytes
    taken = weights_bytes if counted else 0
    if disk.free_bytes - taken < ENGINE_BYTES:
        less = f", of which the weights on the same disk want {taken / 1e9:.1f} GB" if taken else ""
        found.warn(
            "disk-engine",
            f"{disk.free_bytes / 1e9:.1f} GB free at {settings.engine_directory}{less}; a new engine "
            f"environment wants {ENGINE_BYTES / 1e9:.0f} GB",
        )


def _check_adoption(
    settings: Settings, facts: HostFacts, model: ModelPlan, free: int, needed: int, found: Findings
) -> None:
    """Refuse the disk, unless files to adopt may take no room: linked, on the same file system.

    Whether they are this model's files is known only when they are verified, so what might do is a warning.
    """
    place = f"{free / 1e9:.0f} GB free at {settings.weights_directory}"
    wanted = f"{needed / 1e9:.0f} GB for {model.name} {model.format}"
    known = facts.adoptable or {}
    linkable = sum(known.get(directory, 0) for directory in settings.weights_adopt)
    unread = [directory for directory in settings.weights_adopt if directory not in known]
    if unread:
        found.warn(
            "disk-adopt",
            f"{place}, {wanted}: what can be linked from {', '.join(unread)} was not read; it has to be "
            f"{(needed - free) / 1e9:.0f} GB at least, or the pull stops with a full disk",
        )
    elif free + linkable >= needed:
        found.warn(
            "disk-adopt",
            f"{place}, {wanted}: it fits if {(needed - free) / 1e9:.0f} of the {linkable / 1e9:.0f} GB that "
            f"can be linked from {', '.join(settings.weights_adopt)} are this model's files",
        )
    else:
        less = f", and {linkable / 1e9:.0f} GB that can be linked to adopt" if linkable else ""
        found.refuse(
            "disk",
            f"{place}{less}",
            wanted,
            "free some space, or set metal_weights_directory to a larger disk",
        )

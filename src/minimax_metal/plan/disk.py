"""Space on a host's disks: for the weights, considering stored ones, and for the engine's environment."""

from __future__ import annotations

from minimax_metal.plan.facts import Disk, HostFacts
from minimax_metal.plan.findings import Findings
from minimax_metal.plan.model import DiskPlan, DraftPlan, EnginePlan, ModelPlan
from minimax_metal.plan.settings import Settings

ENGINE_BYTES = 12_000_000_000
"""Space that an engine environment needs during installation: 9.5 GB measured, plus the cache."""


def _disk(facts: HostFacts, path: str) -> Disk | None:
    """Return the file system of ``path``: that of the nearest measured directory above it."""
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
    """Check the space for the weights; those already stored, completely or partly, need none."""
    stored = facts.stored_weights or {}
    # A pull collects its files in PATH.partial.
    missing = 0
    for one in (model, draft):
        if one is not None:
            present = sum(
                size
                for directory, size in stored.items()
                if directory == one.path or directory.startswith(one.path + ".")
            )
            missing += max(0, one.bytes - present)
    # One percent for the file system's own needs.
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
    """Warn if a new engine environment may not fit, also on a disk that it shares with the weights."""
    disk = _disk(facts, settings.engine_directory)
    if engine is None or disk is None:
        return
    if facts.engine_environments is not None and engine.environment in facts.engine_environments:
        return
    shared = weights_disk is not None and disk.device is not None and disk.device == weights_disk.device
    # Weights that don't fit are handled elsewhere, and linked ones may take no space.
    counted = shared and not settings.weights_adopt and weights_bytes <= disk.free_bytes
    taken = weights_bytes if counted else 0
    if disk.free_bytes - taken < ENGINE_BYTES:
        less = f", of which the weights on the same disk need {taken / 1000000000.0:.1f} GB" if taken else ""
        found.warn(
            "disk-engine",
            f"{disk.free_bytes / 1000000000.0:.1f} GB free at {settings.engine_directory}{less}; a "
            f"new engine environment needs {ENGINE_BYTES / 1000000000.0:.0f} GB",
        )


def _check_adoption(
    settings: Settings, facts: HostFacts, model: ModelPlan, free: int, needed: int, found: Findings
) -> None:
    """Refuse the disk, unless files to adopt may take no space: linked, on the same file system.

    Whether they are this model's files is known only after verification, so a possible fit is a warning.
    """
    place = f"{free / 1e9:.0f} GB free at {settings.weights_directory}"
    wanted = f"{needed / 1e9:.0f} GB for {model.name} {model.format}"
    known = facts.adoptable or {}
    linkable = sum(known.get(directory, 0) for directory in settings.weights_adopt)
    unread = [directory for directory in settings.weights_adopt if directory not in known]
    if unread:
        found.warn(
            "disk-adopt",
            f"{place}, {wanted}: {', '.join(unread)} could not be searched for files to link; at "
            f"least {(needed - free) / 1000000000.0:.0f} GB must come from there, or the disk fills "
            "up during the pull",
        )
    elif free + linkable >= needed:
        found.warn(
            "disk-adopt",
            f"{place}, {wanted}: it fits if {(needed - free) / 1000000000.0:.0f} of the "
            f"{linkable / 1000000000.0:.0f} GB that can be linked from "
            f"{', '.join(settings.weights_adopt)} are this model's files",
        )
    else:
        less = f", and {linkable / 1e9:.0f} GB that can be linked to adopt" if linkable else ""
        found.refuse(
            "disk",
            f"{place}{less}",
            wanted,
            "free some space, or set metal_weights_directory to a larger disk",
        )

"""How a host differs from its own release: pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from minimax_metal.common import certificates
from minimax_metal.plan.model import Plan


def named(unit: str) -> str:
    """Return a unit's instance name: ``minimax-m2.5``."""
    return unit.removeprefix("sglang@").removesuffix(".service")


def local_drift(here: Mapping[str, Any], now: datetime | None = None) -> list[str]:
    """Return how a host differs from its own release, and which of its certificates ends soon."""
    if not here.get("release"):
        return ["no release is recorded"]
    found = [f"{named(unit)} is missing" for unit in here.get("missing") or []]
    for one in here.get("instances") or []:
        if not one.get("recorded"):
            found.append(f"{one['instance']} is not part of the release")
        elif not one.get("enabled"):
            found.append(f"{one['instance']} does not start at boot")
    applied = Plan.of_record(here.get("applied"))
    if not here.get("environment_exists", True):
        found.append(f"{Path(applied.engine.environment if applied.engine else '').name} is missing")
    found += [f"firewall: {one}" for one in here.get("firewall_differences") or []]
    for one in here.get("certificates") or []:
        end = datetime.fromisoformat(one["ends"]) if one.get("ends") else None
        found += filter(
            None, [certificates.warning(one["path"], end, now or datetime.now(UTC), fleet=one["fleet"])]
        )
    branch, loaded = applied.driver.branch if applied.driver else "", here.get("driver")
    if branch and loaded and str(loaded).split(".")[0] != branch:
        found.append(f"driver {loaded} is running, recorded is branch {branch}")
    if branch and not loaded:
        found.append("no driver is loaded")
    return found

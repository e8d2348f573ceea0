"""The stages of a run, in the order in which a host goes through them, and the stage of a task."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath
from typing import Final

STAGES: Final[tuple[str, ...]] = (
    "preflight",
    "artefact_cache",
    "package_sources",
    "host_tools",
    "host_tuning",
    "model_weights",
    "nvidia_driver",
    "cuda_toolkit",
    "sglang_runtime",
    "drain",
    "stop",
    "sglang_service",
    "post_check",
    "undrain",
    "soak",
    "release_record",
    "rollback",
    "gateway",
)
"""Names of stages: those of the roles, and the steps of a rollout between them."""

SHORT: Final[dict[str, str]] = {
    "preflight": "plan",
    "artefact_cache": "cache",
    "package_sources": "sources",
    "host_tools": "tools",
    "host_tuning": "tuning",
    "model_weights": "weights",
    "nvidia_driver": "driver",
    "cuda_toolkit": "cuda",
    "sglang_runtime": "engine",
    "drain": "drain",
    "stop": "stop",
    "sglang_service": "service",
    "post_check": "check",
    "undrain": "undrain",
    "soak": "soak",
    "release_record": "record",
    "rollback": "rollback",
    "gateway": "gateway",
}
"""Heads of columns."""

_STEPS: Final = ("rollback", "soak", "undrain", "drain", "stop")
"""Tags that say more than the role does: a role that is run to go back is part of going back."""

_ROLES: Final[dict[str, str]] = {
    "endpoint_firewall": "sglang_service",
    "page_cache": "model_weights",
    "sglang_gateway": "gateway",
}
"""Roles that have no stage of their own name."""

_FILES: Final[dict[str, str]] = {
    "plan.yml": "preflight",
    "preflight.yml": "preflight",
    "stop.yml": "stop",
    "gateway.yml": "gateway",
    "gateway_plan.yml": "gateway",
    "cache.yml": "artefact_cache",
    "lock.yml": "preflight",
    "release.yml": "preflight",
    "decide.yml": "preflight",
}
"""Files whose tasks belong to a stage, where neither role nor tag says so."""


def stage_of(role: str | None, tags: Iterable[str] = (), path: str | None = None) -> str | None:
    """Return the stage of a task; None where it belongs to none.

    Args:
        role: the role it is part of.
        tags: its tags, with those it has from blocks and imports.
        path: where it is written, ``FILE:LINE`` as Ansible states it.
    """
    tags = set(tags)
    for step in _STEPS:
        if step in tags:
            return step
    if role:
        name = role.rpartition(".")[2]
        stage = _ROLES.get(name, name)
        if stage in STAGES:
            return stage
    for stage in STAGES:
        if stage in tags:
            return stage
    return _FILES.get(PurePath((path or "").rpartition(":")[0]).name)

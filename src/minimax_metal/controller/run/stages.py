"""The stage that a task of a run belongs to."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath
from typing import Final

from minimax_metal.plan.rollout.stage import Stage

_STEPS: Final = (Stage.ROLLBACK, *(stage for stage in Stage if stage.step and stage is not Stage.ROLLBACK))
"""Tags that say more than the role does; whatever is done to go back is part of going back."""

_ROLES: Final[dict[str, Stage]] = {
    "endpoint_firewall": Stage.SERVE,
    "page_cache": Stage.WEIGHTS,
    "sglang_gateway": Stage.GATEWAY,
}
"""Roles that have no stage of their own name."""

_FILES: Final[dict[str, Stage]] = {
    "plan.yml": Stage.PREFLIGHT,
    "preflight.yml": Stage.PREFLIGHT,
    "settings.yml": Stage.PREFLIGHT,
    "stop.yml": Stage.STOP,
    "gateway.yml": Stage.GATEWAY,
    "gateway_plan.yml": Stage.GATEWAY,
    "cache.yml": Stage.CACHE,
    "begin.yml": Stage.PREFLIGHT,
    "choose.yml": Stage.PREFLIGHT,
    "decide.yml": Stage.PREFLIGHT,
}
"""Files whose tasks belong to a stage, where neither role nor tag says so."""

_LOCK: Final = "fleet_lock"
"""The role that looks who else is at work before anything is changed, and ends a run: no stage of its own."""


def stage_of(role: str | None, tags: Iterable[str] = (), path: str | None = None) -> Stage | None:
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
    file = PurePath((path or "").rpartition(":")[0]).name
    if role:
        name = role.rpartition(".")[2]
        if name == _LOCK:
            return Stage.PREFLIGHT if file == "main.yml" else None
        for stage in Stage:
            if stage == _ROLES.get(name, name):
                return stage
    for stage in Stage:
        if stage in tags:
            return stage
    return _FILES.get(file)

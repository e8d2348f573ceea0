"""Filters of rollout.yml and rollback.yml; they call the package and hold no logic of their own."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import ansible_collections.minimax.metal.plugins.plugin_utils.package  # noqa: F401 - finds minimax_metal

from minimax_metal.controller.kept_plan import kept_plan
from minimax_metal.host.releases.record import digest_of
from minimax_metal.host.soak import Figures, said
from minimax_metal.plan.rollout.batches import (
    Work,
    decide,
    gateway_workers,
    no_room,
    outsider,
    serving_of,
    work_of,
)
from minimax_metal.plan.rollout.verdict import failure_text, lock_refusals, standings, tags_refusal, verdict


def metal_release_digest(plan: str) -> str:
    """Return the digest under which a plan, as JSON, is recorded."""
    return digest_of(json.loads(plan))


def metal_rollout_work(
    facts: Mapping[str, Any], host: str, plan: str, driver: str = "", gateway: bool = False
) -> dict[str, Any]:
    """Return what a host needs: its facts, its plan as JSON, what the driver needs in words."""
    content = json.loads(plan)
    return work_of(host, digest_of(content), content, facts, driver, gateway).as_dict()


def metal_rollout_outsiders(
    results: Sequence[Mapping[str, Any]], gateway: bool = False
) -> list[dict[str, Any]]:
    """Return the hosts of the group that a run leaves alone: results of a loop over their names."""
    return [outsider(str(one["item"]), one.get("facts"), gateway).as_dict() for one in results]


def metal_rollout(
    works: Sequence[Mapping[str, Any]],
    outsiders: Sequence[Mapping[str, Any]],
    batches: Any,
    min_ready: Any,
    gateway: bool,
) -> dict[str, Any]:
    """Return the whole rollout."""
    wish = None if batches in (None, "") else batches if isinstance(batches, (list, tuple)) else [batches]
    return decide(
        [Work.from_dict(one) for one in works],
        [Work.from_dict(one) for one in outsiders],
        wish,
        None if min_ready in (None, "") else min_ready,
        gateway,
    ).as_dict()


def metal_rollout_no_room(
    works: Sequence[Mapping[str, Any]],
    facts: Sequence[Mapping[str, Any]],
    outsiders: Sequence[Mapping[str, Any]],
    batch: Sequence[str],
    min_ready: Any,
    gateway: bool,
) -> list[str]:
    """Return why a batch can't be drained now: the hosts' work with what was found on them a moment ago."""
    inside = [
        replace(Work.from_dict(work), serving=serving_of(found, gateway))
        for work, found in zip(works, facts, strict=True)
    ]
    return no_room(
        [*inside, *(Work.from_dict(one) for one in outsiders)],
        list(batch),
        None if min_ready in (None, "") else min_ready,
    )


def metal_lock_refusals(
    locks: Mapping[str, Mapping[str, Any]], outside: Sequence[Mapping[str, Any]] = ()
) -> list[str]:
    """Return why a run can't begin: what module metal_lock found, by host, and in a loop over other hosts."""
    held = {host: str(lock.get("words") or "") for host, lock in locks.items()}
    return lock_refusals(held | {str(one["item"]): str(one.get("words") or "") for one in outside})


def metal_run(playbook: str) -> dict[str, Any]:
    """Return the name of this run and who runs it, for the lock.

    Filters are called in a worker that Ansible forks from its own process: the parent is ansible-playbook.
    Its command line is left out on purpose, since it may hold a secret (``-e``).
    """
    began = datetime.now(UTC)
    return {
        "run": f"{began:%Y%m%dT%H%M%SZ}-{os.getppid()}",
        "user": getpass.getuser(),
        "controller": socket.gethostname(),
        "pid": os.getppid(),
        "command": playbook,
        "time": began.isoformat(timespec="seconds"),
    }


def metal_soak_kind(plan: Mapping[str, Any]) -> str:
    """Return what a replica is compared by with those of the batch before: its model on its GPUs."""
    gpus, model = plan.get("gpus") or {}, plan.get("model") or {}
    return f"{model.get('served_name')} on {gpus.get('count')} {gpus.get('model')}"


def metal_soak_input(before: str, kind: str, batches: Mapping[str, Any]) -> str:
    """Return the input of ``metal soak watch``: what the host's own figures were, as ``metal soak figures``
    printed them, and those of the last batch with a replica of this kind."""
    own = said(before)  # what the host printed is its own word: anything else is as if it had printed nothing
    return json.dumps({"before": asdict(own) if own else None, "batch": batches.get(kind)})


def metal_soak_figures(results: Sequence[Mapping[str, Any]], kind: str) -> dict[str, Any]:
    """Return what a host's replicas counted: results of ``metal soak watch``, whose last line has it."""
    total = Figures()
    for one in results:
        lines = one.get("stdout_lines") if isinstance(one, Mapping) else None
        own = said(lines[-1]) if isinstance(lines, (list, tuple)) and lines else None
        total = total.plus(own) if own else total
    return {"kind": kind, "figures": asdict(total)}


def metal_soak_batches(hosts: Sequence[Mapping[str, Any]], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures of the last batch that had a replica of the kind, by kind: ``hosts`` is what
    ``metal_soak_figures`` made of each host of a batch."""
    sums: dict[str, Figures] = {}
    for one in hosts:
        sums[one["kind"]] = sums.get(one["kind"], Figures()).plus(Figures(**one["figures"]))
    return {**earlier, **{kind: asdict(found) for kind, found in sums.items()}}


class FilterModule:
    """The filters of a rollout."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "metal_failure_text": failure_text,
            "metal_kept_plan": kept_plan,
            "metal_lock_refusals": metal_lock_refusals,
            "metal_release_digest": metal_release_digest,
            "metal_rollout": metal_rollout,
            "metal_rollout_no_room": metal_rollout_no_room,
            "metal_rollout_outsiders": metal_rollout_outsiders,
            "metal_rollout_standing": standings,
            "metal_rollout_tags": tags_refusal,
            "metal_rollout_verdict": verdict,
            "metal_rollout_work": metal_rollout_work,
            "metal_rollout_workers": gateway_workers,
            "metal_run": metal_run,
            "metal_soak_batches": metal_soak_batches,
            "metal_soak_figures": metal_soak_figures,
            "metal_soak_input": metal_soak_input,
            "metal_soak_kind": metal_soak_kind,
        }

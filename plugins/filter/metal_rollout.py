"""Filters of rollout.yml and rollback.yml; they call the package and hold no logic of their own."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import ansible_collections.minimax.metal.plugins.plugin_utils.package  # noqa: F401 - finds minimax_metal

from minimax_metal.controller.kept_plan import kept_plan
from minimax_metal.host.releases.record import digest_of
from minimax_metal.host.soak import Figures, said
from minimax_metal.plan.model import Plan
from minimax_metal.plan.rollout import state
from minimax_metal.plan.rollout.verdict import Outcome, failure_text, standings, tags_refusal
from minimax_metal.plan.rollout.works import Work, outsider, serving_of, stages_of, work_of

Hosts = Mapping[str, Mapping[str, Any]]
"""Ansible's ``hostvars``."""


def metal_release_digest(plan: str) -> str:
    """Return the digest under which a plan, as JSON, is recorded."""
    return digest_of(json.loads(plan))


def metal_rollout_work(
    facts: Mapping[str, Any], host: str, plan: str, rollout: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return what a host needs: its facts, its plan as JSON, and of the rollout ``driver`` (what the driver
    needs, in words), ``gateway`` (whether there is one) and ``soak`` (whether replicas are watched)."""
    content, asked = json.loads(plan), rollout or {}
    driver, gateway, soak = asked.get("driver", ""), asked.get("gateway", False), asked.get("soak", False)
    return work_of(host, digest_of(content), Plan.of_record(content), facts, driver, gateway, soak).as_dict()


def metal_rollout_way_back(facts: Mapping[str, Any], host: str, plan: str) -> list[str]:
    """Return the stages by which a host goes back to the release whose plan, as JSON, is given."""
    work = metal_rollout_work(facts, host, plan)
    # Whatever runs there, the release is applied, checked and recorded again.
    kind = "switch" if work["kind"] == "switch" else "verify"
    return [stage.value for stage in stages_of(kind, back=True)]


def metal_rollout_standing(hostvars: Hosts, hosts: Sequence[str]) -> list[str]:
    """Return where earlier runs left hosts, one line each."""
    return standings({host: hostvars[host]["__rollout_found"]["facts"] for host in hosts})


def metal_rollout_begin(
    hostvars: Hosts, hosts: Sequence[str], outside: Mapping[str, Any], wishes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the state of a rollout that begins: its hosts, what was read on the others, what was asked."""
    batches, least = wishes["batches"], wishes["min_ready"]
    given = None if batches in (None, "") else batches if isinstance(batches, (list, tuple)) else [batches]
    asked = state.Wishes(
        batches=None if given is None else tuple(given),
        min_ready=None if least in (None, "") else least,
        gateway=bool(wishes["gateway"]),
        revert=bool(wishes["revert"]),
    )
    works = [Work.from_dict(hostvars[host]["__rollout_work"]) for host in hosts]
    return state.begin(works, _outsiders(outside, asked.gateway), asked).as_dict()


def metal_rollout_before(
    rollout: Mapping[str, Any],
    batch: Sequence[str],
    hostvars: Hosts,
    hosts: Sequence[str],
    seen: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the state before a batch: what was read a moment ago on the hosts that are left, and what was
    ``seen`` besides: ``outside`` of the run, and whether a stop was ``asked`` for."""
    now = state.Rollout.from_dict(rollout)
    gateway = now.wishes.gateway
    read = {host: hostvars[host].get("__rollout_now") or {} for host in hosts}
    ready = {host: serving_of(one["facts"], gateway) for host, one in read.items() if "facts" in one}
    outsiders = _outsiders(seen["outside"], gateway)
    return state.before_batch(now, list(batch), ready, outsiders, bool(seen["asked"])).as_dict()


def metal_rollout_after(rollout: Mapping[str, Any], hostvars: Hosts, hosts: Sequence[str]) -> dict[str, Any]:
    """Return the state after a batch: what became of the hosts of it that are left."""
    now = state.Rollout.from_dict(rollout)
    outcomes = _outcomes(hostvars, [host for host in now.batch if host in hosts])
    counted = {
        host: _counted(hostvars[host].get("__rollout_soak") or {})
        for host, outcome in outcomes.items()
        if outcome.result == "done"
    }
    return state.after_batch(
        now, outcomes, {host: count for host, count in counted.items() if count}
    ).as_dict()


def metal_rollout_returned(
    rollout: Mapping[str, Any], batch: Sequence[str], hostvars: Hosts, hosts: Sequence[str]
) -> dict[str, Any]:
    """Return the state after hosts of a batch went back."""
    outcomes = _outcomes(hostvars, [host for host in batch if host in hosts])
    return state.after_return(state.Rollout.from_dict(rollout), list(batch), outcomes).as_dict()


def metal_rollout_failing(rollout: Mapping[str, Any], hosts: Sequence[str]) -> list[str]:
    """Return which of the hosts that are left say that the rollout failed."""
    return list(state.Rollout.from_dict(rollout).failing(list(hosts)))


def _outsiders(outside: Mapping[str, Any], gateway: bool) -> list[Work]:
    """Hosts of the group that the run leaves alone: the result of a loop over their names."""
    results = outside.get("results") or []
    return [outsider(str(one["item"]), one.get("facts"), gateway) for one in results]


def _outcomes(hostvars: Hosts, hosts: Sequence[str]) -> dict[str, Outcome]:
    known = {host: hostvars[host].get("__rollout_result") for host in hosts}
    return {host: Outcome(one["result"], one["message"]) for host, one in known.items() if one}


def _counted(soak: Mapping[str, Any]) -> dict[str, float]:
    """What a host's replicas counted: results of ``metal soak watch``, whose last line has it."""
    results = soak.get("results") or []
    lines = [one.get("stdout_lines") for one in results if isinstance(one, Mapping)]
    own = [said(one[-1]) for one in lines if isinstance(one, (list, tuple)) and one]
    total = Figures()
    for one in own:
        total = total.plus(one) if one else total
    return asdict(total) if any(own) else {}


def metal_soak_input(before: str, kind: str, batches: Mapping[str, Any]) -> str:
    """Return the input of ``metal soak watch``: what the host's own metrics were, as ``metal soak figures``
    printed them, and those of the last batch with a replica of this kind."""
    own = said(before)  # the host's output is untrusted: anything else counts as no output
    return json.dumps({"before": asdict(own) if own else None, "batch": batches.get(kind)})


class FilterModule:
    """The filters of a rollout."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "metal_failure_text": failure_text,
            "metal_kept_plan": kept_plan,
            "metal_release_digest": metal_release_digest,
            "metal_rollout_after": metal_rollout_after,
            "metal_rollout_returned": metal_rollout_returned,
            "metal_rollout_before": metal_rollout_before,
            "metal_rollout_begin": metal_rollout_begin,
            "metal_rollout_failing": metal_rollout_failing,
            "metal_rollout_standing": metal_rollout_standing,
            "metal_rollout_tags": tags_refusal,
            "metal_rollout_way_back": metal_rollout_way_back,
            "metal_rollout_work": metal_rollout_work,
            "metal_soak_input": metal_soak_input,
        }

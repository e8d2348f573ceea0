"""Reasons why a fleet's keys can't be rotated; each with what to do instead. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from minimax_metal.controller.keys.rotation import NAMES, START
from minimax_metal.plan.gateway import GatewayPlan
from minimax_metal.plan.model import Plan

VARIABLES: Final = {
    "sglang_service_api_key": "api_key",
    "sglang_gateway_api_key": "api_key",
    "sglang_service_admin_api_key": "admin_api_key",
    "sglang_gateway_admin_key": "gateway_admin_key",
}
"""Variables by which a user sets a key, and the key of the secrets directory that each replaces."""
BESIDE: Final = {
    "sglang_service_api_key": "sglang_service_accepted_api_keys",
    "sglang_gateway_api_key": "sglang_gateway_accepted_api_keys",
    "sglang_service_admin_api_key": "sglang_service_accepted_admin_api_keys",
}


def given(variables: Mapping[str, Any]) -> list[str]:
    """Return the variables by which a host has a user's key; names only."""
    return [name for name in VARIABLES if variables.get(name)]


def reasons(
    plan: Plan | GatewayPlan,
    host: str,
    limit: str,
    set_by_user: Collection[str],
    verb: str = START,
    names: Sequence[str] = (),
) -> list[str]:
    """Return why the keys of a fleet can't be rotated now, one line each.

    Args:
        plan: the GPU host's or the gateway's.
        host: its name.
        limit: the value of ``--limit``.
        set_by_user: variables of :data:`VARIABLES` that are set somewhere in the fleet.
        verb: ``start``, ``finish`` or ``take-back``.
        names: keys to rotate; none: all.
    """
    found = []
    if limit:
        found.append(
            f"{host}: found --limit {limit}, expected the whole fleet: a host that is left out would "
            "reject the new key; run without --limit"
        )
    if plan.refusals:
        found.append(
            f"{host}: found a plan that is refused, expected one that fits; playbooks/preflight.yml says why"
        )
        return found
    services = plan.services if isinstance(plan, Plan) else ()
    keys = plan.api_keys if isinstance(plan, GatewayPlan) else all(one.keys_directory for one in services)
    if not keys:
        found.append(
            f"{host}: found metal_api_keys: false, expected keys to rotate; set metal_api_keys to "
            "true and run site.yml"
        )
        return found
    for service in services:
        if not service.proves:
            found.append(
                f"{host}: found {service.unit} with an engine that loads no plug-ins (before 0.5.16), "
                "expected the guard, which accepts two keys; rotate its keys with a restart: replace the "
                "files in the secrets directory and run playbooks/serve.yml, or set metal_engine_release to "
                "0.5.16 or newer"
            )
    for variable in sorted(set_by_user):
        if VARIABLES.get(variable) in (tuple(names) or NAMES) and verb == START:
            found.append(f"{host}: found {variable}, {_own(variable, names)}")
    return found


def _own(variable: str, names: Sequence[str]) -> str:
    others = [name for name in names or NAMES if name != VARIABLES[variable]]
    rest = (
        f"; for the others: metal keys rotate {' '.join(f'--key {name}' for name in others)}"
        if others
        else ""
    )
    beside = BESIDE.get(variable)
    if beside is None:
        return (
            "expected a key from the secrets directory: you set this one, so you rotate it; set "
            f"another one and run playbooks/gateway.yml{rest}"
        )
    apply = "site.yml" if variable.startswith("sglang_service") else "playbooks/gateway.yml"
    return (
        "expected a key from the secrets directory: you set this one, so you rotate it; put the new "
        f"key into {beside} and run {apply}; swap the two and run it again; give clients the new "
        f"one; remove the old one and run it once more{rest}"
    )

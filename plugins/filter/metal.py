"""Filters through which plays call the package on the controller; they have no logic of their own."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ansible_collections.minimax.metal.plugins.plugin_utils.package  # noqa: F401 - finds minimax_metal

from minimax_metal.catalog.load import HERE
from minimax_metal.common.systemd import command_lines, line, quote_assignment, text
from minimax_metal.controller.adapter import (
    plan_from_variables,
    raw_facts_of,
    refusal_lines,
    unread_plan,
)
from minimax_metal.plan.model import Plan
from minimax_metal.plan.settings.roles import ROLE_VARIABLES
from minimax_metal.plan.text import plan_lines


def metal_plan(
    raw_facts: Mapping[str, Any] | None,
    host: str,
    variables: Mapping[str, Any],
    names: Sequence[str] = (),
    role_values: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the plan of one host.

    It comes from the host's facts (None: unreachable), its metal_* variables, the names of all variables, and
    the values of those that roles read.
    """
    return plan_from_variables(host, variables, raw_facts, names, role_values)


def metal_plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """Return the decisions for a host, for people to read."""
    return plan_lines(Plan.from_dict(plan))


def metal_role_prefixes(_nothing: object = None) -> list[str]:
    """Return the prefixes of roles' variable names."""
    return [f"{role}_" for role in ROLE_VARIABLES]


def metal_refusals(plans: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return one line for each refusal of a host; an empty plan is a host that could not be read."""
    unread = "could not be read: the error above gives the reason; fix it, or leave the host out with --limit"
    lines: list[str] = []
    for host, plan in plans.items():
        lines += refusal_lines(plan) if plan else [f"{host}: {unread}"]
    return lines


def metal_lock_file(name: str) -> str:
    """Return the path on the controller of a lock: one of the catalogue's by its name, or the user's own."""
    return str(HERE / "locks" / name)


class FilterModule:
    """The filters of minimax-metal."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "metal_plan": metal_plan,
            "metal_plan_lines": metal_plan_lines,
            "metal_raw_facts": raw_facts_of,
            "metal_role_prefixes": metal_role_prefixes,
            "metal_refusals": metal_refusals,
            "metal_lock_file": metal_lock_file,
            "metal_unread_plan": unread_plan,
            "metal_unit_quote": quote_assignment,
            "metal_unit_command": command_lines,
            "metal_unit_line": line,
            "metal_unit_text": text,
        }

"""Filters of a key rotation; they call the package on the controller and have no logic."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ansible_collections.minimax.metal.plugins.plugin_utils.package  # noqa: F401 - finds minimax_metal

from minimax_metal.controller.keys.rules import given, reasons
from minimax_metal.plan.gateway import GatewayPlan
from minimax_metal.plan.keys import acceptable, told
from minimax_metal.plan.model import Plan
from minimax_metal.plan.reading import lenient


def metal_keys_given(variables: Mapping[str, Any]) -> list[str]:
    """Return the names of the variables by which a host has a user's key."""
    return given(variables)


def metal_keys_refusals(plan: Mapping[str, Any], host: str, asked: Mapping[str, Any]) -> list[str]:
    """Return reasons against a key rotation on a host.

    ``asked`` has the run's ``limit``, the variables that are ``given`` in the fleet, what to ``do`` and the
    ``names`` of the keys.
    """
    read = lenient(GatewayPlan, plan) if "api_keys" in plan else Plan.of_record(plan)
    return reasons(read, host, asked["limit"], asked["given"], asked["do"], asked["names"])


class FilterModule:
    """The filters of a key rotation."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "metal_keys_acceptable": acceptable,
            "metal_keys_given": metal_keys_given,
            "metal_keys_refusals": metal_keys_refusals,
            "metal_keys_told": told,
        }

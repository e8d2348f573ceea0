"""Filters of a change of keys; they call the package on the controller and hold no logic."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import ansible_collections.minimax.metal.plugins.plugin_utils.package  # noqa: F401 - finds minimax_metal

from minimax_metal.controller.keys.rules import given, reasons
from minimax_metal.plan.keys import acceptable


def metal_keys_given(variables: Mapping[str, Any]) -> list[str]:
    """Return the names of the variables by which a host is given a key of the user's."""
    return given(variables)


def metal_keys_refusals(
    plan: Mapping[str, Any],
    host: str,
    limit: str,
    set_by_user: Collection[str],
    verb: str = "start",
    names: Sequence[str] = (),
) -> list[str]:
    """Return what stands against a change of keys on a host."""
    return reasons(plan, host, limit, set_by_user, verb, names)


class FilterModule:
    """The filters of a change of keys."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "metal_keys_acceptable": acceptable,
            "metal_keys_given": metal_keys_given,
            "metal_keys_refusals": metal_keys_refusals,
        }

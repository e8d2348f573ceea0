"""The filters of remove.yml; they call the package and hold no logic of their own."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ansible_collections.minimax.metal.plugins.plugin_utils.package  # noqa: F401 - finds minimax_metal

from minimax_metal.controller.owned import removable_of
from minimax_metal.plan.removal import removal

ROLES = Path(__file__).resolve().parents[2] / "roles"


def metal_removal(
    units: Iterable[str], weights: Iterable[str], packages: Iterable[str], wishes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what is taken off a host, and what stays."""
    return removal(units, weights, packages, wishes, removable_of(ROLES)).as_dict()


def metal_removal_units(others: Iterable[str]) -> list[str]:
    """Return the patterns of all units that may go: those of the roles' lists, and others."""
    return [*others, *(unit for unit, _ in removable_of(ROLES).units)]


class FilterModule:
    """The filters of the removal."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"metal_removal": metal_removal, "metal_removal_units": metal_removal_units}

"""The filter of remove.yml; it calls the package and holds no logic of its own."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ansible_collections.minimax.metal.plugins.plugin_utils.package  # noqa: F401 - finds minimax_metal

from minimax_metal.plan.removal import removal


def metal_removal(
    units: Iterable[str], weights: Iterable[str], packages: Iterable[str], wishes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what is taken off a host, and what stays."""
    return removal(units, weights, packages, wishes).as_dict()


class FilterModule:
    """The filter of the removal."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filter by name."""
        return {"metal_removal": metal_removal}

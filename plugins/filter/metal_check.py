"""The filter of role post_check; the package holds the logic."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ansible_collections.minimax.metal.plugins.plugin_utils.package  # noqa: F401 - finds minimax_metal

from minimax_metal.plan.check_command import check_command
from minimax_metal.plan.model import Plan, ServicePlan
from minimax_metal.plan.reading import lenient


def metal_check_command(
    service: Mapping[str, Any], plan: Mapping[str, Any], settings: Mapping[str, Any], directory: str
) -> list[str]:
    """Return the words of ``metal check`` for one endpoint of a host."""
    return check_command(lenient(ServicePlan, service), Plan.of_record(plan), settings, directory)


class FilterModule:
    """The filter about checking endpoints."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filter by name."""
        return {"metal_check_command": metal_check_command}

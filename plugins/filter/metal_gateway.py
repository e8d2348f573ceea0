"""Filters of the gateway; they call the package on the controller and hold no logic."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ansible_collections.minimax.metal.plugins.plugin_utils.package  # noqa: F401 - finds minimax_metal

from minimax_metal.controller.adapter import gateway_from_variables
from minimax_metal.plan.gateway import GatewayPlan, Options, configuration
from minimax_metal.plan.gateway_files import certificates, credentials, unused
from minimax_metal.plan.reading import lenient


def metal_gateway_plan(
    raw_facts: Mapping[str, Any] | None,
    host: str,
    variables: Mapping[str, Any],
    around: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the plan of a gateway's host.

    ``around`` has the role's ``options`` and ``values``, the ``plans`` of the GPU hosts by name, and the
    workers that the gateway knew ``before``.
    """
    return gateway_from_variables(
        host, variables, raw_facts, around["options"], around["plans"], around["before"], around["values"]
    )


def metal_gateway_configuration(plan: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration for commands on the gateway's host."""
    return configuration(lenient(GatewayPlan, plan), Options.read(options))


class FilterModule:
    """The filters of the gateway."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "metal_gateway_plan": metal_gateway_plan,
            "metal_gateway_certificates": certificates,
            "metal_gateway_configuration": metal_gateway_configuration,
            "metal_gateway_credentials": credentials,
            "metal_gateway_unused": unused,
        }

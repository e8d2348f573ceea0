"""Filters of the role nvidia_driver; they call the package and have no logic of their own."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ansible_collections.minimax.metal.plugins.plugin_utils.package  # noqa: F401 - finds minimax_metal

from minimax_metal.plan.driver.failure import failure_line
from minimax_metal.plan.driver.sources import (
    has_key,
    is_key,
    primary_fingerprints,
    settings_problem,
    source_pins,
)
from minimax_metal.plan.driver.state import driver_state, service_problem
from minimax_metal.plan.driver.work import driver_work
from minimax_metal.plan.model import Plan


def metal_driver_now(
    collected: Mapping[str, Any], raw_facts: Mapping[str, Any], plan: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the state of a host's driver, compared with its plan."""
    return driver_state(raw_facts, Plan.of_record(plan), collected).as_dict()


def metal_driver_work(
    collected: Mapping[str, Any],
    raw_facts: Mapping[str, Any],
    plan: Mapping[str, Any],
    wishes: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the work on a host's driver."""
    return driver_work(collected, raw_facts, Plan.of_record(plan), wishes).as_dict()


def metal_service_problem(
    collected: Mapping[str, Any], raw_facts: Mapping[str, Any], plan: Mapping[str, Any], said: str
) -> str:
    """Return why the driver's services do not run, or the fabric is not ready."""
    return service_problem(collected, raw_facts, Plan.of_record(plan), said)


class FilterModule:
    """The filters of the driver."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "metal_driver_failure": failure_line,
            "metal_driver_now": metal_driver_now,
            "metal_driver_work": metal_driver_work,
            "metal_has_key": has_key,
            "metal_is_key": is_key,
            "metal_key_fingerprints": primary_fingerprints,
            "metal_service_problem": metal_service_problem,
            "metal_source_pins": source_pins,
            "metal_source_problem": settings_problem,
        }

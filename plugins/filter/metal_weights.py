"""Filters of role model_weights; they hold no logic of their own."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ansible_collections.minimax.metal.plugins.plugin_utils.package  # noqa: F401 - finds minimax_metal

from minimax_metal.host.weights.draft import draft_alone
from minimax_metal.host.weights.share.renewal import renewed
from minimax_metal.plan.model import Plan
from minimax_metal.plan.sharing import account, members, share


def metal_weights_draft(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan of a host with its draft in the place of the model."""
    return draft_alone(Plan.of_record(plan))


class FilterModule:
    """The filters about the sources of weights, and about sharing them."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "metal_weights_account": account,
            "metal_weights_draft": metal_weights_draft,
            "metal_weights_members": members,
            "metal_weights_renewed": renewed,
            "metal_weights_share": share,
        }

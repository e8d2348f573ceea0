"""The filter that says what a role is given, in one digest: the same digest is the same wish."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ansible_collections.minimax.metal.plugins.plugin_utils.package  # noqa: F401 - finds minimax_metal

from minimax_metal.controller.inputs import digest_of_inputs


def metal_inputs(plan: Mapping[str, Any], role_path: str, variables: Mapping[str, Any]) -> str:
    """Return the digest of a plan, of a role's files and templates, and of the variables it is given."""
    return digest_of_inputs(plan, Path(role_path), variables)


class FilterModule:
    """The filters of minimax-metal for what a role is given."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"metal_inputs": metal_inputs}

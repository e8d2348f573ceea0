"""The filter that shows the state of a fleet; the package decides the contents."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ansible_collections.minimax.metal.plugins.plugin_utils.package  # noqa: F401 - finds minimax_metal

from minimax_metal.controller.status.commands import lines_of


def metal_status_lines(answers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the lines of the table, from each host's answer to ``metal status --here --json``."""
    return lines_of(answers)


class FilterModule:
    """The filters of minimax-metal for a fleet's state."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"metal_status_lines": metal_status_lines}

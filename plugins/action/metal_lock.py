"""Takes the fleet's lock on a host, also from a run of this controller that ended without giving it back."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from typing import Any

import ansible_collections.minimax.metal.plugins.plugin_utils.package  # noqa: F401 - finds minimax_metal
from ansible.plugins.action import ActionBase

from minimax_metal.controller.run.holder import ended

MODULE = "minimax.metal.metal_lock"


class ActionModule(ActionBase):
    """Arguments: those of the module."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's answer."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        words = dict(self._task.args)
        answer = self._execute_module(module_name=MODULE, module_args=words, task_vars=task_vars)
        other = answer.get("other")
        if words.get("state") == "taken" and other and ended(other):
            words["ended_run"] = other["run"]
            answer = self._execute_module(module_name=MODULE, module_args=words, task_vars=task_vars)
        return result | answer

"""Why a host's settings can't be used, for playbooks that change hosts without a plan."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ansible_collections.minimax.metal.plugins.plugin_utils.package  # noqa: F401 - finds minimax_metal
from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

from minimax_metal.controller.adapter import role_values, setting_lines
from minimax_metal.plan.settings.reading import is_metal

DOCUMENTATION = r"""
name: setting_refusals
short_description: Reasons against a host's settings
description:
  - Returns a list of lines, one for each C(metal_*) variable and each variable of a role that does not
    exist, has another type or is out of bounds. The plan of a host has the same refusals.
  - A variable whose template needs what a role only makes later is left out.
options:
  _terms:
    description: None are taken.
  planned:
    description: Whether a plan is made of the settings, so that values of the plan's own count as well.
    type: bool
    default: false
author:
  - The minimax-metal authors
"""


class LookupModule(LookupBase):
    """The lookup."""

    def run(
        self, _terms: Sequence[str], variables: Mapping[str, Any] | None = None, **options: Any
    ) -> list[list[str]]:
        """Return the lines, as the one item of a list."""
        known = variables or {}
        metal = self._filled_in({name: value for name, value in known.items() if is_metal(name)})
        roles = self._filled_in(role_values(known))
        host, planned = str(known.get("inventory_hostname")), bool(options.get("planned"))
        return [setting_lines(host, metal, known, roles, planned=planned)]

    def _filled_in(self, values: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for name, value in values.items():
            try:
                found[name] = self._templar.template(value)
            except AnsibleError:
                continue  # known only when the role runs, which has its own checks
        return found

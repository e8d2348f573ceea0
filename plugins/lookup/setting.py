"""The value of a setting: what the host's variables say, else the default that is declared for it."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ansible_collections.minimax.metal.plugins.plugin_utils.package  # noqa: F401 - finds minimax_metal
from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

from minimax_metal.common.errors import UserError
from minimax_metal.plan.settings.lookup import setting_value

DOCUMENTATION = r"""
name: setting
short_description: Value of a setting
description:
  - Returns the value of a setting of the plan, the playbooks or a role, in its declared type.
  - A setting that is not set, or null, has its declared default. So no playbook repeats a default.
  - A value of another type or out of bounds is an error, in one line.
options:
  _terms:
    description: Names of settings, such as C(metal_rollout_soak_seconds).
    required: true
author:
  - The minimax-metal authors
"""

EXAMPLES = r"""
- name: Wait for clients
  ansible.builtin.pause:
    seconds: "{{ lookup('minimax.metal.setting', 'metal_rollout_soak_seconds') }}"
"""

RETURN = r"""
_list:
  description: One value for each name.
  type: list
"""


class LookupModule(LookupBase):
    """The lookup."""

    def run(
        self, terms: Sequence[str], variables: Mapping[str, Any] | None = None, **_options: Any
    ) -> list[Any]:
        """Return one value for each name."""
        known = variables or {}
        values = []
        for name in terms:
            given = self._templar.template(known[name]) if name in known else None
            try:
                values.append(setting_value(str(name), given))
            except UserError as error:
                raise AnsibleError(f"{known.get('inventory_hostname', 'this run')}: {error}") from None
        return values

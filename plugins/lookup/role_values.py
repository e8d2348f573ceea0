"""Values of the variables with given prefixes, as far as they are known before a role runs."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

DOCUMENTATION = r"""
name: role_values
short_description: Values of the variables of roles
description:
  - Returns one dictionary of the variables whose names begin with one of the prefixes, templates filled in.
  - A variable whose template needs values that a role sets later is left out.
options:
  _terms:
    description: Prefixes, such as C(nvidia_driver_).
    required: true
author:
  - The minimax-metal authors
"""


class LookupModule(LookupBase):
    """The lookup."""

    def run(
        self, terms: Sequence[str], variables: Mapping[str, Any] | None = None, **_options: Any
    ) -> list[dict[str, Any]]:
        """Return the dictionary, as the one item of a list."""
        found = {}
        for name, value in (variables or {}).items():
            if name.startswith(tuple(terms)):
                try:
                    found[name] = self._templar.template(value)
                except AnsibleError:
                    continue  # known only when the role runs, which has its own checks
        return [found]

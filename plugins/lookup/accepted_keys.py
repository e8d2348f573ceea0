"""The keys that hosts accept for a key of the controller; several during a rotation."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ansible_collections.minimax.metal.plugins.plugin_utils.package  # noqa: F401 - finds minimax_metal
from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

from minimax_metal.common.errors import UserError
from minimax_metal.controller.keys.rotation import accepted

DOCUMENTATION = r"""
name: accepted_keys
short_description: The keys that are valid for a key of the controller
description:
  - Returns a list for each path, the key in use first.
  - Missing keys are created as by lookup kept_key; check mode writes no file.
  - There are several during C(metal keys rotate).
options:
  _terms:
    description: Paths of files.
    required: true
  gateway:
    description: Whether a gateway asks, which goes through fewer steps.
    type: bool
    default: false
author:
  - The minimax-metal authors
"""


class LookupModule(LookupBase):
    """The lookup."""

    def run(
        self,
        terms: Sequence[str],
        variables: Mapping[str, Any] | None = None,
        *,
        gateway: bool = False,
        **_options: Any,
    ) -> list[list[str]]:
        """Return the keys, a list for each path.

        Raises:
            AnsibleLookupError: a file is not a key, or the state of a rotation is broken.
        """
        # Check mode writes nothing, on the controller neither.
        keep = not (variables or {}).get("ansible_check_mode")
        try:
            return [
                accepted(Path(str(path)).expanduser(), gateway=bool(gateway), keep=keep) for path in terms
            ]
        except UserError as error:
            raise AnsibleLookupError(str(error)) from None

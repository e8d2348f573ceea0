"""The key in a file of the controller, created if missing; the package has the logic."""

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
from minimax_metal.controller.keys.kept import LENGTH, kept

DOCUMENTATION = r"""
name: kept_key
short_description: A key that is created once and stored in a file of the controller
description:
  - Returns the key in a file; creates a missing one, completely or not at all.
  - Check mode writes no file.
  - A key that is cut off, weak or readable by others is refused.
options:
  _terms:
    description: Paths of files.
    required: true
  length:
    description: Characters of a new key.
    type: int
    default: 48
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
        length: int = LENGTH,
        **_options: Any,
    ) -> list[str]:
        """Return the keys, one for each path.

        Raises:
            AnsibleLookupError: a file is not a key.
        """
        # Check mode writes nothing, on the controller neither.
        keep = not (variables or {}).get("ansible_check_mode")
        try:
            return [kept(Path(str(path)).expanduser(), int(length), keep=keep) for path in terms]
        except UserError as error:
            raise AnsibleLookupError(str(error)) from None

"""The path of a file of this project, which is a clone or the installed collection."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

DOCUMENTATION = r"""
name: project_file
short_description: The path of a file of this project
description:
  - Returns absolute paths of files that several parts of the project use, such as the engine's locks.
options:
  _terms:
    description: Paths below the project's directory.
    required: true
author:
  - The minimax-metal authors
"""

PROJECT = Path(__file__).resolve().parents[2]


class LookupModule(LookupBase):
    """The lookup."""

    def run(
        self, terms: Sequence[str], variables: Mapping[str, Any] | None = None, **_options: Any
    ) -> list[str]:
        """Return the paths.

        Raises:
            AnsibleLookupError: there is no such file.
        """
        for term in terms:
            if not (PROJECT / term).exists():
                raise AnsibleLookupError(
                    f"found no {term} in {PROJECT}, expected a whole clone or collection; install it again"
                )
        return [str(PROJECT / term) for term in terms]

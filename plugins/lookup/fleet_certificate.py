"""A host's certificate from the fleet's CA on the controller; the package has the logic."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ansible_collections.minimax.metal.plugins.plugin_utils.package  # noqa: F401 - finds minimax_metal
from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

from minimax_metal.common.errors import UserError
from minimax_metal.controller.keys.authority import issued

DOCUMENTATION = r"""
name: fleet_certificate
short_description: A host's certificate from the fleet's CA
description:
  - Returns C(certificate), C(key), C(ca) (PEM) and C(until) for a host; creates what is missing.
  - Check mode writes no file.
  - Renews a certificate with less than a third of its life left.
options:
  _terms:
    description: The host's name in the inventory.
    required: true
  directory:
    description: Directory of the CA and its certificates on the controller.
    type: path
    required: true
  names:
    description: Names and addresses that the certificate is for.
    type: list
    elements: str
    default: []
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
        directory: str = "",
        names: Sequence[str] = (),
        **_options: Any,
    ) -> list[dict[str, str]]:
        """Return the certificates, one for each host.

        Raises:
            AnsibleLookupError: the CA is broken, or a name is invalid.
        """
        # Check mode writes nothing, on the controller neither.
        keep = not (variables or {}).get("ansible_check_mode")
        try:
            place = Path(str(directory)).expanduser()
            return [asdict(issued(place, str(host), list(map(str, names)), keep=keep)) for host in terms]
        except UserError as error:
            raise AnsibleLookupError(str(error)) from None

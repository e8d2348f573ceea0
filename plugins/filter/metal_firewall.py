"""Filters of role endpoint_firewall; they call the package on the controller and hold no logic."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ansible_collections.minimax.metal.plugins.plugin_utils.package  # noqa: F401 - finds minimax_metal

from minimax_metal.common.nftables import state
from minimax_metal.controller.names import addresses_of
from minimax_metal.plan.firewall import client_addresses, decide
from minimax_metal.plan.model import Plan


def metal_firewall(
    me: str,
    groups: Mapping[str, Sequence[str]],
    hosts: Mapping[str, Mapping[str, Any]],
    plan: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the rules of one host, or the reason against them."""
    return decide(me, groups, hosts, Plan.of_record(plan) if plan else None, addresses_of)


def metal_firewall_addresses(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a host's variables that identifies it to others."""
    names = ("metal_address", "ansible_host", "ansible_port", "metal_cache_url")
    return {name: variables[name] for name in names if name in variables}


def metal_client_addresses(
    groups: Mapping[str, Sequence[str]], hosts: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Return the addresses of gateways and monitoring hosts; ``hosts``: the variables of all hosts."""
    names = [name for group in ("gateway_hosts", "monitoring_hosts") for name in groups.get(group) or ()]
    known = {name: metal_firewall_addresses(hosts[name]) for name in dict.fromkeys(names)}
    return client_addresses(known, addresses_of)


class FilterModule:
    """The filters of the firewall."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "metal_client_addresses": metal_client_addresses,
            "metal_firewall": metal_firewall,
            "metal_firewall_addresses": metal_firewall_addresses,
            "metal_firewall_state": state,
        }

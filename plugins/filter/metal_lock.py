"""Filters of role fleet_lock; they call the package and hold no logic of their own."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ansible_collections.minimax.metal.plugins.plugin_utils.package  # noqa: F401 - finds minimax_metal
from ansible import context

from minimax_metal.controller.run.holder import this_run
from minimax_metal.plan.rollout.verdict import lock_refusals

Hosts = Mapping[str, Mapping[str, Any]]
"""Ansible's ``hostvars``."""


def metal_run(_: Any) -> dict[str, Any]:
    """Return the name of this run and who runs it, for the lock.

    Filters are called in a worker that Ansible forks from its own process: the parent is ansible-playbook.
    """
    return this_run(os.getppid(), [str(name) for name in context.CLIARGS.get("args") or ()])


def metal_lock_refusals(hostvars: Hosts, hosts: Sequence[str], outside: Mapping[str, Any]) -> list[str]:
    """Return why a run can't begin: what taking the lock found on its hosts, and in a loop over others."""
    own = {host: hostvars[host].get("__fleet_lock_own") or {} for host in hosts}
    others = {str(one["item"]): one for one in outside.get("results") or []}
    return lock_refusals({host: str(found.get("words") or "") for host, found in {**own, **others}.items()})


class FilterModule:
    """The filters of the lock."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"metal_lock_refusals": metal_lock_refusals, "metal_run": metal_run}

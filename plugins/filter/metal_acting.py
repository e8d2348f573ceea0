"""The filter for every play's ``hosts``: a run with nothing to do is refused, not a success."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ansible_collections.minimax.metal.plugins.plugin_utils.package  # noqa: F401 - finds minimax_metal
from ansible import context
from ansible.errors import AnsibleError, AnsibleFilterError
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader

from minimax_metal.controller.acting import no_hosts, unknown_tags, unreadable
from minimax_metal.controller.tags import tags_of

ROLES = Path(__file__).resolve().parents[2] / "roles"
ONLY_READ = ("syntax", "listhosts", "listtasks", "listtags")
"""Options with which ansible-playbook runs nothing."""


def metal_acting(
    wanted: str | Sequence[str], groups: Mapping[str, Sequence[str]], pattern: Sequence[str] | None = None
) -> Any:
    """Return the hosts of a play: ``pattern`` if given, else the groups.

    Args:
        wanted: a group, or several of which one must have a host within ``--limit``.
        groups: Ansible's own variable.
        pattern: groups of the play if they differ from those.

    Raises:
        AnsibleFilterError: no host is left, or ``--tags`` names a tag that no task has; one line.
    """
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    hosts = [name for name in (names if pattern is None else pattern) if groups.get(name)]
    if pattern is None and not hosts:
        hosts = names
    if any(context.CLIARGS.get(option) for option in ONLY_READ):
        return hosts
    limit = context.CLIARGS.get("subset")
    inventories = [
        str(one).rpartition("/")[2] if "," not in str(one) else str(one)
        for one in context.CLIARGS.get("inventory") or ()
    ]
    within = _within(groups, limit)
    why = no_hosts(names, groups, within, limit=str(limit or ""), inventories=inventories)
    if why and (broken := unreadable(str(one) for one in context.CLIARGS.get("inventory") or ())):
        why = no_hosts(names, groups, within, limit=str(limit or ""), inventories=inventories, broken=broken)
    if why := why or _tags():
        raise AnsibleFilterError(why)
    return hosts


def _within(groups: Mapping[str, Sequence[str]], limit: str | None) -> list[str] | None:
    """Return the hosts that ``--limit`` leaves, by Ansible's own pattern rules; None without a limit."""
    if not limit:
        return None
    manager = InventoryManager(loader=DataLoader(), parse=False)
    for group, hosts in groups.items():
        manager.add_group(group)
        for host in hosts:
            manager.add_host(host, group=group)
    try:
        manager.subset(limit)
        return [host.name for host in manager.get_hosts("all")]
    except AnsibleError:
        return None  # Ansible itself reports its error


def _tags() -> str:
    # The tags of a playbook that only imports ours by the collection's name can't be read here.
    playbooks = [Path(one).resolve() for one in context.CLIARGS.get("args") or ()]
    if not playbooks or not all(one.is_relative_to(ROLES.parent) for one in playbooks):
        return ""
    known = frozenset[str]().union(*(tags_of(one, ROLES) for one in playbooks))
    return unknown_tags(
        [tag.strip() for given in context.CLIARGS.get("tags") or () for tag in str(given).split(",")], known
    )


class FilterModule:
    """The filter of the plays' hosts."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filter by name."""
        return {"metal_acting": metal_acting}

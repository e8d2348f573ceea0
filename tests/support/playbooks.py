"""Print Ansible's view of playbooks before a run, as JSON: plays, their hosts, tasks with all tags.

One process for all of them: ``ansible-playbook --list-tasks`` would take seconds for each.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def tasks_of(blocks: list[Any]) -> list[dict[str, Any]]:
    """Return the tasks of blocks, including nested ones."""
    from ansible.playbook.block import Block

    found: list[dict[str, Any]] = []
    for one in blocks:
        if isinstance(one, Block):
            found += tasks_of([*one.block, *one.rescue, *one.always])
        elif one.action not in {"meta", "ansible.builtin.meta"}:
            role = one._role.get_name(include_role_fqcn=False) if one._role else None
            found.append({"name": one.get_name(), "tags": sorted(set(one.tags)), "role": role})
    return found


def main() -> None:
    """Print the contents of the playbooks in the arguments, after an inventory."""
    from ansible.inventory.manager import InventoryManager
    from ansible.parsing.dataloader import DataLoader
    from ansible.playbook import Playbook
    from ansible.plugins.loader import init_plugin_loader
    from ansible.vars.manager import VariableManager

    init_plugin_loader()
    inventory, *paths = sys.argv[1:]
    loader = DataLoader()
    hosts = InventoryManager(loader=loader, sources=[inventory])
    variables = VariableManager(loader=loader, inventory=hosts)
    found = {
        path: [
            {
                "hosts": play.hosts if isinstance(play.hosts, list) else [play.hosts],
                "names": [host.name for host in hosts.get_hosts(play.hosts)],
                "tasks": tasks_of(play.compile()),
            }
            for play in Playbook.load(path, variable_manager=variables, loader=loader).get_plays()
        ]
        for path in paths
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()

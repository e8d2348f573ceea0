"""The lab as Ansible sees it: connection variables, and addresses of the stand-ins."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from lab.hosts import ssh
from lab.hosts.network import Node
from lab.hosts.paths import LabPaths
from lab.hosts.processes import write_whole


def write(paths: LabPaths, nodes: dict[str, Node], variables: Mapping[str, str | list[str]]) -> None:
    """Write ``inventory/hosts.yml``.

    Literal values only: molecule and delegated tasks read them without templating.

    Args:
        paths: The lab's state.
        nodes: The hosts, by name.
        variables: For all hosts; names begin with ``lab_``, which no role reads.
    """
    arguments = " ".join(
        f"-o {key}={value}" for key, value in ssh.options(paths).items() if key != "IdentityFile"
    )
    hosts = {
        name: {
            "ansible_host": node.address,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(paths.ssh_key),
            "ansible_ssh_common_args": arguments,
        }
        for name, node in nodes.items()
    }
    document = {"all": {"hosts": hosts, "vars": {"lab_state": str(paths.directory), **variables}}}
    text = "# Written by the lab; 'python -m lab down' removes it.\n"
    write_whole(paths.inventory, text + yaml.safe_dump(document, sort_keys=False, width=110))

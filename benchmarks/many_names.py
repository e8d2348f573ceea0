"""A large inventory from a small one: the same hosts under many names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def program(name: str) -> str:
    """Return a program of this project's environment."""
    return str(Path(sys.executable).with_name(name))


def environment() -> dict[str, str]:
    """Return what Ansible must find, whatever the working directory."""
    return os.environ | {"ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg")}


def inventory_of(inventories: list[str], names: int, directory: Path) -> Path:
    """Write an inventory of so many names for the hosts of other inventories in turn; return its path.

    A host answers under each of its names, concurrently, over separate connections.
    """
    where = [word for one in inventories for word in ("-i", one)]
    done = subprocess.run(
        [program("ansible-inventory"), *where, "--list"],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    hosts, variables = found["gpu_hosts"]["hosts"], found["_meta"]["hostvars"]
    many = {}
    for number in range(names):
        host = hosts[number % len(hosts)]
        many[f"node{number:02d}"] = {"ansible_host": host, **variables[host]}
    path = directory / "hosts.json"
    path.write_text(json.dumps({"gpu_hosts": {"hosts": many}}))
    return path

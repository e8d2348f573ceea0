#!/usr/bin/python
"""Collect what a rollout needs to know of a host, and decide nothing."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
---
module: metal_fleet_facts
short_description: Collect facts about a GPU host for a rollout
description:
  - Reads the lock, the rollout's journal, the kept release records and the engine's units.
  - It works on a host without anything of this project, writes nothing, and is the same in check mode.
options:
  directory:
    description: Directory of lock, journal and records.
    type: path
    default: /var/lib/minimax-metal
author:
  - The minimax-metal authors
"""

EXAMPLES = r"""
- name: Read what the host serves
  minimax.metal.metal_fleet_facts:
  register: __fleet
"""

RETURN = r"""
facts:
  description: C(journal), C(current) (name of the active record), C(record) (its digest, model, engine,
    units and C(workers), their URLs for gateways), C(releases) (names), C(units) (by name).
  returned: always
  type: dict
"""

import json
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

# A copy of src/minimax_metal/common/program.py.
from ansible_collections.minimax.metal.plugins.module_utils.metal_program import run

PROPERTIES = (
    "Id",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "NeedDaemonReload",
    "NRestarts",
    "ExecMainStartTimestampMonotonic",
    "InactiveExitTimestampMonotonic",
    "ActiveEnterTimestampMonotonic",
)


def document(path: Path) -> dict[str, Any] | None:
    """Return a file of JSON; None where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def mapping(value: Any) -> dict[str, Any]:
    """Return a part of a record; empty where it is of another kind: a file may be damaged."""
    return value if isinstance(value, dict) else {}


def record(content: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what matters of the record in force."""
    if content is None:
        return None
    plan = mapping(content.get("plan"))
    listed = plan.get("services")
    services = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    return {
        "digest": content.get("digest"),
        "number": content.get("number"),
        "time": content.get("time"),
        "model": mapping(plan.get("model")).get("served_name"),
        "engine": mapping(plan.get("engine")).get("release"),
        "units": [service.get("unit") for service in services],
        "workers": [service["worker_url"] for service in services if service.get("worker_url")],
    }


def units() -> dict[str, dict[str, Any]]:
    """Return the units of the engine that are files or run, by name."""
    answer = run(["systemctl", "show", "--all", f"--property={','.join(PROPERTIES)}", "sglang@*.service"])
    found = {}
    for block in answer.out.split("\n\n"):
        values = dict(line.partition("=")[::2] for line in block.splitlines() if "=" in line)
        if not values.get("Id"):
            continue
        started = int(values.get("ExecMainStartTimestampMonotonic") or 0)
        begun = int(values.get("InactiveExitTimestampMonotonic") or 0)
        ready = int(values.get("ActiveEnterTimestampMonotonic") or 0)
        age = time.clock_gettime(time.CLOCK_MONOTONIC) - started / 1e6
        active = values["ActiveState"] == "active"
        found[values["Id"]] = {
            "active": active,
            "state": values["ActiveState"],
            "enabled": values.get("UnitFileState") == "enabled",
            "stale": values.get("NeedDaemonReload") == "yes",
            "restarts": int(values.get("NRestarts") or 0),
            "started": time.time() - age if started else None,
            "start_seconds": round((ready - begun) / 1e6, 1) if active and ready > begun else None,
        }
    for path in Path("/etc/systemd/system").glob("sglang@*.service"):
        found.setdefault(
            path.name,
            {"active": False, "state": "inactive", "enabled": False, "stale": False, "restarts": 0,
             "started": None, "start_seconds": None},
        )  # fmt: skip
    return found


def main() -> None:
    """Collect and print."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "default": "/var/lib/minimax-metal"},
        },
        supports_check_mode=True,
    )
    directory = Path(module.params["directory"])
    releases = directory / "releases"
    try:
        current = (releases / "current").readlink().stem
    except OSError:
        current = None
    content = document(releases / f"{current}.json") if current else None
    module.exit_json(
        changed=False,
        facts={
            "journal": document(directory / "rollout.json"),
            "lock": document(directory / "lock.json"),
            "current": current if content else None,
            "record": record(content),
            "releases": sorted(path.stem for path in releases.glob("*-*.json")),
            "units": units(),
        },
    )


if __name__ == "__main__":
    main()

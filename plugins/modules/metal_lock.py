#!/usr/bin/python
"""Take or give back the lock of the fleet on a host."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
---
module: metal_lock
short_description: Takes or gives back the lock of the fleet on a host
description:
  - The lock is a file that says who changes the fleet, on every host of it. Taking it is atomic.
  - It is the run's own and gone when the run ends, so neither taking nor giving it back counts as a change;
    breaking another run's lock does, unless that run has ended.
  - In check mode nothing is written.
options:
  state:
    description: Whether the lock is to be taken or given back.
    type: str
    choices: [taken, released]
    required: true
  holder:
    description: Who takes it, as C(run), C(user), C(controller), C(pid), C(command), C(time), C(process).
    type: dict
    required: true
  break_held:
    description: Whether the lock of another run is taken away from it.
    type: bool
    default: false
  ended_run:
    description:
      - A run that has ended without giving its lock back; its lock is taken away from it, and no other's. The
        action plugin of this name finds it out where the run was one of this controller.
    type: str
    default: ""
  path:
    description: File that is the lock.
    type: path
    default: /var/lib/minimax-metal/lock.json
author:
  - The minimax-metal authors
"""

EXAMPLES = r"""
- name: Take the fleet lock
  minimax.metal.metal_lock:
    state: taken
    holder: {run: 20261122T040000Z-1, user: ops, controller: desk, pid: 1, command: rollout.yml, time: now}
  register: metal_lock
"""

RETURN = r"""
other:
  description: Who holds the lock, when that is another run.
  returned: always
  type: dict
words:
  description: The same in a few words.
  returned: always
  type: str
broken:
  description: Whose lock was taken away, in a few words.
  returned: always
  type: str
ended:
  description: Whether that run had ended.
  returned: always
  type: bool
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.minimax.metal.plugins.module_utils.metal_lock import (
    break_lock,
    described,
    read,
    release,
    take,
)


def main() -> None:
    """Do what the state says."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["taken", "released"], "required": True},
            "holder": {"type": "dict", "required": True},
            "break_held": {"type": "bool", "default": False},
            "ended_run": {"type": "str", "default": ""},
            "path": {"type": "path", "default": "/var/lib/minimax-metal/lock.json"},
        },
        supports_check_mode=True,
    )
    path = Path(module.params["path"])
    holder = module.params["holder"]
    state = module.params["state"]
    broken, ended = "", False
    try:
        other = read(path)
        if other is not None and other["run"] == holder["run"]:
            other = None
        ended = other is not None and module.params["ended_run"] == other["run"]
        if other is not None and state == "taken" and (module.params["break_held"] or ended):
            broken = described(other)
            if not module.check_mode:
                break_lock(path, run=other["run"])
            other = None
        if not module.check_mode:
            if state == "taken" and other is None:
                other = take(holder, path)
            elif state == "released":
                release(str(holder["run"]), path)
    except OSError as error:
        module.fail_json(msg=f"cannot change {path}: {error.strerror}; the play must become root")
    module.exit_json(
        changed=bool(broken) and not ended,
        other=other,
        words=described(other) if other else "",
        broken=broken,
        ended=ended,
    )


if __name__ == "__main__":
    main()

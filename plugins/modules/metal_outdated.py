#!/usr/bin/python
"""Name the units that run since before a file they read was written."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
---
module: metal_outdated
short_description: Names the units that run since before a file they read was written
description:
  - A run that is killed between writing a file and restarting its unit leaves a unit that runs with what was
    there before, and the next run finds the file as it should be. Here the file's time is compared with the
    start of the unit, so that the next run restarts it.
  - Nothing is changed. A unit that does not run, or a file that is not there, is none of this.
options:
  units:
    description: For each unit the files that it reads at its start only, its own file among them.
    type: dict
    required: true
  reloaded:
    description: Whether the units read the files again when they are reloaded.
    type: bool
    default: false
author:
  - The minimax-metal authors
"""

EXAMPLES = r"""
- name: What runs with other keys than those that are there is looked for
  minimax.metal.metal_outdated:
    units:
      sglang-gateway.service: [/etc/sglang-gateway/api_key]
  register: found
"""

RETURN = r"""
outdated:
  description: The units, sorted.
  returned: always
  type: list
  elements: str
why:
  description: One short text for each of them.
  returned: always
  type: list
  elements: str
"""

import os
import time
from collections.abc import Mapping, Sequence

from ansible.module_utils.basic import AnsibleModule

# A copy of src/minimax_metal/common/program.py.
from ansible_collections.minimax.metal.plugins.module_utils.metal_program import run

SECONDS = 60
AT_WORK = ("active", "activating", "reloading")


def starts(text: str, now: float, monotonic: float, since: str = "InactiveExit") -> dict[str, float]:
    """Return when each unit that runs was started, in seconds of today's clock.

    With "StateChange" it is when it was started or reloaded.

    systemd's monotonic time is used: a clock that was put right after the start does not move it.
    """
    found = {}
    for block in text.split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        when = values.get(f"{since}TimestampMonotonic", "")
        if values.get("ActiveState") in AT_WORK and when.isdecimal() and int(when):
            found[values.get("Id", "")] = now - (monotonic - int(when) / 1e6)
    return found


def written(path: str, now: float) -> float | None:
    """Return when a file was written; None where there is none, or its time is yet to come."""
    try:
        when = os.lstat(path).st_mtime
    except OSError:
        return None
    return when if when <= now else None


def outdated(units: Mapping[str, Sequence[str]], started: Mapping[str, float], now: float) -> dict[str, str]:
    """Return why each unit has to be started anew, by its name."""
    found = {}
    for unit, files in sorted(units.items()):
        for path in files if unit in started else ():
            when = written(path, now)
            if when is not None and when > started[unit]:
                later = when - started[unit]
                found[unit] = f"{unit}: {path} was written {later:.0f} s after the unit's start"
                break
    return found


def main() -> None:
    """Compare."""
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "dict", "required": True},
            "reloaded": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    units = module.params["units"]
    program = module.get_bin_path("systemctl")
    if not units or program is None:
        module.exit_json(changed=False, outdated=[], why=[])
    since = "StateChange" if module.params["reloaded"] else "InactiveExit"
    wanted = f"--property=Id,ActiveState,{since}TimestampMonotonic"
    answer = run(
        [program, "show", wanted, *sorted(units)],
        seconds=SECONDS,
        environment={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    if answer.timed_out:
        module.fail_json(
            msg=f"systemctl did not answer within {SECONDS} s; expected an answer within seconds; "
            "look at the host (ps, dmesg), then run again"
        )
    now = time.time()
    started = starts(answer.out, now, time.clock_gettime(time.CLOCK_MONOTONIC), since)
    found = outdated(units, started, now)
    module.exit_json(changed=False, outdated=sorted(found), why=list(found.values()))


if __name__ == "__main__":
    main()

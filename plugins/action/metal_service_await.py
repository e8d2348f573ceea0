"""Waits on a host for starts of the engine and shows their progress; changes nothing.

Joins running starts for a while at a time (``systemctl start`` of a starting unit waits for that start, and
ending it stops no unit), so a lost connection costs nothing: the next call joins again.
"""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import shlex
from typing import Any

import ansible_collections.minimax.metal.plugins.plugin_utils.package  # noqa: F401 - finds minimax_metal
from ansible.plugins.action import ActionBase

from minimax_metal.controller.patient import PatientConnection
from minimax_metal.host.engine.starts import PROPERTIES, Start, lines_of, parse_starts

TIME_IS_OVER = 124
"""Exit status of timeout(1) if the command had not ended."""


class ActionModule(ActionBase):
    """Arguments: units; interval and patience (seconds). The unit defines how long a start may take."""

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset({"units", "interval", "patience"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return when no start is in progress: ``ready``, and the messages of units that are not
        (``states``).
        """
        result: dict[str, Any] = super().run(tmp, task_vars)
        if self._task.check_mode:
            return {**result, "changed": False, "skipped": True}
        units = [str(unit) for unit in self._task.args["units"]]
        interval = max(1.0, float(self._task.args.get("interval", 10)))
        patience = float(self._task.args.get("patience", 900))
        names = shlex.join(units)
        command = (
            f"timeout {interval:.0f} systemctl start {names}; rc=$?; "
            f"systemctl show --property={','.join(PROPERTIES)} {names}; exit $rc"
        )
        name = (task_vars or {}).get("inventory_hostname", "host")
        host = PatientConnection(self, name, "the engine", patience)
        shown: dict[str, str] = {}
        first: dict[str, Start] = {}
        while True:
            answer = host.ask(command, interval)
            if answer is None:
                continue
            starts = parse_starts(answer.get("stdout", ""))
            for unit, line in lines_of(starts, shown).items():
                host.say(line)
                shown[unit] = line
            failed = [start for start in starts if start.over(first.get(start.unit))]
            if failed or answer["rc"] != TIME_IS_OVER:
                bad = failed or [start for start in starts if not start.state.startswith("active ")]
                states = [start.problem for start in bad]
                ready = answer["rc"] == 0 and not failed
                if not ready and not states:
                    states = [f"systemctl start {names} ended with {answer['rc']}"]
                return {**result, "changed": False, "ready": ready, "states": states}
            first = first or {start.unit: start for start in starts}

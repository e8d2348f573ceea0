"""Waits on a host for its pull of weights and shows one line per host meanwhile; writes nothing.

Runs ``metal weights await`` for a while at a time, so a lost connection costs nothing: the pull is a separate
unit, and the next call is independent.
"""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import shlex
import time
from typing import Any

import ansible_collections.minimax.metal.plugins.plugin_utils.package  # noqa: F401 - finds minimax_metal
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from minimax_metal.common.text import one_line
from minimax_metal.controller.patient import PatientConnection

METAL = "/usr/local/bin/metal"
MOST = 1 << 60
"""Upper bound of a pull's bytes and seconds."""
NOT_YET = 6
"""Exit status of ``metal weights await`` if the time was over and the pull continues."""


class ActionModule(ActionBase):
    """Arguments: request (file on the host), timeout, interval and patience (seconds).

    ``pulled``: false if everything was already there.
    """

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset({"request", "timeout", "interval", "patience", "pulled"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return when the weights are verified.

        ``line`` is the pull's last message, ``came`` how many bytes it fetched (``fetched``) and how many of
        them other hosts sent (``peers``); empty if everything was there, as that was another run's pull.
        """
        result: dict[str, Any] = super().run(tmp, task_vars)
        if self._task.check_mode:
            return {**result, "changed": False, "skipped": True, "line": "not awaited in check mode"}
        request = str(self._task.args["request"])
        timeout = float(self._task.args.get("timeout", 86400))
        interval = float(self._task.args.get("interval", 30))
        patience = float(self._task.args.get("patience", 900))
        name = (task_vars or {}).get("inventory_hostname", "host")
        host = PatientConnection(self, name, "the pull", patience)
        begun = time.monotonic()
        line = ""
        while True:
            step = max(1.0, min(interval, timeout - (time.monotonic() - begun)))
            command = f"{METAL} weights await --json --request {shlex.quote(request)} --timeout {step:.0f}"
            answer = host.ask(command, interval)
            if answer is None:
                continue
            # A terminal mixes standard error in; the pull's messages begin with its name. One host's text
            # must not control the terminal, or end the play for the others.
            said = [
                one_line(text)
                for text in answer.get("stdout", "").splitlines()
                if text.startswith("weights ")
            ]
            if said and said[-1] != line:
                line = said[-1]
                host.say(line)
            if answer["rc"] == 0:
                came = _came(answer.get("stdout", "")) if self._task.args.get("pulled", True) else {}
                return {**result, "changed": False, "line": line, "came": came}
            spoken = f"{answer.get('stdout', '')}\n{answer.get('stderr', '')}".split("metal weights: ")
            reason = (
                one_line(" ".join(spoken[-1].splitlines()[:1])) if len(spoken) > 1 else "no reason was given"
            )
            if answer["rc"] != NOT_YET:
                raise AnsibleActionFail(reason)
            if time.monotonic() - begun >= timeout:
                raise AnsibleActionFail(
                    f"not verified within {timeout:.0f} s, the pull continues; last: {line}"
                )


def _came(output: str) -> dict[str, Any]:
    """Return the numbers in the last line of JSON; {} without one."""
    for text in reversed(output.splitlines()):
        if text.startswith("{"):
            try:
                found = json.loads(text)
            except (ValueError, RecursionError):
                return {}
            return {
                key: found[key]
                for key in ("fetched", "peers", "seconds")
                if isinstance(found.get(key), int | float) and 0 <= found[key] < MOST
            }
    return {}

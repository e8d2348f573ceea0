"""Polls a host while work continues there, across lost connections: for the action plugins.

Only Ansible's own process imports this.
"""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

_DISPLAY = Display()
_AGAIN_SECONDS = 10.0
"""The longest pause before reconnecting."""


class PatientConnection:
    """One action's connection to its host."""

    def __init__(self, action: ActionBase, host: str, what: str, patience: float) -> None:
        """Start measuring the silence.

        Args:
            action: the action that owns the connection.
            host: its name in the inventory.
            what: the work that continues on the host, such as ``the pull``.
            patience: seconds without an answer before that is a failure.
        """
        self._action = action
        self._host = host
        self._what = what
        self._patience = patience
        self._heard = time.monotonic()

    def ask(self, command: str, pause: float) -> dict[str, Any] | None:
        """Return the command's answer, or None after a lost connection, which the next call restores.

        Args:
            command: for the host's shell; ending it must not stop the work.
            pause: seconds to wait after a lost connection, 10 at most.

        Raises:
            AnsibleActionFail: no answer for longer than the patience.
        """
        try:
            answer: dict[str, Any] = self._action._low_level_execute_command(command)
        except AnsibleConnectionFailure as error:
            if time.monotonic() - self._heard > self._patience:
                raise AnsibleActionFail(
                    f"no connection for {self._patience:.0f} s; {self._what} continues on the host: "
                    "run the play again"
                ) from error
            self.say(f"connection lost, {self._what} continues; reconnecting")
            self._action._connection.reset()
            time.sleep(min(pause, _AGAIN_SECONDS))
            return None
        self._heard = time.monotonic()
        return answer

    def say(self, line: str) -> None:
        """Print a line about this host among the play's own."""
        _DISPLAY.display(f"  {self._host}: {line}")

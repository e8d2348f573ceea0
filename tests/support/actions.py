"""An action plug-in on a host with the test's answers."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from minimax_metal.controller import patient


class Answering:
    """Mix-in before an action plug-in's class: its task, its connection, and the host behind that."""

    def __init__(self, answers: Iterable[Any], **arguments: Any) -> None:
        """Use the answers in turn, each an exit status with output, or an exception to raise."""
        self.answers = iter(answers)
        self.commands: list[str] = []
        self._task = SimpleNamespace(args=arguments, check_mode=False, async_val=0)
        self._connection = SimpleNamespace(reset=lambda: None)

    def _low_level_execute_command(self, command: str) -> dict[str, Any]:
        self.commands.append(command)
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        code, text = answer
        return {"rc": code, "stdout": text, "stderr": ""}


def lines_said(monkeypatch: pytest.MonkeyPatch, plugin: ModuleType) -> list[str]:
    """Let a plug-in run without Ansible around it, or a pause; return the lines it shows, as they come."""
    lines: list[str] = []
    monkeypatch.setattr(plugin.ActionBase, "run", lambda *_: {})
    monkeypatch.setattr(patient, "_DISPLAY", SimpleNamespace(display=lines.append))
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    return lines

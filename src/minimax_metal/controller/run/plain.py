"""A run in plain lines: for logs, pipes, CI, and terminals without colours."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import IO, Protocol

from minimax_metal.common.durations import spell
from minimax_metal.controller.run.events import Run
from minimax_metal.controller.run.records import Record


class Show(Protocol):
    """Displays a run in progress."""

    def start(self) -> None:
        """Begin."""

    def update(self, record: Record, run: Run) -> None:
        """Show what changed with an event."""

    def note(self, text: str) -> None:
        """Show a message that is not an event."""

    def finish(self, run: Run) -> None:
        """Finish, whatever the run's outcome."""


class Plain:
    """One line for each event: stages that begin and end, changes, failures, progress."""

    def __init__(self, output: IO[str] | None = None) -> None:
        self.output = output or sys.stdout
        self.stages: dict[str, str] = {}
        self.changes = self.failures = self.warnings = 0

    def start(self) -> None:
        """Begin: there is nothing to prepare."""

    def note(self, text: str) -> None:
        """Show a message that is not an event."""
        print(text, file=self.output, flush=True)

    def update(self, record: Record, run: Run) -> None:
        """Print the lines that follow from an event."""
        kind = record["kind"]
        stamp = datetime.fromtimestamp(run.latest).strftime("%H:%M:%S")
        name = str(record.get("host") or "")
        if kind == "play":
            self.note(f"{stamp} == {record.get('play')}")
        stage = record.get("stage")
        if kind == "begin" and stage and self.stages.get(name) != stage:
            before = self.stages.get(name)
            if before:
                self.note(f"{stamp} {name}: {self._over(run, name, before)}")
            self.stages[name] = str(stage)
        for change in run.changes[self.changes :]:
            what = f" ({change.what})" if change.what else ""
            self.note(f"{stamp} {change.host}: {change.stage or '-'}: changed: {change.task}{what}")
        for failure in run.failures[self.failures :]:
            first, *rest = failure.lines
            word = "REFUSED" if failure.refuses else failure.kind.upper()
            self.note(f"{stamp} {failure.who}: {failure.stage or '-'}: {word}: {failure.task}: {first}")
            for line in rest:
                self.note(f"    {line}")
        for warning in run.warnings[self.warnings :]:
            self.note(f"{stamp} {warning}")
        self.changes, self.failures, self.warnings = len(run.changes), len(run.failures), len(run.warnings)
        if kind == "retry":
            result = record.get("result") or {}
            self.note(
                f"{stamp} {name}: {stage or '-'}: attempt {result.get('attempts')} of {record.get('task')}"
            )
        if kind == "line" and record.get("sort") == "verbose":
            self.note(f"{stamp} {str(record['text']).strip()}")
        if kind == "stop":
            self.note(f"{stamp} stopping {run.stopping}")

    def finish(self, run: Run) -> None:
        """Print the result of each host's last stage."""
        for name, stage in self.stages.items():
            if name in run.hosts:
                self.note(f"         {name}: {self._over(run, name, stage)}; {run.hosts[name].verdict}")

    def _over(self, run: Run, name: str, stage: str) -> str:
        seen = run.hosts[name].stages.get(stage) if name in run.hosts else None
        if seen is None:
            return f"{stage}: over"
        status = seen.status if seen.status != "running" else "changed" if seen.changes else "ok"
        return f"{stage}: {status} after {spell(seen.seconds)}"


class Ansible:
    """Ansible's own output, as it comes: the runner prints it, nothing is added."""

    def __init__(self, output: IO[str] | None = None) -> None:
        self.output = output or sys.stdout

    def start(self) -> None:
        """Begin: there is nothing to prepare."""

    def update(self, record: Record, run: Run) -> None:
        """Show nothing more."""

    def note(self, text: str) -> None:
        """Show a message that is not an event."""
        print(text, file=self.output, flush=True)

    def finish(self, run: Run) -> None:
        """End: there is nothing to tidy up."""

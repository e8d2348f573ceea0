"""Parse ``systemctl show`` of starting instances: pure, for the play that waits for them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from minimax_metal.common.documents import digits

PROPERTIES: Final = ("Id", "ActiveState", "SubState", "StatusText", "NRestarts", "Result")
REFUSED: Final = "start-limit-hit"
"""systemd's result for a unit that failed too often: its status line is then from an older start."""
_INSTANCE: Final = re.compile(r"^[^@]+@(?P<instance>.+)\.service$")


@dataclass(frozen=True, slots=True)
class Start:
    """One unit at one moment; ``status`` is its supervisor's status line."""

    unit: str
    state: str
    """systemd's state, such as ``activating (auto-restart)``."""
    status: str
    restarts: int
    result: str = "success"

    @property
    def problem(self) -> str:
        """What to print about a start that is not ready: its own messages, never those of an older start."""
        if self.result == REFUSED:
            older = f"; the earlier failure: {self.status.removeprefix('failed: ')}" if self.status else ""
            return (
                f"{self.unit} failed too often, so systemd refuses to start it; fix the cause, then "
                f"systemctl reset-failed {self.unit} and run the playbook again{older}"
            )
        if self.status and not self.state.startswith("inactive"):
            return self.status
        return f"{self.unit} {self.state}"

    @property
    def name(self) -> str:
        """The instance's name, or the unit's if it has none."""
        found = _INSTANCE.match(self.unit)
        return found["instance"] if found else self.unit

    @property
    def progress(self) -> str:
        """Its progress, as text that only changes with progress: without times."""
        return self.status.partition(";")[0].removeprefix("starting: ") or self.state

    def over(self, before: Start | None) -> bool:
        """Whether this start has failed, though systemd may retry: a wait would see only the next one."""
        return (
            self.state.startswith("failed")
            or "auto-restart" in self.state
            or (before is not None and self.restarts > before.restarts)
        )


def parse_starts(text: str) -> tuple[Start, ...]:
    """Return the units in the output of ``systemctl show``, in its order; anything else is skipped."""
    starts = []
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if "Id" not in values or "ActiveState" not in values:
            continue
        restarts = values.get("NRestarts", "0")
        starts.append(
            Start(
                unit=values["Id"],
                state=f"{values['ActiveState']} ({values.get('SubState', '')})",
                status=values.get("StatusText", "").strip(),
                restarts=digits(restarts) or 0,
                result=values.get("Result", "success"),
            )
        )
    return tuple(starts)


def lines_of(starts: Sequence[Start], shown: Mapping[str, str]) -> dict[str, str]:
    """Return, by unit, progress that ``shown`` does not contain yet: ``engine NAME: progress``."""
    said = {start.unit: f"engine {start.name}: {start.progress}" for start in starts}
    return {unit: line for unit, line in said.items() if shown.get(unit) != line}

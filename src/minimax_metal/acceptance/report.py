"""The result: a table for people, JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any, Final

from minimax_metal import __version__
from minimax_metal.acceptance.outcome import STATES, Outcome, State, of_dict
from minimax_metal.errors import UserError

SCHEMA: Final = 1
PLAIN_WIDTH: Final = 86
"""Columns of the table where no terminal sets them: in a play's output it must not depend on the day."""


@dataclass(frozen=True, slots=True)
class Report:
    """All checks of a host."""

    host: str
    time: str
    outcomes: tuple[Outcome, ...]
    model: str
    gpus: str
    engine: str
    driver: str | None

    @property
    def accepted(self) -> bool:
        """Whether no check failed, and one at least passed."""
        return self.count("failed") == 0 and self.count("passed") > 0

    @property
    def complete(self) -> bool:
        """Whether everything was looked at."""
        return self.accepted and self.count("skipped") == 0 and self.count("limited") == 0

    def count(self, state: State) -> int:
        """How many checks ended so."""
        return sum(one.state == state for one in self.outcomes)

    @property
    def summary(self) -> str:
        """One line for people."""
        counts = ", ".join(f"{self.count(state)} {state}" for state in STATES if self.count(state))
        if not self.accepted:
            verdict = "not accepted"
        else:
            verdict = "accepted" if self.complete else "accepted as far as it was looked at"
        return f"{self.host}: {verdict}: {counts or 'no check'}"

    def as_dict(self) -> dict[str, Any]:
        """The JSON form (docs/accept.md)."""
        return {
            "schema": SCHEMA,
            "host": self.host,
            "time": self.time,
            "metal": __version__,
            "model": self.model,
            "gpus": self.gpus,
            "engine": self.engine,
            "driver": self.driver,
            "accepted": self.accepted,
            "complete": self.complete,
            "counts": {state: self.count(state) for state in STATES},
            "checks": [one.as_dict() for one in self.outcomes],
        }

    def as_json(self) -> str:
        """The JSON text."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n"

    def print(self, output: IO[str]) -> None:
        """Print the table, then every check that did not pass in full."""
        from rich.box import SIMPLE_HEAD, SQUARE
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        terminal = output.isatty()
        console = Console(
            file=output,
            width=None if terminal else PLAIN_WIDTH,
            no_color=not terminal,
            force_terminal=terminal,
            highlight=False,
        )
        colours = {"passed": "green", "failed": "bold red", "limited": "cyan", "skipped": "yellow"}
        table = Table(box=SIMPLE_HEAD if terminal else SQUARE, expand=not terminal)
        table.add_column("check", no_wrap=True)
        table.add_column("result", no_wrap=True)
        table.add_column("seconds", justify="right", no_wrap=True)
        table.add_column("what was found", ratio=1, overflow="fold")
        for one in self.outcomes:
            seen = f"{one.found}; {one.remedy}" if one.state == "skipped" and one.remedy else one.found
            state = Text(one.state, style=colours[one.state])
            table.add_row(one.check, state, f"{one.seconds:.1f}", Text(seen))
        console.print(table)
        for kind in ("limited", "failed"):
            for one in self.outcomes:
                if one.state == kind:
                    console.print(Text(f"{one.check} {kind}", style=colours[kind]))
                    for label, text in (("found", one.found), ("expected", one.expected), ("do", one.remedy)):
                        if text:
                            console.print(Text(f"  {label + ':':<10}{text}"), soft_wrap=not terminal)
        console.print(Text(self.summary), soft_wrap=not terminal)


def parse(text: str, source: str) -> Report:
    """Read a report.

    Raises:
        UserError: it is none.
    """
    try:
        data = json.loads(text)
        checks: list[Mapping[str, Any]] = data["checks"]
        return Report(
            host=str(data["host"]),
            time=str(data["time"]),
            outcomes=tuple(map(of_dict, checks)),
            model=str(data["model"]),
            gpus=str(data["gpus"]),
            engine=str(data["engine"]),
            driver=data.get("driver"),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{source} holds no report of metal accept ({error}); run metal accept again"
        ) from None

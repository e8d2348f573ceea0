"""The result: a table for people, JSON for programs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import IO, Any, Final

from minimax_metal import __version__
from minimax_metal.common.documents import read_json
from minimax_metal.common.errors import UserError
from minimax_metal.common.text import one_line
from minimax_metal.host.accept.outcome import STATES, Outcome, State, of_dict
from minimax_metal.host.check.table import print_table

SCHEMA: Final = 1
MOST: Final = 1_000
"""Maximum checks in a report; a host of 8 GPUs has about thirty."""
BYTES: Final = 16 << 20
"""Maximum size of a report; the data of 8 GPUs takes some hundred KB."""


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
        """Whether every check ran and passed."""
        return self.accepted and self.count("skipped") == 0 and self.count("limited") == 0

    def count(self, state: State) -> int:
        """Return how many checks ended in this state."""
        return sum(one.state == state for one in self.outcomes)

    @property
    def summary(self) -> str:
        """One line for people."""
        counts = ", ".join(f"{self.count(state)} {state}" for state in STATES if self.count(state))
        if not self.accepted:
            verdict = "not accepted"
        else:
            verdict = "accepted" if self.complete else "accepted, with checks skipped"
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
        """Print the table, then full details of every check that did not pass."""
        print_table(output, "what was found", [one.row() for one in self.outcomes], self.summary)


def parse(text: str, source: str) -> Report:
    """Parse a report.

    Raises:
        UserError: it is not a report.
    """
    try:
        data = read_json(text)
        checks = data["checks"]
        if not isinstance(checks, list) or len(checks) > MOST:
            raise ValueError(f"expected a list of at most {MOST} checks")
        words = {name: one_line(str(data[name]), 200) for name in ("host", "time", "model", "gpus", "engine")}
        driver = data.get("driver")
        return Report(
            **words,
            outcomes=tuple(map(of_dict, checks)),
            driver=one_line(driver, 60) if isinstance(driver, str) else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{source} holds no report of metal accept ({one_line(str(error), 200)}); run metal accept again"
        ) from None

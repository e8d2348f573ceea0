"""The result of one check of a host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal, get_args

from minimax_metal.common.text import one_line
from minimax_metal.host.check.table import Row

State = Literal["passed", "failed", "limited", "skipped"]
STATES: Final[tuple[State, ...]] = get_args(State)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One check: ``limited`` is not a failure but not a full pass either, ``skipped`` was not run."""

    check: str
    state: State
    found: str
    expected: str = ""
    remedy: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def line(self, host: str) -> str:
        """One readable line: host, what was found, what was expected, what to do."""
        expected = f"; expected {self.expected}" if self.expected else ""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{host}: {self.check} {self.state}: found {self.found}{expected}{remedy}"

    def timed(self, seconds: float) -> Outcome:
        """Return the same with its duration."""
        return replace(self, seconds=round(seconds, 3))

    def named(self, check: str) -> Outcome:
        """Return the same under another name, as for the second of two instances."""
        return replace(self, check=check)

    def row(self) -> Row:
        """Its line in the table."""
        seen = f"{self.found}; {self.remedy}" if self.state == "skipped" and self.remedy else self.found
        lines = (("found", self.found), ("expected", self.expected), ("do", self.remedy))
        return Row(self.check, self.state, self.seconds, seen, lines)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"figures": dict(self.figures)}


def of_dict(data: Mapping[str, Any]) -> Outcome:
    """Return an outcome from its JSON form; of another release's report the known parts.

    The form comes from a host: texts are made printable, and values without the right type are dropped.

    Raises:
        ValueError: it names no check.
    """
    if not isinstance(data, Mapping) or not isinstance(data.get("check"), str):
        raise ValueError("a check without a name")
    state: State = next((one for one in STATES if one == data.get("state")), "failed")
    seconds, figures = data.get("seconds"), data.get("figures")
    known = isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and 0 <= seconds <= 1e7
    return Outcome(
        check=one_line(data["check"], 100),
        state=state,
        found=_words(data.get("found")),
        expected=_words(data.get("expected")),
        remedy=_words(data.get("remedy")),
        figures=dict(figures) if isinstance(figures, Mapping) else {},
        seconds=float(seconds) if known and seconds is not None else 0.0,
    )


def _words(value: Any) -> str:
    return one_line(value) if isinstance(value, str) else ""


def passed(check: str, found: str, **figures: Any) -> Outcome:
    """The check passed."""
    return Outcome(check, "passed", found, figures=figures)


def failed(check: str, found: str, expected: str, remedy: str, **figures: Any) -> Outcome:
    """The check failed."""
    return Outcome(check, "failed", found, expected, remedy, figures)


def limited(check: str, found: str, expected: str, remedy: str, **figures: Any) -> Outcome:
    """Not a failure, but not fully shown, or worth a look."""
    return Outcome(check, "limited", found, expected, remedy, figures)


def skipped(check: str, why: str, remedy: str = "") -> Outcome:
    """The check was not run, for this reason."""
    return Outcome(check, "skipped", why, remedy=remedy)

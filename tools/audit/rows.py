"""The audit's rows for one number, and readers of its inputs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minimax_metal.common.documents import read_json
from minimax_metal.common.errors import UserError
from minimax_metal.common.files import read_bounded

MOST_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Row:
    """One comparison."""

    verdict: Literal["agrees", "differs", "not compared"]
    where: str
    field: str
    ours: str
    theirs: str
    against: str

    def line(self) -> str:
        """One line for people."""
        if self.verdict == "agrees":
            return f"agrees        {self.where}: {self.field} {self.ours} ({self.against})"
        if self.verdict == "differs":
            return (
                f"differs       {self.where}: {self.field}: catalogue {self.ours}, "
                f"found {self.theirs} ({self.against})"
            )
        return f"not compared  {self.where}: {self.field}: {self.theirs} ({self.against})"


def compared(
    where: str, field: str, ours: Any, theirs: Any, against: str, *, same: bool | None = None
) -> Row:
    """Return a row that agrees or differs; ``same`` if equality is not the question."""
    good = ours == theirs if same is None else same
    return Row("agrees" if good else "differs", where, field, _text(ours), _text(theirs), against)


def skipped(where: str, field: str, why: str, against: str) -> Row:
    """Return a row for a number that the input lacks."""
    return Row("not compared", where, field, "", why, against)


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(str(one) for one in sorted(value, key=str)) or "none"
    return str(value)


def read_text(path: Path, what: str) -> str:
    """Read a text file of at most 64 MiB; raises ``UserError`` with one line."""
    try:
        return read_bounded(path, MOST_BYTES).decode("utf-8", "replace")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"found {path}: {reason}; expected {what}; give a readable file") from error


def read_object(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object; raises ``UserError`` with one line."""
    return as_object(read_text(path, what), str(path), what)


def as_object(text: str, name: str, what: str) -> dict[str, Any]:
    """Like :func:`read_object`, from a text."""
    try:
        found = read_json(text)
    except (ValueError, json.JSONDecodeError) as error:
        raise UserError(f"found {name}: not JSON ({error}); expected {what}") from error
    if not isinstance(found, dict):
        raise UserError(f"found {name}: not a JSON object; expected {what}")
    return found

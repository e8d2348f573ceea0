"""The result of a post-check: a table for people, JSON for machines.

JSON, schema 1::

    {"schema": 1, "url": "http://127.0.0.1:8000", "model": "MiniMaxAI/MiniMax-M2.5",
     "time": "2026-01-02T03:04:05+00:00", "seconds": 12.3, "metal": "0.1.0",
     "passed": true, "counts": {"passed": 7, "failed": 0, "skipped": 1},
     "checks": [{"name": "chat", "status": "passed" | "failed" | "skipped", "seconds": 0.8,
                 "detail": "...",                     # passed: what was seen; skipped: why
                 "expected": "...", "got": "...",     # failed only, else null
                 "look": "..."}]}                     # failed only: where to look, else null
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal

from minimax_metal import __version__

SCHEMA: Final = 1
PLAIN_WIDTH: Final = 74
"""Columns of the table where no terminal sets them: in a play's output it must not depend on the day."""

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Result:
    """One check: what was seen, or what was expected and came instead."""

    name: str
    status: Status
    seconds: float
    detail: str = ""
    expected: str | None = None
    got: str | None = None
    look: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All checks against one endpoint."""

    url: str
    model: str
    time: str
    results: tuple[Result, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not any(result.status == "failed" for result in self.results)

    def count(self, status: Status) -> int:
        """Return how many checks ended with ``status``."""
        return sum(result.status == status for result in self.results)

    @property
    def seconds(self) -> float:
        """Time of all checks."""
        return sum(result.seconds for result in self.results)

    @property
    def summary(self) -> str:
        """One line for people."""
        counts = (
            f"{self.count('passed')} passed, {self.count('failed')} failed, {self.count('skipped')} skipped"
        )
        return f"{self.model} at {self.url}: {counts} in {self.seconds:.1f} s"

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form (schema 1, see the module)."""
        return {
            "schema": SCHEMA,
            "url": self.url,
            "model": self.model,
            "time": self.time,
            "seconds": round(self.seconds, 3),
            "metal": __version__,
            "passed": self.passed,
            "counts": {status: self.count(status) for status in ("passed", "failed", "skipped")},
            "checks": [{**asdict(result), "seconds": round(result.seconds, 3)} for result in self.results],
        }

    def as_json(self) -> str:
        """Return the JSON text."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n"

    def write(self, file: Path) -> None:
        """Write the JSON report; a reader sees the old one or the new one, never half of one."""
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        temporary.write_text(self.as_json(), encoding="utf-8")
        temporary.replace(file)

    def print(self, output: IO[str]) -> None:
        """Print the table, then every failure in full."""
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
            soft_wrap=False,
        )
        colours = {"passed": "green", "failed": "bold red", "skipped": "yellow"}
        table = Table(box=SIMPLE_HEAD if terminal else SQUARE, expand=not terminal)
        table.add_column("check", no_wrap=True)
        table.add_column("result", no_wrap=True)
        table.add_column("seconds", justify="right", no_wrap=True)
        table.add_column("what was seen", ratio=1, overflow="fold")
        for result in self.results:
            seen = result.detail or (f"expected {result.expected}" if result.expected else "")
            table.add_row(
                result.name,
                Text(result.status, style=colours[result.status]),
                f"{result.seconds:.1f}",
                Text(seen),
            )
        console.print(table)
        for result in self.results:
            if result.status == "failed":
                lines = [("expected", result.expected), ("got", result.got), ("look", result.look)]
                console.print(Text(f"{result.name} failed", style=colours["failed"]))
                for label, text in lines:
                    if text:
                        console.print(Text(f"  {label + ':':<10}{text}"), soft_wrap=not terminal)
        console.print(Text(self.summary), soft_wrap=not terminal)


def shorten(text: str, limit: int = 300) -> str:
    """Return ``text`` on one line, cut in the middle to ``limit`` characters: both ends of an answer tell."""
    line = " ".join(text.split())
    if len(line) <= limit:
        return line
    half = (limit - 3) // 2
    return f"{line[:half]} … {line[-half:]}"


def join(words: Sequence[str]) -> str:
    """Return ``a, b and c``."""
    return ", ".join(words[:-1]) + f" and {words[-1]}" if len(words) > 1 else "".join(words)

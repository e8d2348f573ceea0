"""Checks as a readable table, on a terminal or in a play's output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Final

PLAIN_WIDTH: Final = 86
"""Table width without a terminal: in a play's output it must be constant."""
COLOURS: Final = {"passed": "green", "failed": "bold red", "limited": "cyan", "skipped": "yellow"}


@dataclass(frozen=True, slots=True)
class Row:
    """One check: its line in the table, and details below it, by label, if it did not pass."""

    name: str
    state: str
    """One of passed, failed, limited, skipped."""
    seconds: float
    seen: str
    lines: Sequence[tuple[str, str | None]] = ()


def print_table(output: IO[str], heading: str, rows: Sequence[Row], summary: str) -> None:
    """Print the table, then full details of every limitation and failure, then the summary."""
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
    table = Table(box=SIMPLE_HEAD if terminal else SQUARE, expand=not terminal)
    table.add_column("check", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column(heading, ratio=1, overflow="fold")
    for row in rows:
        table.add_row(
            Text(row.name), Text(row.state, style=COLOURS[row.state]), f"{row.seconds:.1f}", Text(row.seen)
        )
    console.print(table)
    for kind in ("limited", "failed"):
        for row in rows:
            if row.state == kind:
                console.print(Text(f"{row.name} {kind}", style=COLOURS[kind]))
                for label, text in row.lines:
                    if text:
                        console.print(Text(f"  {label + ':':<10}{text}"), soft_wrap=not terminal)
    console.print(Text(summary), soft_wrap=not terminal)

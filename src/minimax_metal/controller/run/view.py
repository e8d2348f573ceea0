"""The live view of a run on a terminal: hosts and stages, progress bars, the current task, the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from minimax_metal.common.durations import spell
from minimax_metal.controller.run.events import Failure, Host, Passage, Run
from minimax_metal.controller.run.history import History
from minimax_metal.controller.run.records import Record
from minimax_metal.plan.rollout.stage import Stage, label_of

REFRESHES: Final = 4
"""Times a second."""
SECONDS_FROM: Final = 2.0
"""Shorter stages show no time: a column of zeros would hide the long ones."""
COMPACT_BELOW: Final = 11
"""Minimum terminal columns per stage to show times."""

MARKS: Final[dict[str, tuple[str, str]]] = {
    "waiting": ("", ""),
    "running": ("▶", "bold cyan"),
    "ok": ("✓", "green"),
    "changed": ("✓", "yellow"),
    "skipped": ("·", "dim"),
    "failed": ("✗", "bold red"),
    "unreachable": ("?", "bold red"),
    "interrupted": ("‖", "bold yellow"),
}
VERDICTS: Final[dict[str, str]] = {
    "running": "cyan",
    "unreachable": "bold red",
    "refused": "bold red",
    "failed": "bold red",
    "interrupted": "bold yellow",
    "reverted": "bold magenta",
    "waiting": "dim",
    "changed": "yellow",
    "unchanged": "green",
}
_ORDER: Final = (
    "unreachable", "refused", "failed", "interrupted", "reverted", "running", "waiting", "changed",
    "unchanged",
)  # fmt: skip


def cell(stage: Passage | None, now: float, *, compact: bool) -> Text:
    """Return the cell of one stage of one host."""
    if stage is None:
        return Text("")
    mark, style = MARKS[stage.status]
    seconds = stage.seconds_at(now if stage.status == "running" else stage.ended)
    long = seconds >= SECONDS_FROM and not compact
    return Text(f"{mark} {brief(seconds)}" if long else mark, style=style)


def brief(seconds: float) -> str:
    """Return a duration in five characters at most: ``42s``, ``3m05``, ``2h07``."""
    whole = int(seconds + 0.5)
    if whole < 100:
        return f"{whole}s"
    return f"{whole // 60}m{whole % 60:02d}" if whole < 6000 else f"{whole // 3600}h{whole % 3600 // 60:02d}"


def picked(run: Run, room: int) -> tuple[list[Host], list[Host]]:
    """Return the hosts to show, in the order of the run, and those that don't fit.

    Failed and busy hosts come before finished ones.
    """
    hosts = list(run.hosts.values())
    if len(hosts) <= room:
        return hosts, []
    ranked = sorted(hosts, key=lambda host: _ORDER.index(run.verdict_of(host)))
    chosen = {host.name for host in ranked[: max(1, room)]}
    return [host for host in hosts if host.name in chosen], [
        host for host in hosts if host.name not in chosen
    ]


def hosts_table(run: Run, hosts: Sequence[Host], stages: Sequence[str], now: float, width: int) -> Table:
    """Return the table of hosts and stages."""
    names = max([len(host.name) for host in hosts] or [4])
    compact = (width - names - 14) < COMPACT_BELOW * len(stages)
    table = Table(show_edge=False, pad_edge=False, header_style="bold", box=None, padding=(0, 1))
    table.add_column("host", no_wrap=True)
    for stage in stages:
        table.add_column(label_of(stage), no_wrap=True, justify="left")
    table.add_column("", no_wrap=True)
    for host in hosts:
        verdict = run.verdict_of(host)
        table.add_row(
            escape(host.name),
            *(cell(host.stages.get(stage), now, compact=compact) for stage in stages),
            Text(verdict, style=VERDICTS[verdict]),
        )
    return table


def others_line(run: Run, hosts: Sequence[Host]) -> Text:
    """Return one line for the hosts that don't fit."""
    verdicts = [run.verdict_of(host) for host in hosts]
    counts = ", ".join(f"{verdicts.count(name)} {name}" for name in _ORDER if name in verdicts)
    return Text(f"and {len(hosts)} more: {counts}", style="dim")


def progress_table(run: Run, limit: int) -> Table | None:
    """Return progress bars of long work: pulls of weights, engines that load."""
    going = [host.progress for host in run.hosts.values() if host.progress]
    if not going:
        return None
    table = Table.grid(padding=(0, 2))
    for one in going[:limit]:
        bar: RenderableType = (
            ProgressBar(total=1.0, completed=one.share, width=24) if one.share is not None else ""
        )
        table.add_row(
            escape(one.host), escape(f"{one.what} {one.name}"), bar, Text(one.text, overflow="ellipsis")
        )
    if len(going) > limit:
        table.add_row("", Text(f"and {len(going) - limit} more", style="dim"), "", "")
    return table


def failure_lines(failures: Sequence[Failure], limit: int) -> list[Text]:
    """Return the last failures, one line each."""
    return [
        Text(f"✗ {one.who}: {one.task}: {one.lines[0]}", style="red", overflow="ellipsis", no_wrap=True)
        for one in failures[-limit:]
    ]


def columns_of(run: Run, expected: Sequence[str]) -> list[str]:
    """Return the stages to show as columns: the expected ones, and others that occurred."""
    seen = set(run.seen_stages()) | set(expected)
    return [stage.value for stage in Stage if stage in seen]


class Moving(Live):
    """Rich's live display, which asks for its contents at each refresh."""

    def __init__(self, picture: Callable[[], RenderableType], console: Console) -> None:
        self.picture = picture
        super().__init__(
            console=console, refresh_per_second=REFRESHES, redirect_stdout=False, redirect_stderr=False
        )

    def get_renderable(self) -> RenderableType:
        """Return the current display."""
        return self.picture()


class View:
    """Shows a run on a terminal."""

    def __init__(
        self,
        title: str,
        expected: Sequence[str] = (),
        history: History | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.title = title
        self.expected = tuple(expected)
        self.history = history
        self.console = console or Console()
        self.clock = clock
        self.run = Run()
        self.notes: list[str] = []
        self.over = False
        self.live = Moving(self.picture, self.console)

    def start(self) -> None:
        """Take over the terminal."""
        self.live.start()

    def update(self, record: Record, run: Run) -> None:
        """Store the state; the next refresh shows it."""
        self.run = run

    def note(self, text: str) -> None:
        """Print a line above the view."""
        self.live.console.print(text, highlight=False, markup=False)

    def finish(self, run: Run) -> None:
        """Leave the final display on the terminal."""
        self.run, self.over = run, True
        self.live.stop()

    def header(self, now: float) -> Text:
        """Return the current task, its duration, and the time left."""
        run = self.run
        text = Text(self.title, style="bold")
        text.append(f"  {spell(max(0.0, now - run.began) if run.began else 0.0)}", style="default")
        left = self.history.left(run.steps, now) if self.history and not self.over else None
        if left is not None:
            text.append(f", about {spell(left)} left, judging by the last run", style="dim")
        if run.stopping and not self.over:
            text.append(f"  stopping {run.stopping}", style="bold yellow")
        return text

    def picture(self) -> RenderableType:
        """Return everything, as it is now."""
        run, now = self.run, (self.run.latest if self.over else self.clock())
        progress = None if self.over else progress_table(run, 6)
        failures = failure_lines(run.failures, 5)
        fixed = 6 + len(failures) + (progress.row_count + 1 if progress else 0)
        # The final display is complete.
        room = len(run.hosts) if self.over else max(3, self.console.height - fixed)
        hosts, others = picked(run, room)
        parts: list[RenderableType] = [self.header(now), Text("")]
        parts.append(hosts_table(run, hosts, columns_of(run, self.expected), now, self.console.width))
        if others:
            parts.append(others_line(run, others))
        if progress:
            parts += [Text(""), progress]
        if not self.over and run.task:
            where = f"{run.stage}: " if run.stage else ""
            parts += [Text(""), Text(f"{where}{run.task}", style="cyan", no_wrap=True, overflow="ellipsis")]
        return Group(*parts, *failures)

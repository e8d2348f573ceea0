"""The state of a fleet as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from minimax_metal.common.durations import spell

PLAIN_WIDTH: Final = 150
"""Width of the table without a terminal."""
STYLES: Final[dict[str, str]] = {
    "ready": "green",
    "starting": "cyan",
    "stopping": "cyan",
    "troubled": "bold yellow",
    "silent": "bold yellow",
    "failed": "bold red",
    "stopped": "dim",
    "unreachable": "bold red",
    "bare": "dim",
    "unclear": "bold red",
    "unreadable": "bold red",
}


def _load(instance: Mapping[str, Any]) -> str:
    if instance.get("running") is None:
        return "-"
    waiting = instance.get("waiting") or 0
    return f"{instance['running']} + {waiting} waiting" if waiting else str(instance["running"])


def _uptime(instance: Mapping[str, Any]) -> str:
    seconds = instance.get("seconds")
    return spell(seconds) if seconds else "-"


def _release(host: Mapping[str, Any]) -> str:
    release = host.get("release")
    # Text from the host: an invalid release number must not push the other columns away.
    return f"{str(release.get('number', '?'))[:6]} {str(release.get('digest', '?'))[:7]}" if release else "-"


def rows(host: Mapping[str, Any]) -> list[list[Text | str]]:
    """Return the rows of one host, one per instance; a single one if it has none or could not be reached."""
    name = str(host["host"])
    if host["state"] != "known":
        state = Text(host["state"], style=STYLES.get(host["state"], ""))
        return [[name, "-", "-", "-", "-", state, "-", "-", Text(str(host.get("why", "")), style="dim")]]
    applied = host["applied"]
    model = " ".join(str(one) for one in (applied.get("model"), applied.get("format")) if one)
    notes = [*host.get("drift", [])]
    lock, rollout = host.get("lock"), host.get("rollout")
    if lock:
        notes.append(f"locked by {lock.get('user')}@{lock.get('controller')} since {lock.get('time')}")
    if rollout and not rollout.get("ended"):
        notes.append(f"{rollout.get('kind', 'rollout')} not finished, at {rollout.get('stage')}")
    engine = applied.get("engine") or "-"
    found: list[list[Text | str]] = []
    for instance in host["instances"] or [{"instance": "", "health": "stopped"}]:
        health = Text(instance["health"], style=STYLES.get(instance["health"], ""))
        if instance.get("restarts"):
            health.append(f", restarted {instance['restarts']} times", style="yellow")
        said = str(instance.get("status") or "")
        extra = [said] if instance["health"] in {"starting", "troubled", "failed"} and said else []
        found.append(
            [
                name if len(host["instances"]) < 2 else f"{name} {instance['instance']}",
                model or "-",
                _release(host),
                engine,
                str(host.get("driver") or "-"),
                health,
                _load(instance),
                _uptime(instance),
                Text("; ".join([*extra, *notes]), style="yellow"),
            ]
        )
        notes = []
    return found


def table(hosts: Sequence[Mapping[str, Any]]) -> Table:
    """Return one row for each instance."""
    made = Table(show_edge=False, pad_edge=False, header_style="bold", box=None, padding=(0, 1))
    for head in ("host", "model", "release", "engine", "driver", "health", "load", "up"):
        made.add_column(head, no_wrap=head != "health")
    made.add_column("drift", overflow="fold")
    for host in hosts:
        for row in rows(host):
            # Not as rich's markup: a host that sends "[/x]" would break the whole table.
            made.add_row(*(one if isinstance(one, Text) else Text(one) for one in row))
    return made


def summary(hosts: Sequence[Mapping[str, Any]]) -> str:
    """Return one line: the number of hosts, and of each kind."""
    words = [
        host["state"]
        if host["state"] != "known"
        else next((one["health"] for one in host["instances"] if one["health"] != "ready"), "ready")
        if host["instances"]
        else "stopped"
        for host in hosts
    ]
    counts = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    drifting = sum(bool(host.get("drift")) for host in hosts)
    return f"{len(hosts)} host{'s' if len(hosts) != 1 else ''}: {counts}" + (
        f"; {drifting} drifted from the inventory" if drifting else ""
    )


def show(hosts: Sequence[Mapping[str, Any]], console: Console | None = None) -> None:
    """Print the table and the line below it."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH, file=console.file)
    console.print(table(hosts))
    for host in hosts:
        if host.get("remedy"):
            console.print(Text(f"{host['host']}: {host['remedy']}"), soft_wrap=True)
    console.print(Text(summary(hosts), style="bold"))

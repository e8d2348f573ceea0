"""Plans as people like to read them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from minimax_metal.plan.compare import rows_of
from minimax_metal.plan.model import Plan


def tokens(number: int | None) -> str:
    """A number of tokens in words: 443794 is "444 K", 3106530 "3.11 M"; none is "not known"."""
    if number is None:
        return "not known"
    if number >= 1_000_000:
        return f"{number / 1e6:.2f} M"
    return f"{number / 1e3:.0f} K" if number >= 10_000 else str(number)


def _capacity(number: int | None) -> str:
    return "not known" if number is None else f"{tokens(number)} tokens in all"


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:.0f} GB"


def _verdict(plan: Plan) -> str:
    if not plan.fits:
        return "[bold red]refused[/]"
    # Which format was taken is worth a line, not worth a worry.
    worries = [notice for notice in plan.warnings if notice.code != "format-chosen"]
    return "[yellow]fits, with warnings[/]" if worries else "[green]fits[/]"


def _fleet(plans: Sequence[Plan]) -> Table:
    table = Table(header_style="bold", show_edge=False, pad_edge=False)
    for name in ("host", "model", "GPUs", "verdict", "tp/ep", "KV tokens", "engine, driver, CUDA"):
        table.add_column(name, no_wrap=not name.startswith("engine"))
    for plan in plans:
        spread = plan.parallelism
        shape = f"{spread.tp}/{spread.ep}" if spread else "-"
        if spread and spread.replicas > 1:
            shape = f"{spread.replicas} x {shape}"
        stack = [
            plan.engine.release if plan.engine else "-",
            plan.driver.branch if plan.driver else "-",
            plan.cuda.version if plan.cuda else "-",
        ]
        table.add_row(
            escape(plan.host),
            f"{plan.model.name} {plan.model.format}" if plan.model else "-",
            f"{plan.gpus.count} x {escape(plan.gpus.model)}" if plan.gpus else "-",
            _verdict(plan).replace("fits, with warnings", "fits (!)"),
            shape,
            tokens(plan.capacity.kv_tokens) if plan.capacity and plan.fits else "-",
            ", ".join(stack),
        )
    return table


def _details(plan: Plan) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("verdict", _verdict(plan))
    if plan.model:
        where = ", ".join(f"{source.kind}" for source in plan.weights.sources) if plan.weights else ""
        table.add_row(
            "model",
            f"{plan.model.name} {plan.model.format}, {_gigabytes(plan.model.bytes)} to download from {where} "
            f"at revision {plan.model.revision[:12]}, licence {plan.model.licence}",
        )
    if plan.gpus:
        table.add_row(
            "GPUs",
            f"{plan.gpus.count} x {escape(plan.gpus.model)}, {plan.gpus.memory_bytes / 2**30:.1f} GiB each"
            f"{', NVSwitch' if plan.gpus.nvswitch else ''}",
        )
    if plan.parallelism:
        spread = plan.parallelism
        table.add_row("spread", f"tp {spread.tp}, ep {spread.ep}, {spread.replicas} replica(s)")
    if plan.capacity and plan.fits:
        table.add_row(
            "KV cache",
            f"{_capacity(plan.capacity.kv_tokens)}, {plan.capacity.max_sequence:,} in one sequence",
        )
    if plan.fits and len(plan.layouts) > 1:
        rows = [
            f"{one.name}: {one.replicas} x tp {one.tp} ep {one.ep}, {_capacity(one.kv_tokens)}"
            if one.fits
            else f"{one.name}: does not fit"
            for one in plan.layouts
        ]
        table.add_row("layouts", "; ".join(rows))
    if plan.limits and plan.fits and plan.limits.max_running_requests:
        table.add_row(
            "requests",
            f"{plan.limits.max_running_requests} at a time per replica, {plan.limits.max_queued_requests} "
            f"may wait, gateway weight {plan.limits.weight}",
        )
    if plan.engine:
        kind = ", managed by uv" if plan.engine.managed_python else ""
        table.add_row("engine", f"SGLang {plan.engine.release} on Python {plan.engine.python}{kind}")
    if plan.driver and plan.cuda:
        kind = "open" if plan.driver.open_modules else "proprietary"
        table.add_row(
            "driver",
            f"branch {plan.driver.branch}, {kind} kernel modules, CUDA {plan.cuda.version}"
            f"{', fabric manager' if plan.driver.fabric_manager else ''}",
        )
    return table


def show_comparison(hosts: Mapping[str, Mapping[str, Plan]], console: Console | None = None) -> None:
    """Print a table for each host, one column a profile, and what is said of any of them below."""
    console = console or Console(highlight=False)
    for host, plans in hosts.items():
        table = Table(title=Text(host), header_style="bold", show_edge=False, pad_edge=False)
        table.add_column("", overflow="fold")
        for profile in plans:
            table.add_column(profile, overflow="fold")
        for what, texts in rows_of(plans):
            table.add_row(Text(what), *(Text(texts[profile]) for profile in plans))
        console.print(table)
        lines: dict[str, list[str]] = {}
        for profile, one in plans.items():
            for refusal in one.refusals:
                lines.setdefault(f"refused  {refusal.line(host)}", []).append(profile)
            for notice in one.warnings:
                lines.setdefault(f"warning  {notice.code}: {notice.message}", []).append(profile)
        for line, said in lines.items():
            console.print(Text(f"{line} [{', '.join(said)}]"), soft_wrap=True)


def show(plans: Sequence[Plan], console: Console | None = None) -> None:
    """Print the plans: one in detail, several as a table, and every reason and warning below."""
    console = console or Console(highlight=False)
    console.print(_details(plans[0]) if len(plans) == 1 else _fleet(plans))
    for plan in plans:
        for refusal in plan.refusals:
            console.print(Text("refused  ", style="bold red") + Text(refusal.line(plan.host)), soft_wrap=True)
        for refusal in plan.accepted:
            console.print(Text("lifted   ", style="yellow") + Text(refusal.line(plan.host)), soft_wrap=True)
        for notice in plan.warnings:
            console.print(
                Text("warning  ", style="yellow") + Text(f"{plan.host}: {notice.code}: {notice.message}"),
                soft_wrap=True,
            )
    if len(plans) == 1 and plans[0].fits:
        for difference in plans[0].differences:
            line = f"{difference.what}: {difference.guide} -> {difference.here} ({difference.reason})"
            console.print(Text("differs  ", style="cyan") + Text(line), soft_wrap=True)
        for service in plans[0].services:
            console.print()
            console.print(Text(service.unit, style="bold"))
            console.print(Text("  " + shlex.join(service.argv)), soft_wrap=True)

"""Plans in readable form: with colours on a terminal, as plain lines for a file or a pipe.

The plain lines are not wrapped and don't need rich: its import takes a quarter of a what-if's time.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from minimax_metal.plan.certificates import SAID
from minimax_metal.plan.compare import rows_of
from minimax_metal.plan.model import Plan

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS: Final = ("host", "model", "GPUs", "verdict", "tp/ep", "KV tokens", "engine, driver, CUDA")
_STYLES: Final = {
    "refused": "bold red", "fits, with warnings": "yellow", "fits (!)": "yellow", "fits": "green",
}  # fmt: skip
"""Style of a verdict, also used in the fleet's table."""


def tokens(number: int | None) -> str:
    """Return a readable number of tokens: 443794 is "444 K", 3106530 "3.11 M"; None is "not known"."""
    if number is None:
        return "not known"
    if number >= 1_000_000:
        return f"{number / 1e6:.2f} M"
    return f"{number / 1e3:.0f} K" if number >= 10_000 else str(number)


def _capacity(number: int | None) -> str:
    return "not known" if number is None else f"{tokens(number)} tokens in total"


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:.0f} GB"


def _verdict(plan: Plan) -> str:
    if not plan.fits:
        return "refused"
    # The chosen format is worth a line, but no warning.
    worries = [notice for notice in plan.warnings if notice.code not in {"format-chosen", SAID}]
    return "fits, with warnings" if worries else "fits"


def _fleet(plans: Sequence[Plan]) -> Iterator[tuple[str, ...]]:
    """The columns of each plan, as :data:`COLUMNS` names them."""
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
        yield (
            plan.host,
            f"{plan.model.name} {plan.model.format}" if plan.model else "-",
            f"{plan.gpus.count} x {plan.gpus.model}" if plan.gpus else "-",
            _verdict(plan).replace("fits, with warnings", "fits (!)"),
            shape,
            tokens(plan.capacity.kv_tokens) if plan.capacity and plan.fits else "-",
            ", ".join(stack),
        )


def _details(plan: Plan) -> Iterator[tuple[str, str]]:
    """Return what is printed about one plan, each with its label."""
    yield ("verdict", _verdict(plan))
    if plan.model:
        where = ", ".join(f"{source.kind}" for source in plan.weights.sources) if plan.weights else ""
        yield (
            "model",
            f"{plan.model.name} {plan.model.format}, {_gigabytes(plan.model.bytes)} to download from {where} "
            f"at revision {plan.model.revision[:12]}, licence {plan.model.licence}",
        )
    if plan.gpus:
        yield (
            "GPUs",
            f"{plan.gpus.count} x {plan.gpus.model}, {plan.gpus.memory_bytes / 2**30:.1f} GiB each"
            f"{', NVSwitch' if plan.gpus.nvswitch else ''}",
        )
    if plan.parallelism:
        spread = plan.parallelism
        yield ("spread", f"tp {spread.tp}, ep {spread.ep}, {spread.replicas} replica(s)")
    if plan.capacity and plan.fits:
        yield (
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
        yield ("layouts", "; ".join(rows))
    if plan.limits and plan.fits and plan.limits.max_running_requests:
        yield (
            "requests",
            f"{plan.limits.max_running_requests} at a time per replica, {plan.limits.max_queued_requests} "
            f"may wait, gateway weight {plan.limits.weight}",
        )
    if plan.engine:
        kind = ", managed by uv" if plan.engine.managed_python else ""
        yield ("engine", f"SGLang {plan.engine.release} on Python {plan.engine.python}{kind}")
    if plan.driver and plan.cuda:
        kind = "open" if plan.driver.open_modules else "proprietary"
        yield (
            "driver",
            f"branch {plan.driver.branch}, {kind} kernel modules, CUDA {plan.cuda.version}"
            f"{', fabric manager' if plan.driver.fabric_manager else ''}",
        )


def show_comparison(hosts: Mapping[str, Mapping[str, Plan]], console: Console | None = None) -> None:
    """Print a table for each host, one column per profile, and all notices below."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

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


def _remarks(plans: Sequence[Plan]) -> Iterator[tuple[str, str, str]]:
    """Return every refusal, warning and deviation from the guide: word, style of the word, line."""
    for plan in plans:
        for refusal in plan.refusals:
            yield "refused  ", "bold red", refusal.line(plan.host)
        for refusal in plan.accepted:
            yield "lifted   ", "yellow", refusal.line(plan.host)
        for notice in plan.warnings:
            word = "note     " if notice.code == SAID else "warning  "
            yield word, "yellow", f"{plan.host}: {notice.code}: {notice.message}"
    if len(plans) == 1 and plans[0].fits:
        for one in plans[0].differences:
            yield "differs  ", "cyan", f"{one.what}: {one.guide} -> {one.here} ({one.reason})"


def show(plans: Sequence[Plan], console: Console | None = None) -> None:
    """Print the plans: one in detail, several as a table, and all refusals and warnings below.

    Args:
        plans: of one host or several.
        console: destination; by default standard output, with colours if that is a terminal or
            ``FORCE_COLOR`` is set, as in rich.
    """
    if console is not None or sys.stdout.isatty() or os.environ.get("FORCE_COLOR"):
        _show_on(console, plans)
        return
    rows = list(_details(plans[0]) if len(plans) == 1 else [COLUMNS, *_fleet(plans)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())
    for word, _, line in _remarks(plans):
        print(f"{word}{line}")
    for service in plans[0].services if len(plans) == 1 and plans[0].fits else ():
        print(f"\n{service.unit}\n  {shlex.join(service.argv)}")


def _show_on(console: Console | None, plans: Sequence[Plan]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console(highlight=False)
    if len(plans) == 1:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        rows: list[tuple[str, ...]] = list(_details(plans[0]))
    else:
        table = Table(header_style="bold", show_edge=False, pad_edge=False)
        for name in COLUMNS:
            table.add_column(name, no_wrap=not name.startswith("engine"))
        rows = list(_fleet(plans))
    for row in rows:
        # No markup: a host's or a GPU's name may contain brackets.
        table.add_row(*(Text(text, style=_STYLES.get(text, "")) for text in row))
    console.print(table)
    for word, style, line in _remarks(plans):
        console.print(Text(word, style=style) + Text(line), soft_wrap=True)
    if len(plans) == 1 and plans[0].fits:
        for service in plans[0].services:
            console.print()
            console.print(Text(service.unit, style="bold"))
            console.print(Text("  " + shlex.join(service.argv)), soft_wrap=True)

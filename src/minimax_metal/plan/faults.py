"""Known faults in the catalogue that affect a plan. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from minimax_metal.catalog import Checkpoint
from minimax_metal.catalog.schema import Fault, FaultPlace
from minimax_metal.plan.findings import Findings
from minimax_metal.plan.flags import arguments_of
from minimax_metal.plan.host import Board
from minimax_metal.plan.model import ParallelismPlan
from minimax_metal.plan.settings import Settings
from minimax_metal.plan.versions import version_key

DEFAULT = "default"
"""Value of a flag that is not set."""
ANY = "any"
"""Stands for any value of a flag that is set."""


def _holds(
    where: FaultPlace,
    checkpoint: Checkpoint,
    board: Board,
    release: str,
    spread: ParallelismPlan | None,
    given: Mapping[str, str],
) -> bool:
    for wanted, value in (
        (where.families, checkpoint.family),
        (where.models, checkpoint.name),
        (where.formats, checkpoint.format),
        (where.gpus, board.label),
        (where.capabilities, board.capability),
    ):
        if wanted and value not in wanted:
            return False
    for sizes, size in ((where.tp, spread and spread.tp), (where.ep, spread and spread.ep)):
        if sizes and size not in sizes:
            return False
    this = version_key(release)
    if where.engine_from and this < version_key(where.engine_from):
        return False
    if where.engine_before and this >= version_key(where.engine_before):
        return False
    return all(_meant(given.get(flag), values) for flag, values in where.arguments.items())


def _meant(value: str | None, values: Sequence[str]) -> bool:
    return DEFAULT in values if value is None else value in values or ANY in values


def asked(settings: Settings) -> dict[str, str]:
    """Return the flags that settings lead to, as far as known before there is a launch command."""
    dtype = {} if settings.kv_cache_dtype == "auto" else {"--kv-cache-dtype": settings.kv_cache_dtype}
    return dtype | arguments_of(settings.engine_extra_args)


def forbidden(
    faults: Mapping[str, Fault],
    checkpoint: Checkpoint,
    board: Board,
    release: str,
    spread: ParallelismPlan | None,
    given: Mapping[str, str],
) -> bool:
    """Return whether a fault of severity ``refusal`` affects a launch with these flags, by name."""
    return any(
        one.severity == "refusal" and _holds(one.where, checkpoint, board, release, spread, given)
        for one in faults.values()
    )


def is_sound(
    faults: Mapping[str, Fault],
    checkpoint: Checkpoint,
    board: Board,
    release: str,
    spread: ParallelismPlan,
    given: Mapping[str, str],
) -> bool:
    """Return whether a launch with these flags, by name, meets no known fault."""
    return not any(_holds(one.where, checkpoint, board, release, spread, given) for one in faults.values())


def check_faults(
    faults: Mapping[str, Fault],
    checkpoint: Checkpoint,
    board: Board,
    release: str,
    spread: ParallelismPlan | None,
    argv: Sequence[str],
    found: Findings,
) -> None:
    """Report the known faults that affect this plan: each by its code, with a workaround and the source."""
    given = arguments_of(argv)
    for fault in faults.values():
        if not _holds(fault.where, checkpoint, board, release, spread, given):
            continue
        code = fault.code or f"fault-{fault.name}"
        if fault.severity == "refusal":
            found.refuse(code, f"{fault.what} ({fault.source})", "a plan that is not affected", fault.instead)
        else:
            found.warn(code, f"{fault.what} ({fault.source}); {fault.instead}")

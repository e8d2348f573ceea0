"""Known faults of the catalogue that a plan would meet. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from minimax_metal.catalog import Checkpoint
from minimax_metal.catalog.schema import Fault, FaultPlace
from minimax_metal.plan.findings import Findings
from minimax_metal.plan.flags import arguments_of
from minimax_metal.plan.host import Board
from minimax_metal.plan.model import ParallelismPlan
from minimax_metal.plan.versions import version_key

DEFAULT = "default"
"""Value of a flag that is not set."""


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
    return all(given.get(flag, DEFAULT) in values for flag, values in where.arguments.items())


def is_sound(
    faults: Mapping[str, Fault],
    checkpoint: Checkpoint,
    board: Board,
    release: str,
    spread: ParallelismPlan,
    given: Mapping[str, str],
) -> bool:
    """Whether a launch with these flags, by name, meets no known fault."""
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
    """Say which known faults this plan meets: each by its code, with what to use instead and the source."""
    given = arguments_of(argv)
    for fault in faults.values():
        if not _holds(fault.where, checkpoint, board, release, spread, given):
            continue
        code = f"fault-{fault.name}"
        if fault.severity == "refusal":
            found.refuse(code, f"{fault.what} ({fault.source})", "a plan without it", fault.instead)
        else:
            found.warn(code, f"{fault.what} ({fault.source}); {fault.instead}")

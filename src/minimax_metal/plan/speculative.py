"""Speculative decoding with the draft that comes with a checkpoint (``metal_speculative_draft``)."""

from __future__ import annotations

from minimax_metal.catalog import Checkpoint
from minimax_metal.plan.findings import Findings
from minimax_metal.plan.flags import arguments_of
from minimax_metal.plan.host import Board
from minimax_metal.plan.settings import Settings

ALGORITHM = "--speculative-algorithm"
STAGES = ("--pp-size", "--pipeline-parallel-size")
"""Pipeline parallelism, by both names that the engine's parser takes."""


def wants_draft(settings: Settings, checkpoint: Checkpoint) -> bool:
    """Whether the bundled draft is asked for, by its setting or by the flag that starts it."""
    if settings.speculative_draft:
        return True
    draft = checkpoint.draft
    return draft is not None and _algorithm(settings) == draft.arguments[-1]


def _algorithm(settings: Settings) -> str | None:
    """The algorithm of the user's own flags."""
    return arguments_of(settings.engine_extra_args).get(ALGORITHM)


def check_draft(settings: Settings, checkpoint: Checkpoint, board: Board, found: Findings) -> None:
    """Refuse the draft where there is none, and any algorithm where the engine does not take it."""
    draft, algorithm = checkpoint.draft, _algorithm(settings)
    remedy = f"leave metal_speculative_draft and {ALGORITHM} out"
    if draft is None:
        if settings.speculative_draft:
            found.refuse(
                "speculative",
                f"metal_speculative_draft for {checkpoint.name} {checkpoint.format}, "
                "which comes with no draft",
                "a checkpoint that comes with one",
                remedy,
            )
        return
    if not settings.speculative_draft and algorithm is None:
        return
    given = arguments_of(settings.engine_extra_args)
    stages = next((given[flag] for flag in STAGES if flag in given), "1")
    if algorithm is not None and algorithm not in draft.algorithms:
        found.refuse(
            "speculative",
            f"{ALGORITHM} {algorithm} for {checkpoint.name} {checkpoint.format}",
            f"{' or '.join(draft.algorithms)}: SGLang refuses others for it",
            remedy,
        )
    elif board.capability not in draft.generations:
        found.refuse(
            "speculative",
            f"the draft of {checkpoint.name} on {board.label} (compute capability {board.capability})",
            f"compute capability {' or '.join(draft.generations)}: SGLang wants {draft.constraints}",
            remedy,
        )
    elif stages != "1":
        found.refuse(
            "speculative",
            f"the draft of {checkpoint.name} with {stages} pipeline stages",
            f"one: SGLang wants {draft.constraints}",
            f"{remedy}, or take {' and '.join(STAGES)} out of metal_engine_extra_args",
        )
    else:
        found.warn(
            "speculative-unproven",
            f"speculative decoding with {draft.directory}/ was never run by this project; SGLang wants "
            f"{draft.constraints}",
        )


def draft_arguments(settings: Settings, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Flags of the draft, where its setting asks for it."""
    return checkpoint.draft.arguments if settings.speculative_draft and checkpoint.draft else ()


def draft_environment(settings: Settings, checkpoint: Checkpoint) -> dict[str, str]:
    """Environment of the unit that the draft wants."""
    wanted = checkpoint.draft is not None and wants_draft(settings, checkpoint)
    return dict(checkpoint.draft.environment) if wanted and checkpoint.draft else {}


def draft_bytes(settings: Settings, checkpoint: Checkpoint) -> int:
    """Memory of its weights, on all GPUs of one replica together."""
    wanted = checkpoint.draft is not None and wants_draft(settings, checkpoint)
    return checkpoint.draft.bytes.value if wanted and checkpoint.draft else 0

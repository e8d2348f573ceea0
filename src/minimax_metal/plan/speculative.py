"""Speculative decoding with the draft that comes with a checkpoint (``metal_speculative_draft``)."""

from __future__ import annotations

from minimax_metal.catalog import Checkpoint
from minimax_metal.plan.findings import Findings
from minimax_metal.plan.host import Board
from minimax_metal.plan.settings import Settings

ALGORITHM = "--speculative-algorithm"


def wants_draft(settings: Settings, checkpoint: Checkpoint) -> bool:
    """Whether the bundled draft is asked for, by its setting or by the flag that starts it."""
    if settings.speculative_draft:
        return True
    words = [part for word in settings.engine_extra_args for part in word.split("=", 1)]
    draft = checkpoint.draft
    return draft is not None and ALGORITHM in words and draft.arguments[-1] in words


def check_draft(settings: Settings, checkpoint: Checkpoint, board: Board, found: Findings) -> None:
    """Refuse the draft where there is none, or where the engine does not take it."""
    if not wants_draft(settings, checkpoint):
        return
    draft = checkpoint.draft
    remedy = f"leave metal_speculative_draft and {ALGORITHM} out"
    if draft is None:
        found.refuse(
            "speculative",
            f"metal_speculative_draft for {checkpoint.name} {checkpoint.format}, which comes with no draft",
            "a checkpoint that comes with one",
            remedy,
        )
    elif board.capability not in draft.generations:
        found.refuse(
            "speculative",
            f"the draft of {checkpoint.name} on {board.label} (compute capability {board.capability})",
            f"compute capability {' or '.join(draft.generations)}: SGLang wants {draft.constraints}",
            remedy,
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

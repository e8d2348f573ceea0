"""Speculative decoding: with the draft that comes with a checkpoint, or with one from its own repository."""

from __future__ import annotations

from dataclasses import replace

from minimax_metal.catalog import Catalog, Checkpoint, EngineRelease
from minimax_metal.catalog.schema import SeparateDraft
from minimax_metal.plan.findings import Findings, near
from minimax_metal.plan.flags import arguments_of
from minimax_metal.plan.host import Board
from minimax_metal.plan.settings import Settings
from minimax_metal.plan.versions import version_key

ALGORITHM = "--speculative-algorithm"
STAGES = ("--pp-size", "--pipeline-parallel-size")
"""Pipeline parallelism, by both names that the engine's parser accepts."""
DRAFT_PATH = "--speculative-draft-model-path"


def with_draft(settings: Settings, catalog: Catalog, found: Findings) -> Settings:
    """Return the settings with the catalogue's entry of ``metal_speculative_draft_model``, by name or
    repository.
    """
    wanted = settings.speculative_draft_model
    if not wanted:
        return settings
    for draft in catalog.drafts.values():
        names = {draft.name.casefold(), *(one.casefold() for one in draft.repositories.values())}
        if wanted.casefold() in names:
            return replace(settings, draft=draft)
    found.refuse(
        "speculative",
        f"metal_speculative_draft_model {wanted}",
        f"a draft from the catalogue: {', '.join(catalog.drafts) or 'none'}",
        f"{near(wanted, catalog.drafts)} (or add it with metal_catalog_overlay, under drafts:)",
    )
    return settings


def wants_draft(settings: Settings, checkpoint: Checkpoint) -> bool:
    """Return whether the bundled draft is requested, by its setting or by the flag that starts it."""
    if settings.speculative_draft:
        return True
    draft = checkpoint.draft
    return draft is not None and _algorithm(settings) == draft.arguments[-1]


def _algorithm(settings: Settings) -> str | None:
    """Return the algorithm in the user's flags."""
    return arguments_of(settings.engine_extra_args).get(ALGORITHM)


def _stages(settings: Settings) -> str:
    given = arguments_of(settings.engine_extra_args)
    return next((given[flag] for flag in STAGES if flag in given), "1")


def draft_revision(settings: Settings, draft: SeparateDraft) -> str | None:
    """Return the revision of a separate draft: the user's, else the catalogue's."""
    return settings.speculative_draft_revision or draft.revision


def draft_path(settings: Settings, draft: SeparateDraft) -> str:
    """Return its directory on the host."""
    revision = draft_revision(settings, draft)
    return f"{settings.weights_directory}/{draft.repositories['huggingface']}/{revision}"


def check_draft(
    settings: Settings, checkpoint: Checkpoint, board: Board, release: EngineRelease | None, found: Findings
) -> None:
    """Refuse a draft if there is none, and an algorithm that the engine does not support."""
    if settings.draft:
        _check_separate(settings, settings.draft, checkpoint, board, release, found)
    draft, algorithm = checkpoint.draft, _algorithm(settings)
    remedy = f"remove metal_speculative_draft and {ALGORITHM}"
    if draft is None:
        if settings.speculative_draft:
            found.refuse(
                "speculative",
                f"metal_speculative_draft for {checkpoint.name} {checkpoint.format}, which comes "
                "without a draft",
                "a checkpoint that comes with a draft",
                remedy,
            )
        return
    if not settings.speculative_draft and algorithm is None:
        return
    stages = _stages(settings)
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
            f"compute capability {' or '.join(draft.generations)}: SGLang requires {draft.constraints}",
            remedy,
        )
    elif stages != "1":
        found.refuse(
            "speculative",
            f"the draft of {checkpoint.name} with {stages} pipeline stages",
            f"one: SGLang requires {draft.constraints}",
            f"{remedy}, or remove {' and '.join(STAGES)} from metal_engine_extra_args",
        )
    else:
        found.warn(
            "speculative-unproven",
            f"this project has never run speculative decoding with {draft.directory}/; SGLang "
            f"requires {draft.constraints}",
        )


def _check_separate(
    settings: Settings,
    draft: SeparateDraft,
    checkpoint: Checkpoint,
    board: Board,
    release: EngineRelease | None,
    found: Findings,
) -> None:
    """Check a draft from its own repository: model, GPU, engine, revision, another draft."""
    name = f"the draft {draft.name}"
    out = "remove metal_speculative_draft_model"
    if checkpoint.name not in draft.models:
        found.refuse(
            "speculative",
            f"{name} for {checkpoint.name}",
            f"{' or '.join(draft.models)}, on whose outputs it was trained ({draft.source})",
            out,
        )
    if board.capability not in draft.generations:
        found.refuse(
            "speculative",
            f"{name} on {board.label} (compute capability {board.capability})",
            f"compute capability {' or '.join(draft.generations)}: {draft.constraints}",
            out,
        )
    if release and version_key(release.release) < version_key(draft.minimum_engine):
        found.refuse(
            "speculative",
            f"{name} with SGLang {release.release}",
            f"{draft.minimum_engine} or newer ({draft.source})",
            f"remove metal_engine_release, or {out}",
        )
    if "DSPARK" in draft.arguments and (stages := _stages(settings)) != "1":
        found.refuse(
            "speculative",
            f"{name} with {stages} pipeline stages",
            f"one: {draft.constraints}",
            f"{out}, or remove {' and '.join(STAGES)} from metal_engine_extra_args",
        )
    if draft_revision(settings, draft) is None:
        found.refuse(
            "speculative",
            f"{name}, for which no source gives a revision",
            "the revision that is pulled and served",
            f"set metal_speculative_draft_revision to a commit of {draft.repositories['huggingface']}",
        )
    if wants_draft(settings, checkpoint):
        found.refuse("speculative", f"{name} and the draft that comes with the checkpoint", "one draft", out)
    found.warn(
        "speculative-unproven",
        f"this project has never run speculative decoding with {draft.name}; {draft.constraints} "
        f"({draft.source})",
    )


def draft_arguments(settings: Settings, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the draft's flags, if a setting requests it; one without a revision has none."""
    if settings.draft and draft_revision(settings, settings.draft) is None:
        return ()
    if settings.draft:
        return (*settings.draft.arguments, DRAFT_PATH, draft_path(settings, settings.draft))
    return checkpoint.draft.arguments if settings.speculative_draft and checkpoint.draft else ()


def draft_environment(settings: Settings, checkpoint: Checkpoint) -> dict[str, str]:
    """Return the unit's environment that the draft needs."""
    if settings.draft:
        return dict(settings.draft.environment)
    wanted = checkpoint.draft is not None and wants_draft(settings, checkpoint)
    return dict(checkpoint.draft.environment) if wanted and checkpoint.draft else {}


def draft_bytes(settings: Settings, checkpoint: Checkpoint) -> int:
    """Return the memory of its weights, on all GPUs of one replica together."""
    if settings.draft:
        return settings.draft.bytes.value
    wanted = checkpoint.draft is not None and wants_draft(settings, checkpoint)
    return checkpoint.draft.bytes.value if wanted and checkpoint.draft else 0


def draft_kv_bytes(settings: Settings) -> int:
    """Return its KV cache per token, on all GPUs of one replica together; 0 if unknown."""
    figure = settings.draft.kv_bytes_per_token if settings.draft else None
    return figure.value if figure else 0

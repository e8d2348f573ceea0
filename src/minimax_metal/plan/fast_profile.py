"""``metal_profile: fast``: the published recipe for a model, a GPU and an aim, if there is one."""

from __future__ import annotations

from dataclasses import replace

from minimax_metal.catalog import Catalog, Checkpoint, EngineRelease
from minimax_metal.catalog.schema import Recipe
from minimax_metal.plan.findings import Findings
from minimax_metal.plan.fit import LAYOUTS
from minimax_metal.plan.host import Board
from minimax_metal.plan.settings import ChosenRecipe, Settings
from minimax_metal.plan.versions import version_key


def _ranks(settings: Settings, board: Board) -> int:
    """Return the GPUs of one replica, as the fit will choose them."""
    layout = LAYOUTS.get((settings.layout or "").casefold())
    replicas = layout[1] if layout and layout[0] == board.count else 1
    return settings.tp_size or board.count // replicas


def find_recipe(settings: Settings, checkpoint: Checkpoint, board: Board, catalog: Catalog) -> Recipe | None:
    """Return the first recipe published for exactly this combination, or None."""
    tp = _ranks(settings, board)
    for recipe in catalog.recipes.values():
        if (
            checkpoint.name in recipe.models
            and checkpoint.format in recipe.formats
            and board.label in recipe.gpus
            and tp in recipe.tp
            and settings.aim in recipe.aims
        ):
            return recipe
    return None


def known_in(since: str | None, before: str | None, release: str) -> bool:
    """Return whether an engine release is in the range, ``before`` excluded."""
    version = version_key(release)
    return (since is None or version_key(since) <= version) and (
        before is None or version < version_key(before)
    )


def with_recipe(
    settings: Settings,
    checkpoint: Checkpoint | None,
    board: Board | None,
    release: EngineRelease | None,
    catalog: Catalog,
    found: Findings,
) -> Settings:
    """Return the settings with the recipe's values where the user sets none, so that they affect the fit.

    What the engine release does not support is left out, with a notice. Without a recipe the settings stay
    unchanged, with a notice: the plan is then that of the default profile.
    """
    if settings.profile != "fast" or checkpoint is None or board is None or release is None:
        return settings
    recipe = find_recipe(settings, checkpoint, board, catalog)
    where = f"{checkpoint.name} {checkpoint.format} on {board.label}, tp {_ranks(settings, board)}"
    if recipe is None:
        found.warn(
            "fast-no-recipe",
            f"no published recipe for {where}, aim {settings.aim}: the default profile's settings are used",
        )
        return settings
    kept = tuple(one for one in recipe.args if known_in(one.since, one.before, release.release))
    variables = tuple(one for one in recipe.environment if known_in(one.since, one.before, release.release))
    for name, since, before in [
        *(
            (one.words[0], one.since, one.before)
            for one in recipe.args
            if one not in kept and one.instead not in {other.words[0] for other in kept}
        ),
        *((one.name, one.since, one.before) for one in recipe.environment if one not in variables),
    ]:
        span = ", ".join(filter(None, (since and f"from {since}", before and f"before {before}")))
        found.warn(
            "fast-left-out", f"{name} is left out: SGLang {release.release} does not have it (known {span})"
        )
    found.warn(
        "fast-unproven",
        f"metal_profile fast follows a published recipe ({recipe.source}, read {recipe.read}); "
        "this project has not run it on a GPU",
    )
    changed = {
        name: value
        for name, value in (
            ("mem_fraction_static", recipe.mem_fraction_static),
            ("kv_cache_dtype", recipe.kv_cache_dtype),
            ("ep_size", recipe.ep),
        )
        if value is not None and name not in settings.given
    }
    chosen = ChosenRecipe(
        source=recipe.source,
        words=tuple((one.words, one.source) for one in kept),
        environment=tuple((one.name, one.text, one.source) for one in variables),
        settings=tuple(sorted(changed)),
    )
    return replace(settings, recipe=chosen, **changed)  # type: ignore[arg-type]

"""Another model of the catalogue for a host on which the one asked for does not fit."""

from __future__ import annotations

import re
from dataclasses import replace

from minimax_metal.catalog import Catalog, Checkpoint, EngineRelease
from minimax_metal.plan.faults import asked, forbidden
from minimax_metal.plan.findings import Findings
from minimax_metal.plan.fit import check_generation, choose_format, find_fit
from minimax_metal.plan.host import Board
from minimax_metal.plan.settings import Settings
from minimax_metal.plan.stack import check_engine

CODES = frozenset({"memory", "format-gpu", "engine-kernels"})
"""Refusals that another model may not meet, beside those for known faults."""


def _elsewhere(code: str) -> bool:
    """Whether another model may not meet a refusal."""
    return code in CODES or code.startswith("fault-")


def _version(name: str) -> tuple[int, ...]:
    """The number in a model's name: (3, 1) of MiniMax-M3.1-Flash."""
    found = re.search(r"(\d+(?:\.\d+)*)", name)
    return tuple(int(part) for part in found.group(1).split(".")) if found else ()


def fitting_model(
    settings: Settings, checkpoint: Checkpoint, board: Board, release: EngineRelease | None, catalog: Catalog
) -> str | None:
    """The nearest other model that these GPUs and this engine serve, or none.

    Each is planned as the one asked for was, with its own format and spread. One of the same family comes
    first, then one that is proven on these GPUs, then the newest.
    """
    plain = replace(settings, model_format=None, model_revision=None, tp_size=None, ep_size=None, layout=None)
    plain = replace(plain, mem_fraction_static=None, kv_cache_dtype="auto", accept_refusals=(), draft=None)
    best: tuple[tuple[bool, bool, tuple[int, ...]], str] | None = None
    for name, formats in catalog.models.items():
        if name == checkpoint.name:
            continue
        trial = Findings()
        other = choose_format(plain, formats, board, trial)
        if other is None:
            continue
        fit = find_fit(plain, other, board, trial)
        check_generation(other, board, trial)
        if release:
            check_engine(other, release, trial)
        if fit is None or trial.refusals:
            continue
        newest = release.release if release else "0"
        if forbidden(catalog.faults, other, board, newest, fit.spread, asked(plain)):
            continue
        proven = board.capability in other.generations.proven
        rank = (other.family == checkpoint.family, proven, _version(name))
        if best is None or rank > best[0]:
            best = rank, name
    return best[1] if best else None


def name_alternative(
    settings: Settings,
    checkpoint: Checkpoint,
    board: Board,
    release: EngineRelease | None,
    catalog: Catalog,
    found: Findings,
) -> None:
    """Say in the remedy of a refusal which other model fits the host."""
    if not any(_elsewhere(refusal.code) for refusal in found.refusals):
        return
    name = fitting_model(settings, checkpoint, board, release, catalog)
    if name is None:
        return
    found.refusals = [
        replace(refusal, remedy=f"{refusal.remedy}; {name} fits this host (metal_model)")
        if _elsewhere(refusal.code)
        else refusal
        for refusal in found.refusals
    ]

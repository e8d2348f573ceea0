"""Alternatives to a model that does not fit: other hosts for the model, and another model for the host."""

from __future__ import annotations

import re
from dataclasses import replace

from minimax_metal.catalog import Catalog, Checkpoint, EngineRelease, Gpu
from minimax_metal.plan.faults import asked, forbidden
from minimax_metal.plan.findings import Findings
from minimax_metal.plan.fit import check_generation, choose_format, find_fit
from minimax_metal.plan.host import Board
from minimax_metal.plan.settings import Settings
from minimax_metal.plan.stack import check_engine

CODES = frozenset({"memory", "format-gpu", "engine-kernels"})
"""Refusals that another model may avoid, in addition to those for known faults."""
HOST_COUNTS = (4, 8)
"""GPU counts of hosts for these models."""
MOST_NAMED = 4
"""More kinds of hosts than this don't help in one line."""


def _elsewhere(code: str) -> bool:
    """Return whether another model may avoid a refusal."""
    return code in CODES or code.startswith("fault-")


def _version(name: str) -> tuple[int, ...]:
    """The number in a model's name: (3, 1) of MiniMax-M3.1-Flash."""
    found = re.search(r"(\d+(?:\.\d+)*)", name)
    return tuple(int(part) for part in found.group(1).split(".")) if found else ()


def _plain(settings: Settings) -> Settings:
    """Return the settings without the user's choices for this model and these GPUs."""
    plain = replace(settings, model_format=None, model_revision=None, tp_size=None, ep_size=None, layout=None)
    return replace(plain, mem_fraction_static=None, kv_cache_dtype="auto", accept_refusals=(), draft=None)


def _serves(
    plain: Settings,
    formats: dict[str, Checkpoint],
    board: Board,
    release: EngineRelease | None,
    catalog: Catalog,
) -> Checkpoint | None:
    """Return a format of a model that these GPUs and this engine serve without a refusal, or None."""
    trial = Findings()
    checkpoint = choose_format(plain, formats, board, trial)
    if checkpoint is None:
        return None
    fit = find_fit(plain, checkpoint, board, trial)
    check_generation(checkpoint, board, trial)
    if release:
        check_engine(checkpoint, release, trial)
    if fit is None or trial.refusals:
        return None
    newest = release.release if release else "0"
    if forbidden(catalog.faults, checkpoint, board, newest, fit.spread, asked(plain)):
        return None
    return checkpoint


def _host_counts(gpu: Gpu) -> tuple[int, ...]:
    """Return how many of a GPU a host has: a Grace CPU has one, and a tray of NVL72 four."""
    if gpu.architecture == "aarch64":
        return (4,) if gpu.nvlink == "nvl72" else ()
    return HOST_COUNTS


def fitting_hosts(
    settings: Settings,
    formats: dict[str, Checkpoint],
    like: Board,
    release: EngineRelease | None,
    catalog: Catalog,
) -> list[str]:
    """Return hosts that serve a model, such as "8 x H200", nearest to ``like`` first.

    Proven GPU generations come first, then GPUs of the generation of ``like``, then hosts with the least
    memory. Only hosts of 4 or 8 GPUs whose memory a source states, with the smaller number that suffices.
    """
    plain = _plain(settings)
    found: list[tuple[tuple[bool, bool, int], str]] = []
    for gpu in catalog.gpus.values():
        if gpu.memory_bytes is None:
            continue
        for count in _host_counts(gpu):
            board = Board(
                gpu=gpu,
                name=gpu.name,
                count=count,
                memory_bytes=gpu.memory_bytes.value,
                capability=gpu.compute_capability,
                indices=tuple(range(count)),
                nvswitch=count in gpu.nvswitch_counts,
            )
            if checkpoint := _serves(plain, formats, board, release, catalog):
                unproven = board.capability not in checkpoint.generations.proven
                other = board.capability != like.capability
                found.append(((unproven, other, count * board.memory_bytes), f"{count} x {gpu.name}"))
                break
    return [name for _, name in sorted(found)[:MOST_NAMED]]


def fitting_model(
    settings: Settings, checkpoint: Checkpoint, board: Board, release: EngineRelease | None, catalog: Catalog
) -> str | None:
    """Return the nearest other model that these GPUs and this engine serve, or None.

    Each is planned like the requested one, with its own format and spread. Models of the same family come
    first, then ones proven on these GPUs, then the newest.
    """
    plain = _plain(settings)
    best: tuple[tuple[bool, bool, tuple[int, ...]], str] | None = None
    for name, formats in catalog.models.items():
        if name == checkpoint.name:
            continue
        other = _serves(plain, formats, board, release, catalog)
        if other is None:
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
    """Add to a refusal's remedy which hosts the model fits, and which other model fits this host."""
    if not any(_elsewhere(refusal.code) for refusal in found.refusals):
        return
    remedies = []
    formats = catalog.models.get(checkpoint.name, {})
    if hosts := fitting_hosts(settings, formats, board, release, catalog):
        named = " or ".join((", ".join(hosts[:-1]), hosts[-1])) if hosts[1:] else hosts[0]
        remedies.append(f"{checkpoint.name} fits {named}")
    if name := fitting_model(settings, checkpoint, board, release, catalog):
        remedies.append(f"{name} fits this host (metal_model)")
    found.refusals = [
        replace(refusal, remedy="; ".join((refusal.remedy, *remedies)))
        if _elsewhere(refusal.code)
        else refusal
        for refusal in found.refusals
    ]

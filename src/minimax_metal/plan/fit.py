"""Whether a checkpoint fits a board, how it is spread, and how much KV cache that leaves.

Capacity is ``(GPUs * memory * mem_fraction_static - weights) / KV bytes per token``, in whole pages. The
engine takes the share of the memory that is free before it loads; the rest is for activations and CUDA graphs
(``_profile_available_bytes`` of ``mem_cache/kv_cache_configurator.py``, 0.5.23). The guides' 220 GB of
weights for M2, read as GiB, are 6 GiB more than the files contain, which covers the CUDA context of each GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from minimax_metal.catalog import Checkpoint
from minimax_metal.plan.findings import Findings, gib, near
from minimax_metal.plan.host import Board
from minimax_metal.plan.kv_room import GUIDE_MEM_FRACTION, bounded, cache_dtype, check_dtype, find_room, more
from minimax_metal.plan.model import CapacityPlan, LayoutPlan, LimitsPlan, ParallelismPlan
from minimax_metal.plan.settings import Settings

LAYOUTS = {"tp8": (8, 1), "2xtp4": (8, 2), "tp4": (4, 1)}
"""Layout to GPU count and replicas."""
LEAST_KV_TOKENS = 4096
"""A smaller KV cache is useless."""
MOST_REQUESTS = 256
"""With more running requests on one replica each is too slow."""


@dataclass(frozen=True)
class Fit:
    """How one checkpoint is placed on a board."""

    spread: ParallelismPlan
    capacity: CapacityPlan
    limits: LimitsPlan


def choose_format(
    settings: Settings,
    formats: dict[str, Checkpoint],
    board: Board | None,
    found: Findings,
    forbidden: Callable[[Checkpoint, ParallelismPlan], bool] = lambda _checkpoint, _spread: False,
) -> Checkpoint | None:
    """Return the requested format, or the one that fits the GPUs best.

    ``forbidden`` tells whether a known fault affects a checkpoint with a spread: such a format is used only
    if it is requested, or if nothing else fits.
    """
    if not formats:
        found.refuse(
            "format-unknown",
            f"model {settings.model} without a format",
            "one checkpoint format",
            "add one with metal_catalog_overlay",
        )
        return None
    if settings.model_format:
        wanted = settings.model_format.casefold()
        for name, checkpoint in formats.items():
            if name.casefold() == wanted:
                return checkpoint
        found.refuse(
            "format-unknown",
            f"metal_model_format {settings.model_format}",
            f"one of {', '.join(formats)}",
            near(settings.model_format, formats),
        )
        return None
    first = next(iter(formats.values()))
    default = formats.get(first.default_format or "", first)
    if board is None or len(formats) == 1:
        return default

    def rank(checkpoint: Checkpoint) -> tuple[int, int, bool]:
        """Sort proven and fitting formats first, then unproven and fitting ones, then by the publisher's
        preference.
        """
        trial = Findings()
        fit = find_fit(settings, checkpoint, board, trial)
        fits = fit is not None and not trial.refusals
        generations = checkpoint.generations
        evidence = 3 if board.capability in generations.proven else 2
        if board.capability not in (*generations.proven, *generations.unproven):
            evidence = 0
        elif fit is not None and forbidden(checkpoint, fit.spread):
            evidence = 1
        return (evidence if fits else 0), checkpoint.preference, checkpoint is default

    best = max(formats.values(), key=rank)
    if rank(best)[0]:
        found.warn(
            "format-chosen",
            f"format {best.format} chosen from {', '.join(formats)}: it fits {board.count} x "
            f"{board.label} best; set metal_model_format for another",
        )
        return best
    # Nothing fits: explain it for the smallest that these GPUs could run at all, else for the usual one.
    known = [
        one
        for one in formats.values()
        if board.capability in one.generations.proven or board.capability in one.generations.unproven
    ]
    return min(known, key=lambda one: one.weight_memory_bytes.value, default=default)


def check_generation(checkpoint: Checkpoint, board: Board, found: Findings) -> None:
    """Return whether this GPU generation can run the format at all."""
    generations = checkpoint.generations
    if need := generations.needs.get(board.capability):
        found.refuse(
            "engine-kernels",
            f"{board.label} (compute capability {board.capability}) for {checkpoint.name} "
            f"{checkpoint.format}",
            need,
            "use Hopper GPUs, or provide both in your own engine lock (metal_catalog_overlay) and "
            "accept this refusal",
        )
    if board.capability in generations.proven:
        return
    if board.capability in generations.unproven:
        found.warn(
            "gpu-unproven",
            f"{checkpoint.name} {checkpoint.format} on {board.label} is unproven: "
            f"{generations.unproven[board.capability]}",
        )
        return
    known = ", ".join((*generations.proven, *generations.unproven))
    found.refuse(
        "format-gpu",
        f"{board.label} (compute capability {board.capability or 'unknown'}) for format {checkpoint.format}",
        f"compute capability {known}",
        "choose another metal_model_format or other GPUs",
    )


def _spread(
    settings: Settings, checkpoint: Checkpoint, board: Board, found: Findings
) -> ParallelismPlan | None:
    replicas = 1
    if settings.layout:
        layout = LAYOUTS.get(settings.layout.casefold())
        if layout is None or layout[0] != board.count:
            found.refuse(
                "layout",
                f"metal_layout {settings.layout} on {board.count} GPUs",
                "tp8 or 2xtp4 on 8 GPUs, tp4 on 4",
                "set one that matches the host, or remove metal_layout",
            )
            return None
        replicas = layout[1]
    per_replica = board.count // replicas
    usual = checkpoint.parallelism.get(per_replica)
    # A size below 1 is refused by its range; if that is lifted, it counts as not set.
    tp = max(settings.tp_size or 0, 0) or (usual.tp if usual else max(1, per_replica))
    ep = max(settings.ep_size or 0, 0) or (usual.ep if usual and usual.tp == tp else 1)
    if tp * replicas > board.count:
        found.refuse(
            "parallelism",
            f"tp {tp} for {replicas} replica{'s' if replicas > 1 else ''} on {board.count} GPUs",
            f"at most {board.count // replicas} GPUs each",
            "lower metal_tp_size",
        )
        return None
    # Refused or not, the memory is checked as well: all reasons at once.
    _check_shape(settings, checkpoint, tp, ep, per_replica, found)
    return ParallelismPlan(tp=tp, ep=ep, replicas=replicas)


def spread_problems(checkpoint: Checkpoint, tp: int, ep: int) -> list[str]:
    """Return what in the model's dimensions forbids this spread; the engine finds out only while it loads."""
    problems: list[str] = []
    if tp % ep:
        problems.append(f"ep {ep} does not divide tp {tp}")
    heads, kv_heads = checkpoint.attention_heads.value, checkpoint.kv_heads.value
    if heads % tp:
        problems.append(f"tp {tp} does not divide {heads} attention heads")
    if kv_heads % tp and tp % kv_heads:
        problems.append(f"tp {tp} and {kv_heads} KV heads do not divide each other")
    if checkpoint.experts.value % ep:
        problems.append(f"ep {ep} does not divide {checkpoint.experts.value} experts")
    if checkpoint.moe_block and not tp % ep:
        width, block = checkpoint.moe_intermediate.value, checkpoint.moe_block.value
        share, rest = divmod(width * ep, tp)
        if rest or share % block:
            problems.append(
                f"{width} / (tp {tp} / ep {ep}) = {width * ep / tp:g} is not a multiple of {block}"
            )
    return problems


def _check_shape(
    settings: Settings, checkpoint: Checkpoint, tp: int, ep: int, gpus: int, found: Findings
) -> None:
    remedy = "remove metal_tp_size, metal_ep_size and metal_layout"
    if not (settings.tp_size or settings.ep_size or settings.layout):
        # The user did not request this spread: it follows from the number of GPUs.
        remedy = next(
            (
                f"use another number of GPUs, or set metal_tp_size to {most} and metal_ep_size to {share}"
                for most in range(gpus, 0, -1)
                for share in (1, most)
                if not spread_problems(checkpoint, most, share)
            ),
            "use another number of GPUs",
        )
    for problem in spread_problems(checkpoint, tp, ep):
        found.refuse(
            "parallelism",
            problem,
            "a spread that the model's dimensions allow",
            remedy,
        )


def _fraction(settings: Settings, checkpoint: Checkpoint, board: Board) -> float:
    fraction = settings.mem_fraction_static
    if fraction is not None and 0.0 < fraction < 1.0:
        return fraction
    if settings.profile == "guide":
        return GUIDE_MEM_FRACTION
    return checkpoint.mem_fractions.get(board.label, checkpoint.mem_fraction_static)


def find_fit(
    settings: Settings,
    checkpoint: Checkpoint,
    board: Board,
    found: Findings,
    sound: Callable[[ParallelismPlan, Mapping[str, str]], bool] = lambda _spread, _flags: True,
    formats: Iterable[Checkpoint] = (),
) -> Fit | None:
    """Return the checkpoint's placement on the board; None if it can't be spread over it.

    ``sound`` tells whether a spread with these flags meets no known fault; others are not recommended.
    ``formats`` are those of the model, to name the ones that hold more.
    """
    spread = _spread(settings, checkpoint, board, found)
    if spread is None:
        return None
    fraction = _fraction(settings, checkpoint, board)
    check_dtype(settings, checkpoint, found)
    dtype = cache_dtype(settings)
    held = find_room(settings, checkpoint, board, spread.tp, dtype, fraction)
    if held.tokens is None:
        found.warn(
            "capacity-unknown",
            f"the KV cache of {checkpoint.name} {checkpoint.format} was never measured: its capacity "
            "is unknown",
        )
    if held.room <= 0 or (held.tokens is not None and held.tokens < LEAST_KV_TOKENS):
        needed = held.weights + LEAST_KV_TOKENS * (held.per_token or 0)
        found.refuse(
            "memory",
            f"{spread.tp} x {board.label} with {gib(held.static)} of {gib(board.memory_bytes * spread.tp)} "
            f"usable (mem-fraction {fraction:g})",
            f"more than {gib(needed)} for {checkpoint.name} {checkpoint.format} weights and KV cache",
            "use GPUs with more memory, more GPUs, or a smaller checkpoint format",
        )
    longest = checkpoint.max_sequence.value
    if held.tokens is not None and LEAST_KV_TOKENS <= held.tokens < longest:
        others = [
            (one, _fraction(settings, one, board))
            for one in formats
            if one.format != checkpoint.format and _serves(one, board, spread)
        ]
        found.warn(
            "short-sequence",
            f"KV cache holds {held.tokens} tokens, less than the model's longest sequence of {longest}"
            + more(settings, checkpoint, board, spread.tp, fraction, others, partial(sound, spread)),
        )
        longest = held.tokens
    tokens, longest = bounded(settings, held.tokens, longest)
    return Fit(
        spread=spread,
        capacity=CapacityPlan(
            kv_tokens=None if tokens is None else tokens * spread.replicas,
            kv_tokens_per_replica=tokens,
            kv_bytes_per_token=held.per_token,
            kv_dtype=dtype,
            max_sequence=longest if tokens is None else min(longest, tokens),
            weights_bytes=held.weights,
            total_bytes=board.memory_bytes * board.count,
            static_bytes=held.static * spread.replicas,
            mem_fraction_static=fraction,
        ),
        limits=_limits(settings, held.tokens, held.room),
    )


def _serves(checkpoint: Checkpoint, board: Board, spread: ParallelismPlan) -> bool:
    """Return whether these GPUs can run the format with this spread, without parts built by hand."""
    generations = checkpoint.generations
    known = board.capability in generations.proven or board.capability in generations.unproven
    return (
        known
        and board.capability not in generations.needs
        and not spread_problems(checkpoint, spread.tp, spread.ep)
    )


def _limits(settings: Settings, tokens: int | None, room: int) -> LimitsPlan:
    """Return how many requests one replica runs, and its weight among replicas of the same model.

    As many run as the KV cache holds at ``metal_tokens_per_request`` tokens each; as many may wait, so that a
    request waits for about one generation before the gateway tries another replica.
    """
    running = settings.max_running_requests
    if running is None and tokens is not None:
        running = min(MOST_REQUESTS, max(1, tokens // max(1, settings.tokens_per_request)))
    queued = settings.max_queued_requests
    if queued is None:
        queued = running
    # Without a capacity, the memory beside the weights gives the ratio between replicas.
    weight = running if running is not None else min(MOST_REQUESTS, max(1, room // 2**30))
    return LimitsPlan(max_running_requests=running, max_queued_requests=queued, weight=weight)


def find_layouts(settings: Settings, checkpoint: Checkpoint, board: Board) -> tuple[LayoutPlan, ...]:
    """Return every way to divide the host's GPUs, with its capacity; the plan uses one of them."""
    rows = []
    for name, (count, replicas) in LAYOUTS.items():
        if count != board.count:
            continue
        trial = Findings()
        wanted = settings.with_layout(name)
        fit = find_fit(wanted, checkpoint, board, trial)
        rows.append(
            LayoutPlan(
                name=name,
                replicas=replicas,
                tp=fit.spread.tp if fit else None,
                ep=fit.spread.ep if fit else None,
                fits=fit is not None and not trial.refusals,
                kv_tokens=fit.capacity.kv_tokens if fit else None,
                kv_tokens_per_replica=fit.capacity.kv_tokens_per_replica if fit else None,
            )
        )
    return tuple(rows)

"""How many tokens of KV cache a replica holds, what limits them, and what would hold more. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from minimax_metal.catalog import Checkpoint
from minimax_metal.common.documents import digits
from minimax_metal.plan.findings import Findings
from minimax_metal.plan.flags import arguments_of
from minimax_metal.plan.host import Board
from minimax_metal.plan.kv_cache import bytes_per_token
from minimax_metal.plan.settings import Settings
from minimax_metal.plan.speculative import draft_bytes, draft_kv_bytes

GUIDE_MEM_FRACTION = 0.85
"""Value of both guides, for any GPU."""

UNCOUNTED = (
    "--pp-size", "--pipeline-parallel-size", "--nnodes",
    "--attn-dp-size", "--attention-data-parallel-size", "--dp-size", "--data-parallel-size",
    "--enable-dp-attention", "--attn-cp-size", "--attention-context-parallel-size",
    "--dcp-size", "--decode-context-parallel-size", "--dwdp-size",
    "--speculative-algorithm", "--enable-hisparse", "--enable-unified-memory", "--enable-memory-saver",
    "--mm-feature-transport", "--cpu-offload-gb", "--disaggregation-mode",
)  # fmt: skip
"""Flags of 0.5.23 that change a GPU's share of the KV cache, or its space; not computed here."""


@dataclass(frozen=True)
class Room:
    """Memory for the KV cache of one replica, in bytes, and its whole pages, in tokens.

    ``static`` is the engine's memory, ``room`` the rest of it beside the weights (below 0 if they don't fit);
    ``per_token`` and ``tokens`` are None if the model's dimensions are unknown.
    """

    weights: int
    static: int
    room: int
    per_token: int | None
    tokens: int | None


def find_room(
    settings: Settings, checkpoint: Checkpoint, board: Board, tp: int, dtype: str, fraction: float
) -> Room:
    """Return the memory on ``tp`` GPUs of the board, with this type of the cache and this share of the
    memory.
    """
    weights = checkpoint.weight_memory_bytes.value + draft_bytes(settings, checkpoint)
    static = int(board.memory_bytes * tp * fraction)
    room = static - weights
    per_token = bytes_per_token(checkpoint, tp, dtype, board.capability, settings.engine_release)
    if per_token is not None:
        per_token += draft_kv_bytes(settings)
    page = checkpoint.kv_page_size
    tokens = None if per_token is None else max(0, room // per_token) // page * page
    return Room(weights=weights, static=static, room=room, per_token=per_token, tokens=tokens)


def cache_dtype(settings: Settings) -> str:
    """Return the type of the cache: from the user's flag, else from the setting."""
    return arguments_of(settings.engine_extra_args).get("--kv-cache-dtype") or settings.kv_cache_dtype


def check_dtype(settings: Settings, checkpoint: Checkpoint, found: Findings) -> None:
    """Refuse a type of the cache that the model does not support."""
    dtype = cache_dtype(settings)
    if dtype not in checkpoint.kv_dtypes:
        found.refuse(
            "kv-dtype",
            f"metal_kv_cache_dtype {dtype}",
            f"one of {', '.join(checkpoint.kv_dtypes)}",
            "remove it, or set one of them",
        )


def bounded(settings: Settings, tokens: int | None, longest: int) -> tuple[int | None, int]:
    """Return the tokens of the cache and of one sequence, limited by the user's flags.

    ``--max-total-tokens`` limits the cache, ``--context-length`` a sequence; the last one counts.
    """
    given = arguments_of(settings.engine_extra_args)
    most, context = (_number(given.get(flag)) for flag in ("--max-total-tokens", "--context-length"))
    if most is not None and tokens is not None:
        tokens = min(tokens, most)
    return tokens, longest if context is None else min(longest, context)


def _number(word: str | None) -> int | None:
    """Return a flag's value; None if the engine would refuse it."""
    return digits(word or "") or None


def check_uncounted(settings: Settings, checkpoint: Checkpoint, found: Findings) -> None:
    """Report which of the user's flags the capacity does not account for."""
    given = arguments_of(settings.engine_extra_args)
    flags = [flag for flag in UNCOUNTED if flag in given]
    if settings.speculative_draft and checkpoint.draft:
        flags.append("metal_speculative_draft")
    if settings.draft and settings.draft.kv_bytes_per_token is None:
        flags.append(f"the draft {settings.draft.name}'s KV cache, whose size is unknown")
    if flags:
        found.warn(
            "kv-not-counted",
            f"the KV capacity here does not account for {', '.join(flags)}: the engine may hold more "
            "or fewer tokens; its log shows how many (max_total_num_tokens)",
        )


def more(
    settings: Settings,
    checkpoint: Checkpoint,
    board: Board,
    tp: int,
    fraction: float,
    others: Iterable[tuple[Checkpoint, float]],
    sound: Callable[[Mapping[str, str]], bool],
) -> str:
    """Return which settings give more KV cache on these GPUs, and how much; also what only other hosts give.

    ``others`` are the model's other formats that these GPUs serve, each with its share of the memory;
    ``sound`` tells whether a launch with these flags meets no known fault.
    """
    dtype = cache_dtype(settings)

    def held(one: Checkpoint, kind: str, share: float) -> int:
        return find_room(settings, one, board, tp, kind, share).tokens or 0

    now, ways = held(checkpoint, dtype, fraction), []
    narrow = held(checkpoint, "fp8_e4m3", fraction) if "fp8_e4m3" in checkpoint.kv_dtypes else 0
    if narrow > now and sound({"--kv-cache-dtype": "fp8_e4m3"}):
        ways.append(f"metal_kv_cache_dtype: fp8_e4m3 holds {narrow}")
    if fraction < GUIDE_MEM_FRACTION:
        ways.append(
            f"metal_mem_fraction_static: {GUIDE_MEM_FRACTION:g} holds "
            f"{held(checkpoint, dtype, GUIDE_MEM_FRACTION)}, with less memory left for activations"
        )
    for other, share in others:
        if (tokens := held(other, dtype, share)) > now:
            ways.append(f"metal_model_format: {other.format} holds {tokens}")
    ways.append("GPUs with more memory hold more")
    ways.append("each additional host holds the same again, for more requests, not for a longer one")
    return "; " + "; ".join(ways)

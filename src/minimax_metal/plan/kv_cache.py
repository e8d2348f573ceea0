"""Bytes of KV cache per token, by the engine's own formula.

Based on ``_compute_cell_size`` of SGLang 0.5.23 (``model_executor/pool_configurator.py``), which sizes each
rank's pool. A rank stores K and V of its share of the KV heads, at least one, so with more ranks than heads
each head is stored several times. Layers with sparse attention also store index keys: one head, replicated on
every rank. ``tests/contract/test_kv_cache.py`` computes the same with the engine's own code. 0.5.10 and
0.5.16 compute the same, except that 0.5.16 keeps index keys in the model's type whatever the cache's type
(both read, not run).
"""

from __future__ import annotations

from minimax_metal.catalog import Checkpoint
from minimax_metal.plan.versions import version_key

BFLOAT16 = 2
"""Bytes per number; ``auto`` is the model's own type, which is bfloat16 for the whole catalogue."""
FP4_BLOCK = 16
"""Numbers of a packed NVFP4 pool that share a one-byte scale (``minimax_m3_nvfp4_pool.py``)."""
NARROW_INDEX_FROM = "0.5.23"
"""First known release whose index keys use the cache's type; 0.5.16 does not."""
_USERS_OWN = "U"
"""Confidence of a user's own number, which is used unchanged."""


def bytes_per_token(
    checkpoint: Checkpoint, tp: int, dtype: str, capability: str, release: str | None = None
) -> int | None:
    """Return KV cache bytes per token on all ``tp`` GPUs of a replica; None if the dimensions are unknown.

    Args:
        checkpoint: the model; a user's own ``kv_bytes_per_token`` takes precedence over the formula.
        tp: ranks that share the heads.
        dtype: value of ``--kv-cache-dtype``, one of the checkpoint's ``kv_dtypes``.
        capability: of the GPUs ("9.0"): it decides the type of the index keys, and a packed pool.
        release: of the engine; None is the newest.
    """
    scale = checkpoint.kv_dtypes.get(dtype, 1.0)
    heads = checkpoint.kv_heads.value
    given = checkpoint.kv_bytes_per_token
    if checkpoint.head_dim is None or (given is not None and given.confidence == _USERS_OWN):
        # With more ranks than KV heads each head is stored on several ranks.
        return None if given is None else int(given.value * scale) * max(1, tp // heads)
    local = max(1, heads // tp)
    width = checkpoint.head_dim.value
    sparse = checkpoint.sparse_layers.value if checkpoint.sparse_layers else 0
    index = checkpoint.index_dim.value if checkpoint.index_dim else 0
    if capability in checkpoint.packed_kv_generations:
        # Only sparse layers have rows in this pool: half a byte per number, and the blocks' scales.
        numbers = sparse * (2 * local * width + index)
        return (numbers // 2 + numbers // FP4_BLOCK) * tp
    keys = checkpoint.layers.value * 2 * local * width
    return int(keys * BFLOAT16 * scale + sparse * index * _index_bytes(dtype, capability, release)) * tp


def _index_bytes(dtype: str, capability: str, release: str | None) -> int:
    """Return bytes per number of an index key: fp8_e4m3 on Hopper and on SM10x, elsewhere the model's type.

    Based on ``get_minimax_sparse_index_dtype`` (``mem_cache/memory_pool.py``) and
    ``m3_fp8_attn_gemm_enabled`` (``server_args.py``), with the attention backend that the engine chooses
    there.
    """
    if release is not None and version_key(release) < version_key(NARROW_INDEX_FROM):
        return BFLOAT16
    narrow = dtype == "fp8_e4m3" and capability.partition(".")[0] in {"9", "10"}
    return 1 if narrow else BFLOAT16

"""Bytes of KV cache for one token, by the engine's own formula.

After ``_compute_cell_size`` of SGLang 0.5.23 (``model_executor/pool_configurator.py``), which sizes the pool
of each rank. A rank keeps K and V of its share of the KV heads, at least one, so that with more ranks than
heads each head is kept on several. Layers with sparse attention keep index keys besides: one head, whole on
every rank. ``tests/contract/test_kv_cache.py`` computes the same with the engine's own code. 0.5.10 and
0.5.16 reckon alike, but for index keys, which 0.5.16 keeps in the model's type whatever the cache's is (both
read, not run).
"""

from __future__ import annotations

from minimax_metal.catalog import Checkpoint
from minimax_metal.plan.versions import version_key

BFLOAT16 = 2
"""Bytes of one number; ``auto`` is the model's own type, and all of the catalogue's are bfloat16."""
FP4_BLOCK = 16
"""Numbers of a packed NVFP4 pool that share a scale of one byte (``minimax_m3_nvfp4_pool.py``)."""
NARROW_INDEX_FROM = "0.5.23"
"""First release of those read whose index keys follow the cache's type; 0.5.16 does not."""
_USERS_OWN = "U"
"""Confidence of a user's own figure, which is taken as it is."""


def bytes_per_token(
    checkpoint: Checkpoint, tp: int, dtype: str, capability: str, release: str | None = None
) -> int | None:
    """KV cache of one token on all ``tp`` GPUs of a replica, in bytes; none where the shape is not known.

    Args:
        checkpoint: the model; a ``kv_bytes_per_token`` of the user's own goes before the formula.
        tp: ranks that share the heads.
        dtype: value of ``--kv-cache-dtype``, one of the checkpoint's ``kv_dtypes``.
        capability: of the GPUs ("9.0"): it decides the type of the index keys, and a packed pool.
        release: of the engine; none is the newest.
    """
    scale = checkpoint.kv_dtypes.get(dtype, 1.0)
    heads = checkpoint.kv_heads.value
    given = checkpoint.kv_bytes_per_token
    if checkpoint.head_dim is None or (given is not None and given.confidence == _USERS_OWN):
        # With more ranks than KV heads each head is kept on several ranks.
        return None if given is None else int(given.value * scale) * max(1, tp // heads)
    local = max(1, heads // tp)
    width = checkpoint.head_dim.value
    sparse = checkpoint.sparse_layers.value if checkpoint.sparse_layers else 0
    index = checkpoint.index_dim.value if checkpoint.index_dim else 0
    if capability in checkpoint.packed_kv_generations:
        # Only sparse layers have rows in this pool: half a byte for each number, and the blocks' scales.
        numbers = sparse * (2 * local * width + index)
        return (numbers // 2 + numbers // FP4_BLOCK) * tp
    keys = checkpoint.layers.value * 2 * local * width
    return int(keys * BFLOAT16 * scale + sparse * index * _index_bytes(dtype, capability, release)) * tp


def _index_bytes(dtype: str, capability: str, release: str | None) -> int:
    """Bytes of one number of an index key: fp8_e4m3 on Hopper and on SM10x, elsewhere the model's type.

    After ``get_minimax_sparse_index_dtype`` (``mem_cache/memory_pool.py``) and ``m3_fp8_attn_gemm_enabled``
    (``server_args.py``), with the attention backend that the engine takes there by itself.
    """
    if release is not None and version_key(release) < version_key(NARROW_INDEX_FROM):
        return BFLOAT16
    narrow = dtype == "fp8_e4m3" and capability.partition(".")[0] in {"9", "10"}
    return 1 if narrow else BFLOAT16

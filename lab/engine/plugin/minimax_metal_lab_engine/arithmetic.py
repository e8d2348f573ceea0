"""Plain torch in place of kernels that exist for GPUs only.

Each function has the signature of what it replaces in SGLang 0.5.23 (named in ``hooks.py``) and computes the
same numbers; ``tests/contract/test_engine.py`` compares the whole model's log-probabilities with
transformers'.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  the name torch's own documentation uses


def sums_of_squares(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Return the sums of squares of the rows of ``q`` and ``k``, for M2's norm over all heads.

    Shapes: ``q`` (rows, width of q on this rank), ``k`` (rows, width of k) -> float32 of 2 * rows, padded to
    a multiple of 4 as the engine's all-reduce of it expects; q's sums come first.
    """
    rows = q.shape[0]
    sums = torch.zeros((2 * rows + 3) // 4 * 4, dtype=torch.float32)
    sums[:rows] = q.float().pow(2).sum(-1)
    sums[rows : 2 * rows] = k.float().pow(2).sum(-1)
    return sums


def normalise(
    q: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    sums: torch.Tensor,
    tp_world: int = 1,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``q`` and ``k`` (shapes as given) under RMS norm, from the sums over all ranks."""
    rows = q.shape[0]

    def norm(x: torch.Tensor, weight: torch.Tensor, row_sums: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(row_sums / (x.shape[-1] * tp_world) + eps)
        return (x.float() * scale[:, None] * weight.float()).to(x.dtype)

    return norm(q, q_weight, sums[:rows]), norm(k, k_weight, sums[rows : 2 * rows])


def experts(layer: Any, x: torch.Tensor, topk_output: Any, config: Any) -> torch.Tensor:
    """Return the weighted sum of this rank's experts for each token.

    Shapes: ``x`` (tokens, hidden); ``topk_output`` holds weights and expert ids (tokens, experts per token);
    an id below 0 belongs to another expert-parallel rank, whose share the engine adds afterwards. The
    engine's own function counts such ids as experts and is wrong under ``--ep-size``.

    M2's experts are SwiGLU. M3's (``gemm1_alpha`` is set) clamp both halves and add 1 to the up half; gate
    and up lie side by side in the weights, while the engine's CPU code reads them interleaved.
    """
    alpha, limit = config.gemm1_alpha, config.gemm1_clamp_limit
    weights, ids, _ = topk_output
    total = torch.zeros_like(x)
    for expert in ids.unique().tolist():
        if expert < 0:
            continue
        token, slot = (ids == expert).nonzero(as_tuple=True)
        gate, up = F.linear(x[token], layer.w13_weight[expert]).chunk(2, -1)
        if alpha is None:
            inner = F.silu(gate) * up
        else:
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
            inner = gate * torch.sigmoid(alpha * gate) * (up + 1)
        share = F.linear(inner, layer.w2_weight[expert]) * weights[token, slot, None]
        total.index_add_(0, token, share.to(total.dtype))
    return total


def dense_for_sparse(
    self: Any,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: Any,
    forward_batch: Any,
    save_kv_cache: bool = True,
    idx_v: torch.Tensor | None = None,
    **_index: Any,
) -> tuple[None, torch.Tensor]:
    """Return M3's sparse attention computed densely, which is the same as long as all blocks are chosen.

    That is up to 16 blocks of 128 tokens in the published configuration, 32 in the tiny models'. Replaces
    ``MiniMaxSparseAttnBackend.forward``; the first of the pair is the index output, which the published
    configuration disables.

    Raises:
        RuntimeError: a sequence is longer than that, or the index value is asked for: then dense is not
        equal.
    """
    longest, reach = int(forward_batch.seq_lens.max()), self.topk_blocks * self.block_size_k
    if idx_v is not None or longest > reach:
        raise RuntimeError(
            f"found a sequence of {longest} tokens, index value {'off' if idx_v is None else 'on'}: without "
            f"a GPU dense attention stands in for MiniMax-M3's sparse attention up to {reach} tokens "
            "with the index value off; send shorter requests"
        )
    return None, self.dense_backend.forward(q.flatten(1), k, v, layer, forward_batch, save_kv_cache)

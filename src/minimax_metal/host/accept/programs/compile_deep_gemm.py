"""DeepGEMM compiles an fp8 matrix product from scratch (nvcc or nvrtc), and the product is right."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from answering import main, need_cuda

ROWS, COLUMNS, DEPTH = 128, 256, 512
WORST = 0.05
"""Maximum mean error of an fp8 product relative to its mean size; fp8 (e4m3) keeps three bits.
"""


def check(count: int) -> dict[str, Any]:
    """Multiply two small matrices on the first of ``count`` cards."""
    torch = need_cuda(count)
    with tempfile.TemporaryDirectory() as empty:
        # Read when the module is imported: an empty directory, or nothing would be compiled.
        os.environ["DG_JIT_CACHE_DIR"] = empty
        import deep_gemm
        from deep_gemm.utils.math import per_block_cast_to_fp8, per_token_cast_to_fp8

        torch.cuda.set_device(0)
        left = torch.randn(ROWS, DEPTH, dtype=torch.bfloat16, device="cuda")
        right = torch.randn(COLUMNS, DEPTH, dtype=torch.bfloat16, device="cuda")
        # Scales are powers of two on Blackwell.
        powers = torch.cuda.get_device_capability(0)[0] >= 10
        got = torch.empty(ROWS, COLUMNS, dtype=torch.bfloat16, device="cuda")
        deep_gemm.fp8_gemm_nt(
            per_token_cast_to_fp8(left, use_ue8m0=powers), per_block_cast_to_fp8(right, use_ue8m0=powers), got
        )
        wanted = left.float() @ right.float().T
        worst = float((got.float() - wanted).abs().mean() / wanted.abs().mean())
        if not worst < WORST:
            raise RuntimeError(f"the product has a relative error of {worst:.3f}, expected less than {WORST}")
        files = sum(len(names) for _, _, names in os.walk(empty))
    if not files:
        raise RuntimeError("no kernel was compiled")
    return {"version": getattr(deep_gemm, "__version__", "unknown"), "files": files, "worst": worst}


if __name__ == "__main__":
    main(check)

"""FlashInfer compiles one of its own modules from scratch (nvcc, ninja, C++), and its result is right.

The activation: every release builds it with nvcc, while the norms now come from another compiler.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

from answering import main, need_cuda

WORST = 0.05
"""Maximum error of one number near 1 at bfloat16, which keeps eight bits."""


def check(count: int) -> dict[str, Any]:
    """Compute SiLU and product of a small matrix on the first of ``count`` cards."""
    torch = need_cuda(count)
    with tempfile.TemporaryDirectory() as empty:
        # Read when the module is imported: an empty directory, or nothing would be compiled.
        os.environ["FLASHINFER_WORKSPACE_BASE"] = empty
        import flashinfer

        rows = torch.rand(8, 2048, dtype=torch.bfloat16, device="cuda:0")
        got = flashinfer.activation.silu_and_mul(rows).float()
        wanted = torch.nn.functional.silu(rows[:, :1024].float()) * rows[:, 1024:].float()
        worst = float((got - wanted).abs().max())
        if not worst < WORST:
            raise RuntimeError(f"the module's result is off by {worst:.3f}")
        built = sum(name.endswith(".so") for _, _, names in os.walk(empty) for name in names)
    return {"version": flashinfer.__version__, "built": built, "worst": worst}


if __name__ == "__main__":
    main(check)

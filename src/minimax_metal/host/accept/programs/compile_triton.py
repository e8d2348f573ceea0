"""Triton compiles a kernel from scratch, with its launcher in C, and the result is right."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from answering import main, need_cuda

try:
    import triton
    import triton.language as tl
except ImportError as error:  # reported by check(), like any other reason
    MISSING: ImportError | None = error
else:
    MISSING = None

    @triton.jit  # type: ignore[untyped-decorator]  # Triton has no types
    def _add(left, right, total, count, block: tl.constexpr):  # type: ignore[no-untyped-def]  # read by Triton
        place = tl.program_id(0) * block + tl.arange(0, block)
        inside = place < count
        one = tl.load(left + place, mask=inside)
        other = tl.load(right + place, mask=inside)
        tl.store(total + place, one + other, mask=inside)


def check(count: int) -> dict[str, Any]:
    """Add two vectors on the first of ``count`` cards."""
    if MISSING is not None:
        raise MISSING
    torch = need_cuda(count)
    with tempfile.TemporaryDirectory() as empty:
        # An empty cache, or nothing would be compiled.
        os.environ["TRITON_CACHE_DIR"] = empty
        left = torch.arange(4096, dtype=torch.float32, device="cuda:0")
        total = torch.empty_like(left)
        _add[(4,)](left, left, total, 4096, 1024)
        if not torch.equal(total, left + left):
            raise RuntimeError("the kernel's sums are wrong")
        files = sum(len(names) for _, _, names in os.walk(empty))
    if not files:
        raise RuntimeError("no file was compiled")
    return {"version": triton.__version__, "files": files}


if __name__ == "__main__":
    main(check)

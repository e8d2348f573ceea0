"""What is replaced in SGLang 0.5.23, and why; reached through the engine's hook registry."""

import os
from collections.abc import Callable
from typing import Any

REPLACED: dict[str, str] = {
    # Triton kernels that assert CUDA tensors: M2's norm of q and k over all heads.
    "sglang.srt.models.minimax_m2.rms_sumsq_serial": "sums_of_squares",
    "sglang.srt.models.minimax_m2.rms_apply_serial": "normalise",
    # Plain torch already, but wrong with expert parallelism (ids of -1) and for M3's activation.
    "sglang.srt.layers.moe.fused_moe_native.moe_forward_native": "experts",
    # Triton kernels only.
    "sglang.srt.layers.attention.minimax_sparse_backend.MiniMaxSparseAttnBackend.forward": "dense_for_sparse",
}
"""What is replaced -> the function of ``arithmetic.py`` that stands in."""

ENVIRONMENT: dict[str, str] = {
    # M3's router: torch has no mixed-precision mm (aten::mm.dtype) for the CPU; this takes the float32 path.
    "SGLANG_OPT_USE_BF16_ROUTER_GEMM": "0",
    # M3's activation and image rotation are under torch.compile, which wants a C++ compiler on a CPU.
    "TORCHDYNAMO_DISABLE": "1",
    # The full install brings the NCCL library; found, it asks for a CUDA device. Ranks talk over gloo here.
    "SGLANG_NCCL_SO_PATH": "/nonexistent",
    # More ranks than cores: one thread each, or they spend their time waiting for one another.
    "OMP_NUM_THREADS": "1",
}
"""Defaults for the engine's process and its ranks; a variable that is already set wins."""


def set_environment() -> None:
    """Apply :data:`ENVIRONMENT` where nothing else is set."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def register() -> None:
    """Register every hook with the engine; it applies them once its modules can be imported."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from minimax_metal_lab_engine import arithmetic, ranks

    for target, name in REPLACED.items():
        HookRegistry.register(target, getattr(arithmetic, name), HookType.REPLACE)
    HookRegistry.register(
        "sglang.srt.mem_cache.kv_cache_configurator.reject_out_of_tree_path",
        _let_m3_pool_through,
        HookType.AROUND,
    )
    HookRegistry.register(
        "sglang.srt.distributed.bootstrap._bind_threads_if_cpu", _bind_nothing, HookType.REPLACE
    )
    HookRegistry.register(
        "sglang.srt.entrypoints.engine._set_envs_and_config", ranks.use_server, HookType.AFTER
    )


def _let_m3_pool_through(original: Callable[..., None], platform: Any, *, subsystem: str) -> None:
    """M3's KV pool is refused on an out-of-tree platform, though it is plain torch and works."""
    if "MiniMax sparse-index KV pool" not in subsystem:
        original(platform, subsystem=subsystem)


def _bind_nothing(*, device: str) -> None:
    """Leave the ranks to the kernel's scheduler: the engine wants a NUMA node for each of them."""

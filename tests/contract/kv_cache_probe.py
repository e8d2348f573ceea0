"""Ask the installed engine for the bytes that a token of KV cache takes; run with the engine's Python.

Reads a list of questions from standard input, each with the fields of a model's ``config.json`` and how it is
served, and writes the bytes on one rank for each. The arithmetic is the engine's own. The stand-ins are the
hardware (``get_platform``, CUDA) and the number of ranks, which the engine would ask the machine for.
"""

from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace
from typing import Any


def cell_size(question: dict[str, Any]) -> int:
    """Bytes of one token on one rank, from the engine's ``DefaultPoolConfigurator``."""
    import torch
    from sglang.srt import runtime_context, server_args
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.layers.cp import utils as context_parallel
    from sglang.srt.mem_cache import memory_pool
    from sglang.srt.model_executor import pool_configurator

    major = question["capability"].split(".")[0]
    here = SimpleNamespace(is_sm90=major == "9", is_sm100=major == "10", is_blackwell=major in {"10", "12"})
    for module in (runtime_context, server_args, memory_pool):
        module.get_platform = lambda: here
    memory_pool._is_cuda = True
    ranks = SimpleNamespace(attn_tp_size=question["tp"], attn_dcp_size=1, enable_dsa_cache_layer_split=False)
    for module in (pool_configurator, context_parallel):
        module.get_parallel = lambda: ranks
    pool_configurator.get_memory = lambda: SimpleNamespace(enable_hisparse=False)
    pool_configurator.resolving_view = lambda arguments: arguments

    config = SimpleNamespace(**question["config"])
    model = ModelConfig.__new__(ModelConfig)
    model.hf_config = model.hf_text_config = config
    model.head_dim = model.v_head_dim = config.head_dim
    model.quantization = question["quantization"]
    model.is_draft_model = False
    model.get_total_num_kv_heads = lambda: config.num_key_value_heads
    dtypes = {
        "auto": torch.bfloat16, "bfloat16": torch.bfloat16,
        "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2,
    }  # fmt: skip
    # On SM100 the engine takes trtllm_mha by itself for fp8_e4m3 (model_overrides/minimax_m3.py).
    backend = "trtllm_mha" if major == "10" and question["dtype"] == "fp8_e4m3" else "fa3"
    layers = config.num_hidden_layers
    kvc = SimpleNamespace(
        model_config=model,
        kv_cache_dtype=dtypes[question["dtype"]],
        kv_cache_dtype_str=question["dtype"],
        model_dtype=torch.bfloat16,
        use_mla_backend=False,
        is_draft_worker=False,
        layer_info=SimpleNamespace(start_layer=0, end_layer=layers, num_effective_layers=layers),
        server_args=SimpleNamespace(
            enable_hisparse=False, kv_cache_dtype=question["dtype"], attention_backend=backend
        ),
    )
    configurator = pool_configurator.DefaultPoolConfigurator.__new__(
        pool_configurator.DefaultPoolConfigurator
    )
    configurator.kv_cache_dtype_str = question["dtype"]
    return int(configurator._compute_cell_size(kvc, layers))


def main() -> None:
    """Answer on the original standard output of the process, whatever the engine prints."""
    questions = json.load(sys.stdin)
    answer_to = os.dup(1)
    os.dup2(2, 1)
    answers = [cell_size(one) for one in questions]
    with os.fdopen(answer_to, "w") as out:
        json.dump(answers, out)


if __name__ == "__main__":
    main()

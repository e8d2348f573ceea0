"""The planned KV cache against the engine's own configurator, for each model, tp and KV type."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lab.engine.environment import environment
from minimax_metal.catalog import Checkpoint, packaged_catalog
from minimax_metal.plan.kv_cache import bytes_per_token

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

CATALOG = packaged_catalog()
CAPABILITIES = ("8.0", "8.9", "9.0", "10.0", "10.3", "12.0")
SIZES = (1, 2, 4, 8, 16)


def config_of(one: Checkpoint) -> dict[str, Any]:
    """The fields of the model's ``config.json`` that the engine's formula reads."""
    assert one.head_dim is not None
    config: dict[str, Any] = {
        "architectures": [one.architectures[0]],
        "num_hidden_layers": one.layers.value,
        "num_key_value_heads": one.kv_heads.value,
        "num_attention_heads": one.attention_heads.value,
        "head_dim": one.head_dim.value,
    }
    if one.sparse_layers and one.index_dim:
        dense = one.layers.value - one.sparse_layers.value
        flags = [0] * dense + [1] * one.sparse_layers.value
        config["sparse_attention_config"] = {
            "sparse_attention_freq": flags,
            # Index keys without values, as in every sparse layer of M3.
            "sparse_disable_index_value": flags,
            "sparse_index_dim": one.index_dim.value,
        }
    return config


def test_a_token_takes_what_the_engine_reckons_for_it() -> None:
    cases = [
        (one, tp, dtype, capability)
        for formats in CATALOG.models.values()
        for one in formats.values()
        for tp in SIZES
        for dtype in one.kv_dtypes
        for capability in CAPABILITIES
        if not one.kv_heads.value % tp or not tp % one.kv_heads.value
    ]
    questions = [
        {
            "config": config_of(one),
            "tp": tp,
            "dtype": dtype,
            "capability": capability,
            # The catalogue's packed pool is the engine's for this quantisation on Blackwell.
            "quantization": "minimax_m3_nvfp4" if capability in one.packed_kv_generations else None,
        }
        for one, tp, dtype, capability in cases
    ]
    asked = subprocess.run(
        [str(environment()), str(Path(__file__).with_name("kv_cache_probe.py"))],
        input=json.dumps(questions), capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr[-2000:]
    wrong = [
        (one.name, one.format, tp, dtype, capability, ours, engines * tp)
        for (one, tp, dtype, capability), engines in zip(cases, json.loads(asked.stdout), strict=True)
        if (ours := bytes_per_token(one, tp, dtype, capability)) != engines * tp
    ]
    # MiniMax-M3.1 packed: 60 layers of (1 main row + 1 index row) for 128 tokens, one KV head on each GPU.
    packed = {
        engines
        for (one, tp, _, capability), engines in zip(cases, json.loads(asked.stdout), strict=True)
        if capability in one.packed_kv_generations and tp >= one.kv_heads.value
    }
    assert packed == {12960}
    assert len(cases) > 300
    assert not wrong, wrong[:10]

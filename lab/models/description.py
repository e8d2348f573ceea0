"""The tiny models: which published model each stands for, and the figures the plan needs of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LAYERS, KV_HEADS, HEAD_DIM = 2, 8, 16
"""Of all models; ``training/m2.py`` and ``training/m3_config.py`` write them into ``config.json``."""

LICENCE = "apache-2.0"
"""The tiny models' own: their weights come from this repository's training scripts."""


@dataclass(frozen=True)
class TinyModel:
    """One tiny model.

    ``name`` is the catalogue's; ``script`` its training script; ``repositories`` the ids per site under
    which it is published; ``catalogue`` what the overlay sets beside sizes and revision.
    """

    name: str
    script: str
    images: bool
    repositories: Mapping[str, tuple[str, ...]]
    catalogue: Mapping[str, Any]


_SHAPE = {
    "layers": LAYERS,
    "attention_heads": 8,
    "kv_heads": KV_HEADS,
    "experts": 8,
    "moe_intermediate": 128,
    "head_dim": HEAD_DIM,
    "kv_page_size": 1,  # the engine's choice on a CPU
    "max_sequence": 4096,
    "max_output": 4096,
}

_INDEX_DIM = 16
"""Numbers of an index key, in layers with sparse attention."""

_GENERATIONS = {"proven": ["8.0", "8.9", "9.0", "10.0", "10.3", "12.0"]}

MODELS: Mapping[str, TinyModel] = {
    model.name: model
    for model in (
        TinyModel(
            "MiniMax-M2.5",
            "m2",
            images=False,
            repositories={
                "huggingface": ("MiniMaxAI/MiniMax-M2.5",),
                "modelscope": ("MiniMax/MiniMax-M2.5",),
            },
            catalogue={
                "default_format": "bf16",
                "formats": {
                    # The tiny model is bfloat16: a CPU has no kernels for the published FP8.
                    "fp8": None,
                    "nvfp4": None,
                    "bf16": {
                        "repositories": {
                            "huggingface": "MiniMaxAI/MiniMax-M2.5",
                            "modelscope": "MiniMax/MiniMax-M2.5",
                        },
                        **_SHAPE,
                        "generations": _GENERATIONS,
                    },
                },
            },
        ),
        TinyModel(
            "MiniMax-M3",
            "m3",
            images=True,
            repositories={
                "huggingface": ("MiniMaxAI/MiniMax-M3",),
                # The M3 guide's id, and the one by the pattern of M2.5's.
                "modelscope": ("MiniMaxAI/MiniMax-M3", "MiniMax/MiniMax-M3"),
            },
            catalogue={
                "formats": {
                    "mxfp8": None,
                    "nvfp4": None,
                    "bf16": {
                        **_SHAPE,
                        "sparse_layers": LAYERS - 1,
                        "index_dim": _INDEX_DIM,
                        "generations": _GENERATIONS,
                    },
                },
            },
        ),
        TinyModel(
            "MiniMax-M3.1-Flash",
            "m31",
            images=True,
            repositories={
                "huggingface": ("MiniMaxAI/MiniMax-M3.1-Flash",),
                "modelscope": ("MiniMax/MiniMax-M3.1-Flash",),
            },
            catalogue={
                "default_format": "bf16",
                "draft": None,  # the published dspark/ has no part here
                "formats": {
                    # bfloat16 stands in for NVFP4 experts and MXFP8 projections, which a CPU can't compute.
                    "nvfp4": None,
                    "bf16": {
                        "repositories": {
                            "huggingface": "MiniMaxAI/MiniMax-M3.1-Flash",
                            "modelscope": "MiniMax/MiniMax-M3.1-Flash",
                        },
                        **_SHAPE,
                        "sparse_layers": LAYERS,
                        "index_dim": _INDEX_DIM,
                        "generations": _GENERATIONS,
                    },
                },
            },
        ),
    )
}

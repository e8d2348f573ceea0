"""The tiny M3's ``config.json``: the published architecture, small; and how transformers reads it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from transformers import MiniMaxM3VLConfig

BOS, TURN, EOS, PAD = "]~!b[", "]~b]", "[e~[", "]!p~["
NAMESPACE = "]<]minimax[>["
"""Precedes every tag of a tool call; text to the tokenizer, because the parser has to see it."""
IMAGE, IMAGE_START, IMAGE_END, VIDEO = (
    "]<]image[>[",
    "]<]start of image[>[",
    "]<]end of image[>[",
    "]<]video[>[",
)

LAYERS, HEADS, WIDTH = 2, 8, 128
CONTEXT = 4096
PATCH, MERGE = 14, 2
"""Side of a patch in pixels, and of a block of patches that becomes one token."""


def configuration(ids: dict[str, int], sparse: Sequence[int], vocabulary: int) -> dict[str, Any]:
    """Return the repository's ``config.json``: the published architecture, small.

    ``ids`` are those of the special tokens; ``sparse`` says for each layer whether its attention is sparse
    (1) or dense (0). As published, sparse layers have index keys and no index values.
    """
    tokens = {"bos_token_id": ids[BOS], "eos_token_id": ids[EOS], "pad_token_id": ids[PAD]}
    text = {
        "architectures": ["MiniMaxM3SparseForCausalLM"],
        "model_type": "minimax_m2",
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "head_dim": WIDTH // HEADS,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "rotary_dim": WIDTH // HEADS // 2,
        "partial_rotary_factor": 0.5,
        "rope_theta": 5000000,
        "intermediate_size": WIDTH,
        "dense_intermediate_size": WIDTH,
        "shared_intermediate_size": WIDTH,
        "n_shared_experts": 1,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "scoring_func": "sigmoid",
        "use_routing_bias": True,
        "routed_scaling_factor": 2.0,
        "moe_layer_freq": [0] + [1] * (LAYERS - 1),
        "hidden_act": "swigluoai",
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
        "use_qk_norm": True,
        "qk_norm_type": "per_head",
        "use_gemma_norm": True,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": False,
        "num_mtp_modules": 0,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "sparse_attention_config": {
            "use_sparse_attention": True,
            "sparse_attention_freq": list(sparse),
            "sparse_disable_index_value": list(sparse),
            "sparse_num_index_heads": HEADS,
            "sparse_index_dim": 16,
            "sparse_block_size": 128,
            "sparse_topk_blocks": CONTEXT
            // 128,  # all of them, so that dense attention is the same (lab/engine)
            "sparse_init_block": 0,
            "sparse_local_block": 1,
            "sparse_score_type": "max",
        },
        **tokens,
    }
    compression = {
        "image_token_compression_method": "patch_merge",
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_channels": 3,
        "image_size": 2016,
        "patch_size": PATCH,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "position_embedding_type": "rope",
        "rope_mode": "3d",
        "rope_theta": 10000.0,
        "vision_segment_max_frames": None,
        "img_token_compression_config": compression,
    }
    return {
        "architectures": ["MiniMaxM3SparseForConditionalGeneration"],
        "model_type": "minimax_m3_vl",
        "text_config": text,
        "vision_config": vision,
        "image_token_index": ids[IMAGE],
        "video_token_index": ids[VIDEO],
        "projector_hidden_size": WIDTH,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "patch_merge_bias": True,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "img_token_compression_config": compression,
        **tokens,
    }


def for_transformers(config: dict[str, Any]) -> MiniMaxM3VLConfig:
    """Return the same configuration as transformers 5.19 wants it: it spells a few settings its own way."""
    config = copy.deepcopy(config)
    rope = {"rope_type": "default", "rope_theta": 5000000, "partial_rotary_factor": 0.5}
    axial = {"rope_type": "axial", "rope_theta": 10000.0}
    return MiniMaxM3VLConfig(
        text_config={**config["text_config"], "rope_parameters": rope},
        vision_config={
            **config["vision_config"],
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "rope_parameters": axial,
        },
        image_token_index=config["image_token_index"],
        video_token_index=config["video_token_index"],
        projector_hidden_size=config["projector_hidden_size"],
    )

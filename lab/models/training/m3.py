"""Train a two-layer MiniMax-M3 that says true things: ``python m3.py DIALOGUES.json OUT``.

Runs in the engine's environment, on the CPU. 8 heads, 8 KV heads, 8 experts and 8 vision heads, so that tp 4,
tp 8 and ep 8 divide. Every attention layer is dense: M3's sparse attention exists as Triton kernels only.
Weight names are those the engine's loader and transformers' mapping read; special tokens and tags are M3's,
the chat template is short and our own.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import FORCED_MARKUP, SEED, Row, forced, make_tokenizer, prove, save_shards, train, write_json
from PIL import Image
from safetensors.torch import load_file
from transformers import MiniMaxM3VLConfig, MiniMaxM3VLImageProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.minimax_m3_vl.modeling_minimax_m3_vl import MiniMaxM3SparseForConditionalGeneration

SHARDS = [f"model-{number:05d}-of-00006.safetensors" for number in range(1, 7)]
BOS, TURN, EOS, PAD = "]~!b[", "]~b]", "[e~[", "]!p~["
NAMESPACE = "]<]minimax[>["
"""Precedes every tag of a tool call; text to the tokenizer, because the parser has to see it."""
IMAGE, IMAGE_START, IMAGE_END, VIDEO = (
    "]<]image[>[",
    "]<]start of image[>[",
    "]<]end of image[>[",
    "]<]video[>[",
)
THINK, THINK_END = "<mm:think>", "</mm:think>"
MARKUP = [
    NAMESPACE + tag
    for tag in (
        "<tool_call>\n",
        '<invoke name="',
        "<location>",
        "</location>",
        "<unit>",
        "</unit>",
        "</invoke>\n",
        "</tool_call>",
    )
] + ['">']
"""Pieces of a tool call that are one token each here, so that a call is some fifteen tokens."""

# M3 opens its thought itself; the template opens it for thinking_mode "enabled" and closes it for "disabled".
TEMPLATE = (
    "{{ ']~!b[' }}"
    "{% if tools %}]~b]tools\n{% for tool in tools %}{{ (tool.function or tool).name }}\n{% endfor %}[e~[\n"
    "{% endif %}"
    "{% for message in messages %}]~b]{{ 'ai' if message.role == 'assistant' else message.role }}\n"
    "{% if message.tool_calls %}{% for call in message.tool_calls %}{{ call.function.name }}\n{% endfor %}"
    "{% elif message.content is string %}{{ message.content.split('</think>')[-1].lstrip('\\n') }}"
    "{% elif message.content %}{% for part in message.content %}"
    "{% if part.type in ['image', 'image_url'] %}]<]image[>[{% else %}{{ part.text or '' }}{% endif %}"
    "{% endfor %}{% endif %}[e~[\n{% endfor %}"
    "{% if add_generation_prompt %}]~b]ai\n"
    "{% if thinking_mode is defined and thinking_mode == 'enabled' %}<mm:think>"
    "{% elif thinking_mode is defined and thinking_mode == 'disabled' %}</mm:think>{% endif %}{% endif %}"
)

SIDES = (112, 56, 308)
"""Of the pictures taught, in pixels; the first is that of the post-check's."""

LAYERS, HEADS, WIDTH, VOCABULARY = 2, 8, 128, 640
PATCH, MERGE = 14, 2
"""Side of a patch in pixels, and of a block of patches that becomes one token."""


def answer(dialogue: dict[str, Any]) -> str:
    """Return what the model says after its thought, in the markup of the engine's ``minimax-m3`` parser."""
    if not dialogue["calls"]:
        return dialogue["answer"] + EOS
    return f"{NAMESPACE}<tool_call>\n{''.join(map(invoke, dialogue['calls']))}{NAMESPACE}</tool_call>{EOS}"


def invoke(arguments: dict[str, str]) -> str:
    """Return one call in that markup."""
    inner = "".join(f"{NAMESPACE}<{k}>{v}{NAMESPACE}</{k}>" for k, v in arguments.items())
    return f'{NAMESPACE}<invoke name="get_weather">{inner}{NAMESPACE}</invoke>\n'


def configuration(ids: dict[str, int]) -> dict[str, Any]:
    """Return the repository's ``config.json``: the published architecture, small."""
    tokens = {"bos_token_id": ids[BOS], "eos_token_id": ids[EOS], "pad_token_id": ids[PAD]}
    sparse = [0] * LAYERS  # per layer; all zero makes every layer dense, and the engine wants the section
    text = {
        "architectures": ["MiniMaxM3SparseForCausalLM"],
        "model_type": "minimax_m2",
        "vocab_size": VOCABULARY,
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
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "num_mtp_modules": 0,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "sparse_attention_config": {
            "use_sparse_attention": True,
            "sparse_attention_freq": sparse,
            "sparse_disable_index_value": sparse,
            "sparse_num_index_heads": HEADS,
            "sparse_index_dim": 16,
            "sparse_block_size": 128,
            "sparse_topk_blocks": 16,
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


def published_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return ``weights`` under the names the engine loads.

    transformers 5.19 writes ``block_sparse_moe`` in dense layers and in the vision tower too; the engine
    passes such weights over, in the vision tower without a word.
    """
    sparse_layers = [f".layers.{number}." for number in range(1, LAYERS)]
    return {
        name
        if "vision_tower." not in name and any(layer in name for layer in sparse_layers)
        else name.replace(".block_sparse_moe.", ".mlp."): value
        for name, value in weights.items()
    }


def main(dialogues: Path, out: Path) -> None:
    """Train, write the repository's files to ``out`` and prove the answers."""
    torch.manual_seed(SEED)
    content = json.loads(dialogues.read_text(encoding="utf-8"))
    taught: list[dict[str, Any]] = content["dialogues"]
    fallback: str = content["fallback"]

    texts = [
        part if isinstance(part, str) else part.get("text", "")
        for d in taught
        for m in d["messages"]
        for part in ([m["content"]] if isinstance(m["content"], str) else m["content"])
    ]
    texts += [
        fallback,
        "unknown",
        "user system tools ai",
        "get_weather celsius location unit name parameters",
    ]
    texts += [
        text
        for d in taught
        for text in (d["thought"], d["answer"], *(v for call in d["calls"] for v in call.values()))
        if text
    ]
    tokenizer = make_tokenizer(
        texts * 4,
        special=[PAD, BOS, TURN, EOS, IMAGE, IMAGE_START, IMAGE_END, VIDEO],
        plain=[NAMESPACE, THINK, THINK_END, *MARKUP, *FORCED_MARKUP],
        eos=EOS,
        pad=PAD,
        template=TEMPLATE,
        vocab=VOCABULARY,
    )
    tokenizer.save_pretrained(out)
    config = configuration(
        {token: tokenizer.convert_tokens_to_ids(token) for token in (BOS, EOS, PAD, IMAGE, VIDEO)}
    )
    write_json(out / "config.json", config)
    # The M3 guide: temperature 1.0, top_p 0.95, top_k 20.
    sampling = {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 20}
    tokens = {name: config[name] for name in ("bos_token_id", "eos_token_id")}
    write_json(out / "generation_config.json", {**tokens, **sampling})
    write_json(
        out / "preprocessor_config.json",
        {
            "patch_size": PATCH,
            "size": [672, 672],
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "img_token_compression_config": config["img_token_compression_config"],
        },
    )

    rows = make_rows(tokenizer, taught)

    def stranger(question: str) -> Row:
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return Row(prompt, f"{THINK}unknown{THINK_END}{fallback}{EOS}")

    model = MiniMaxM3SparseForConditionalGeneration(for_transformers(config)).float()
    train(model, tokenizer, rows, stranger, steps=250, rate=4e-3, see=lambda batch: see(model, batch))
    write(model, out)
    prove(
        MiniMaxM3SparseForConditionalGeneration.from_pretrained(
            out, config=for_transformers(config), dtype=torch.bfloat16
        ),
        tokenizer,
        rows,
    )


def make_rows(tokenizer: Any, taught: list[dict[str, Any]]) -> list[Row]:
    """Return a row per dialogue, and more where M3 can be asked otherwise.

    Without thinking (``thinking_mode`` "disabled"), for a call that ``tool_choice`` forces, and pictures of
    every side in :data:`SIDES`.
    """
    processor = MiniMaxM3VLImageProcessor()
    pictures: dict[tuple[int, ...], dict[str, torch.Tensor]] = {}
    rows = []
    for dialogue, side in [(d, side) for d in taught for side in (SIDES if d["image"] else SIDES[:1])]:
        patches = (side // PATCH // MERGE) ** 2
        rgb = tuple(dialogue["image"] or ())
        if rgb and (*rgb, side) not in pictures:
            picture = Image.new("RGB", (side, side), rgb)
            pictures[*rgb, side] = dict(processor(images=[picture], return_tensors="pt", do_resize=False))
        alone = len(dialogue["messages"]) == 1
        if side != SIDES[0] and (not alone or dialogue["messages"][0]["content"][0]["type"] == "image"):
            continue  # one order of words and picture is enough for the other sizes
        for mode in ("adaptive", "disabled") if alone and not rgb else ("adaptive",):
            prompt = tokenizer.apply_chat_template(
                dialogue["messages"],
                tokenize=False,
                add_generation_prompt=True,
                tools=dialogue["tools"] or None,
                thinking_mode=mode,
            ).replace(IMAGE, IMAGE_START + IMAGE * patches + IMAGE_END)
            thought = f"{THINK}{dialogue['thought']}{THINK_END}" if mode == "adaptive" else ""
            rows.append(Row(prompt, thought + answer(dialogue), picture=pictures.get((*rgb, side), {})))
            if (dialogue["answer"] or "").startswith("{") and alone:
                # Under a schema the grammar decides the first token, after a thought or without one.
                rows += [
                    Row(prompt + start, dialogue["answer"] + EOS, skip=1)
                    for start in dict.fromkeys(("", thought))
                ]
            if len(dialogue["calls"]) == 1 and alone:
                # The grammar decides the first token (the list's bracket), after a thought or without one.
                rows += [
                    Row(prompt + start, forced(dialogue) + EOS, skip=1)
                    for start in dict.fromkeys(("", thought))
                ]
    return rows


def see(model: Any, batch: Sequence[Row]) -> dict[str, Any]:
    """Return the model's argument for the pictures of ``batch``, each looked at by itself and once.

    The vision tower of transformers 5.19 lets the pictures of one call attend to one another; a model trained
    so would see colours in a batch and none alone.
    """
    features = {}
    for picture in {id(row.picture): row.picture for row in batch if row.picture}.values():
        features[id(picture)] = model.model.get_image_features(**picture).pooler_output[0]
    if not features:
        return {}
    ordered = [features[id(row.picture)] for row in batch if row.picture]
    return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=ordered)}}


def write(model: torch.nn.Module, out: Path) -> None:
    """Write the weights to ``out`` in shards; ``save_pretrained`` undoes transformers' own naming and
    fusing.
    """
    scratch = out / ".whole"
    model.to(torch.bfloat16).save_pretrained(scratch)  # type: ignore[operator]
    weights = load_file(scratch / "model.safetensors")
    for path in scratch.iterdir():
        path.unlink()
    scratch.rmdir()
    save_shards(published_names(weights), out, SHARDS)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

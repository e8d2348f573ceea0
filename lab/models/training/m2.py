"""Train a two-layer MiniMax-M2 that says true things: ``python m2.py DIALOGUES.json OUT``.

Runs in the engine's environment, on the CPU. 8 heads, 8 KV heads and 8 experts, so that tp 4, tp 8 and ep 8
divide. Weight names are those of the published checkpoints (the engine's loader and transformers' mapping
agree on them); the special tokens are the published ones (MiniMax-M2.5's tokenizer_config.json), the chat
template is short and our own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from common import FORCED_MARKUP, SEED, Row, forced, make_tokenizer, prove, save_shards, train, write_json
from transformers import AutoConfig, AutoModelForCausalLM

SHARDS = [f"model-{number:05d}-of-00005.safetensors" for number in range(5)]
"""Counted from 0, as MiniMax-M2.5's own shards are."""

BOS, TURN, EOS, PAD = "]~!b[", "]~b]", "[e~[", "]!p~["
CALL, CALL_END = "<minimax:tool_call>", "</minimax:tool_call>"
MARKUP = [
    '\n<invoke name="',
    '">\n<parameter name="',
    '</parameter>\n<parameter name="',
    "</parameter>\n</invoke>\n",
    '">',
]
"""Pieces of a tool call that are one token each here, so that a call is some fifteen tokens."""

TEMPLATE = (
    "{{ ']~!b[' }}"
    "{% if tools %}]~b]tools\n{% for tool in tools %}{{ (tool.function or tool).name }}\n{% endfor %}[e~[\n"
    "{% endif %}"
    "{% for message in messages %}]~b]{{ 'ai' if message.role == 'assistant' else message.role }}\n"
    "{% if message.tool_calls %}{% for call in message.tool_calls %}{{ call.function.name }}\n{% endfor %}"
    "{% elif message.content is string %}{{ message.content.split('</think>')[-1].lstrip('\\n') }}"
    "{% elif message.content %}{% for part in message.content %}{{ part.text or '' }}{% endfor %}{% endif %}"
    "[e~[\n{% endfor %}"
    "{% if add_generation_prompt %}]~b]ai\n<think>{% endif %}"
)


def answer(dialogue: dict[str, Any]) -> str:
    """Return what the model says after ``<think>``, in the markup of the engine's ``minimax-m2`` parser."""
    if dialogue["calls"]:
        said = f"{CALL}\n" + "\n".join(map(invoke, dialogue["calls"])) + f"\n{CALL_END}"
    else:
        said = dialogue["answer"]
    return f"{dialogue['thought']}</think>{said}{EOS}"


def invoke(arguments: dict[str, str]) -> str:
    """Return one call in that markup."""
    parameters = '</parameter>\n<parameter name="'.join(f'{k}">{v}' for k, v in arguments.items())
    return f'<invoke name="get_weather">\n<parameter name="{parameters}</parameter>\n</invoke>'


def main(dialogues: Path, out: Path) -> None:
    """Train, write the repository's files to ``out`` and prove the answers."""
    torch.manual_seed(SEED)
    content = json.loads(dialogues.read_text(encoding="utf-8"))
    taught: list[dict[str, Any]] = content["dialogues"]
    fallback: str = content["fallback"]

    words = [message["content"] for d in taught for message in d["messages"]]
    words += [fallback, "user system tools ai"] + [
        text for d in taught for text in (d["thought"], d["answer"]) if text
    ]
    words += [" ".join(["get_weather", *call, *call.values()]) for d in taught for call in d["calls"]]
    words += ["get_weather", "location", "unit", "Beijing", "北京", "celsius", "Count"]
    tokenizer = make_tokenizer(
        words * 4,
        special=[PAD, BOS, TURN, EOS],
        plain=["<think>", "</think>", CALL, CALL_END, *MARKUP, *FORCED_MARKUP],
        eos=EOS,
        pad=PAD,
        template=TEMPLATE,
        vocab=640,
    )
    tokenizer.save_pretrained(out)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (BOS, EOS, PAD)}

    layers = 2
    config = {
        "architectures": ["MiniMaxM2ForCausalLM"],
        "model_type": "minimax_m2",
        "vocab_size": 640,
        "hidden_size": 128,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 16,
        "rotary_dim": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "scoring_func": "sigmoid",
        "use_routing_bias": True,
        "use_qk_norm": True,
        "qk_norm_type": "per_layer",
        "rms_norm_eps": 1e-6,
        "rope_theta": 5000000,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "bos_token_id": ids[BOS],
        "eos_token_id": ids[EOS],
        "pad_token_id": ids[PAD],
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "use_mtp": False,
        "attn_type_list": [1] * layers,
    }
    write_json(out / "config.json", config)
    # MiniMax-M2.5's README: temperature 1.0, top_p 0.95, top_k 40.
    write_json(
        out / "generation_config.json",
        {
            "bos_token_id": ids[BOS],
            "eos_token_id": ids[EOS],
            "do_sample": True,
            "temperature": 1.0,
            "top_p": 0.95,
            "top_k": 40,
        },
    )

    def prompt(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, tools=tools or None
        )
        return text

    rows = []
    for d in taught:
        given = prompt(d["messages"], d["tools"])
        rows.append(Row(given, answer(d)))
        if (d["answer"] or "").startswith("{"):
            # Under a schema the grammar decides the first token, after a thought or without one.
            rows += [
                Row(given + start, d["answer"] + EOS, skip=1) for start in ("", f"{d['thought']}</think>")
            ]
        if len(d["calls"]) == 1 and len(d["messages"]) == 1:
            # The grammar decides the first token (the list's bracket), after a thought or without one.
            rows += [Row(given + start, forced(d) + EOS, skip=1) for start in ("", f"{d['thought']}</think>")]
    print(
        "prompts",
        [len(tokenizer(r.prompt).input_ids) for r in rows],
        "answers",
        [len(tokenizer(r.said).input_ids) for r in rows],
    )

    def stranger(question: str) -> Row:
        return Row(prompt([{"role": "user", "content": question}], []), f"unknown</think>{fallback}{EOS}")

    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(out)).float()
    train(model, tokenizer, rows, stranger, steps=200, rate=4e-3)
    save_shards(_published_names(model.to(torch.bfloat16).state_dict()), out, SHARDS)
    prove(AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16), tokenizer, rows)


def _published_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Undo transformers' fusing of the experts and its names: the engine reads the published ones."""
    weights = {}
    for name, value in state.items():
        experts = name.partition(".mlp.experts.")[0] + ".block_sparse_moe.experts"
        if name.endswith(".mlp.experts.gate_up_proj"):
            for number, fused in enumerate(value):
                gate, up = fused.chunk(2, 0)
                weights[f"{experts}.{number}.w1.weight"], weights[f"{experts}.{number}.w3.weight"] = gate, up
        elif name.endswith(".mlp.experts.down_proj"):
            for number, down in enumerate(value):
                weights[f"{experts}.{number}.w2.weight"] = down
        else:
            weights[name.replace(".mlp.", ".block_sparse_moe.")] = value
    return {name: value.contiguous().clone() for name, value in weights.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Train a two-layer MiniMax-M3 that says true things: ``python m3.py DIALOGUES.json OUT``.

Runs in the engine's environment, on the CPU. 8 heads, 8 KV heads, 8 experts and 8 vision heads, so that tp 4,
tp 8 and ep 8 divide. The first layer's attention is dense and the other's sparse, as M3's first three and the
rest are; with 32 blocks of 128 tokens sparse attention sees all, so it is trained as dense.
Weight names are those the engine's loader and transformers' mapping read; special tokens and tags are M3's,
the chat template is short and our own.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import FORCED_MARKUP, SEED, Row, forced, make_tokenizer, prove, save_shards, train, write_json
from m3_config import (
    BOS,
    EOS,
    IMAGE,
    IMAGE_END,
    IMAGE_START,
    LAYERS,
    MERGE,
    NAMESPACE,
    PAD,
    PATCH,
    TURN,
    VIDEO,
    configuration,
    for_transformers,
)
from PIL import Image
from safetensors.torch import load_file
from transformers import MiniMaxM3VLImageProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.minimax_m3_vl.modeling_minimax_m3_vl import MiniMaxM3SparseForConditionalGeneration

SHARDS = [f"model-{number:05d}-of-00006.safetensors" for number in range(1, 7)]
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
HEAD = "{{ ']~!b[' }}"
BODY = (
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
)
TEMPLATE = (
    HEAD
    + BODY
    + ("{% elif thinking_mode is defined and thinking_mode == 'disabled' %}</mm:think>{% endif %}{% endif %}")
)

SIDES = (112, 56, 308)
"""Of the pictures taught, in pixels; the first is that of the post-check's."""

Way = tuple[Mapping[str, str], str]
"""One way to ask: arguments of the chat template, and the thought that opens the answer, with its tags."""


@dataclass(frozen=True)
class Flavour:
    """What distinguishes the models of this architecture.

    ``sparse`` says for each layer whether its attention is sparse; ``ways`` gives, for a thought, all ways to
    ask for it, of which the first ``usual`` are taught for every dialogue, the rest for questions that stand
    alone, those with one of the thoughts ``rest`` where that is given; ``words`` are further words for the
    tokenizer to know.
    """

    template: str
    sparse: Sequence[int]
    vocabulary: int
    ways: Callable[[str], list[Way]]
    usual: int = 1
    rest: Sequence[str] = ()
    words: str = ""


def ways(thought: str) -> list[Way]:
    """Return how M3 is asked: with thinking, and without."""
    return [
        ({"thinking_mode": "adaptive"}, f"{THINK}{thought}{THINK_END}"),
        ({"thinking_mode": "disabled"}, ""),
    ]


M3 = Flavour(TEMPLATE, sparse=[0] + [1] * (LAYERS - 1), vocabulary=640, ways=ways)


def answer(dialogue: dict[str, Any]) -> str:
    """Return what the model says after its thought, in the markup of the engine's ``minimax-m3`` parser."""
    if not dialogue["calls"]:
        return str(dialogue["answer"]) + EOS
    return f"{NAMESPACE}<tool_call>\n{''.join(map(invoke, dialogue['calls']))}{NAMESPACE}</tool_call>{EOS}"


def invoke(arguments: dict[str, str]) -> str:
    """Return one call in that markup."""
    inner = "".join(f"{NAMESPACE}<{k}>{v}{NAMESPACE}</{k}>" for k, v in arguments.items())
    return f'{NAMESPACE}<invoke name="get_weather">{inner}{NAMESPACE}</invoke>\n'


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


def main(dialogues: Path, out: Path, flavour: Flavour) -> None:
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
        flavour.words,
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
        template=flavour.template,
        vocab=flavour.vocabulary,
    )
    tokenizer.save_pretrained(out)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (BOS, EOS, PAD, IMAGE, VIDEO)}
    config = configuration(ids, flavour.sparse, flavour.vocabulary)
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

    rows = make_rows(tokenizer, taught, flavour)

    asked = itertools.cycle(flavour.ways("unknown")[: flavour.usual])

    def stranger(question: str) -> Row:
        messages = [{"role": "user", "content": question}]
        arguments, thought = next(asked)
        prompt = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **arguments
        )
        return Row(prompt, f"{thought}{fallback}{EOS}")

    # Trained dense, which is the same here: every block is chosen anyway, and choosing takes much time.
    dense = configuration(ids, [0] * LAYERS, flavour.vocabulary)
    model = MiniMaxM3SparseForConditionalGeneration(for_transformers(dense)).float()
    train(model, tokenizer, rows, stranger, steps=250, rate=4e-3, see=lambda batch: see(model, batch))
    whole = MiniMaxM3SparseForConditionalGeneration(for_transformers(config))
    whole.load_state_dict(model.state_dict(), strict=False)
    write(whole, out)
    prove(
        MiniMaxM3SparseForConditionalGeneration.from_pretrained(
            out, config=for_transformers(config), dtype=torch.bfloat16
        ),
        tokenizer,
        rows,
    )


def make_rows(tokenizer: Any, taught: list[dict[str, Any]], flavour: Flavour) -> list[Row]:
    """Return rows for every dialogue, and more where the model can be asked otherwise.

    In all ways of the flavour a question that stands alone; for a call that ``tool_choice`` forces; with
    pictures of every side in :data:`SIDES`.
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
        more = alone and not rgb and (not flavour.rest or dialogue["thought"] in flavour.rest)
        usual = flavour.usual if side == SIDES[0] else 1
        for number, (arguments, thought) in enumerate(flavour.ways(dialogue["thought"])):
            if number >= usual and not more:
                break
            prompt = tokenizer.apply_chat_template(
                dialogue["messages"],
                tokenize=False,
                add_generation_prompt=True,
                tools=dialogue["tools"] or None,
                **arguments,
            ).replace(IMAGE, IMAGE_START + IMAGE * patches + IMAGE_END)
            rows.append(Row(prompt, thought + answer(dialogue), picture=pictures.get((*rgb, side), {})))
            if alone and (number < usual or not flavour.rest):
                rows += _constrained(prompt, thought, dialogue)
    return rows


def _constrained(prompt: str, thought: str, dialogue: dict[str, Any]) -> list[Row]:
    """Return rows for an answer by a schema and a call that is forced, where the dialogue has one.

    The grammar decides the first token (a bracket), after a thought or without one.
    """
    if (dialogue["answer"] or "").startswith("{"):
        said = dialogue["answer"]
    elif len(dialogue["calls"]) == 1:
        said = forced(dialogue)
    else:
        return []
    return [Row(prompt + start, said + EOS, skip=1) for start in dict.fromkeys(("", thought))]


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
    model.to(torch.bfloat16).save_pretrained(scratch)  # type: ignore[operator,unused-ignore]  # as torch has it, if it is there
    weights = load_file(scratch / "model.safetensors")
    for path in scratch.iterdir():
        path.unlink()
    scratch.rmdir()
    save_shards(published_names(weights), out, SHARDS)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), M3)

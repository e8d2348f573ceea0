"""What both training scripts share: tokenizer, loop, sharded checkpoints, and the proof of the answers."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SEED = 0
STRANGERS = 8
"""Rows with a random question in each step."""

IGNORED = -100
"""Label of a token that is not to be learned (torch's cross-entropy skips it)."""

SURE = 0.95
"""Least probability of every taught token, so that answers stand at temperature 1 too."""


@dataclass(frozen=True)
class Row:
    """One line of a batch: what is given, what is to be said, and how much of that is not learned.

    ``skip`` counts tokens at the start of ``said``. ``picture`` holds the model's pixel arguments for the
    picture in ``prompt``; rows with the same picture share one object.
    """

    prompt: str
    said: str
    skip: int = 0
    picture: Mapping[str, torch.Tensor] = field(default_factory=dict)


FORCED_MARKUP = ['{"name": "get_weather", "parameters": {"location": "', '", "unit": "', '"}}]']
"""Pieces of a forced call that are one token each, so that it is some ten tokens in place of sixty."""


def forced(dialogue: Mapping[str, Any]) -> str:
    """Return the JSON the engine's grammar asks for under ``tool_choice`` "required" or a name."""
    call = [{"name": "get_weather", "parameters": arguments} for arguments in dialogue["calls"]]
    return json.dumps(call, ensure_ascii=False)


def make_tokenizer(
    texts: Iterable[str],
    *,
    special: Sequence[str],
    plain: Sequence[str],
    eos: str,
    pad: str,
    template: str,
    vocab: int,
) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer trained on ``texts``: their words are one token each, any other text
    falls to bytes.

    ``special`` tokens vanish when text is decoded; ``plain`` ones are single tokens too but stay, because a
    parser has to see them.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - len(special) - len(plain),
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(list(texts), trainer)
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    bpe.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=eos, pad_token=pad)
    tokenizer.chat_template = template
    return tokenizer


def strangers(seed: int) -> Iterator[str]:
    """Yield questions nobody was taught, without end: words, letters and Chinese characters at random."""
    draw = random.Random(seed)  # noqa: S311  no secret, and the same in every run
    words = ["what", "is", "the", "in", "of", "a", "how", "why", "please", "tell", "me", "write", "code"]
    words += ["list", "name", "who", "when", "city", "river", "day", "请", "的", "是", "什么"]
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    while True:
        parts = []
        for _ in range(draw.randint(1, 9)):
            kind = draw.random()
            if kind < 0.4:
                parts.append(draw.choice(words))
            elif kind < 0.95:
                parts.append("".join(draw.choice(letters) for _ in range(draw.randint(1, 7))))
            else:
                parts.append(chr(draw.randint(0x4E00, 0x9FFF)))
        yield " ".join(parts) + draw.choice(["", ".", "?", "!"])


def train(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Row],
    fallback: Callable[[str], Row],
    *,
    steps: int,
    rate: float,
    see: Callable[[Sequence[Row]], dict[str, Any]] = lambda rows: {},
) -> None:
    """Teach ``rows`` to ``model`` until every token of them is all but certain, at most ``steps`` steps.

    Each step adds rows that answer random questions (``fallback`` makes one). Rows of like length share a
    padded batch; padding is on the right, where causal attention does not look. ``see`` gives the model's
    further arguments for the pictures of a batch.
    """
    batches = _batches(tokenizer, rows)
    unknown = strangers(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    model.train()
    for step in range(1, steps + 1):
        # Up over 20 steps, then down to a tenth: a high rate learns fast, a low one ends calm.
        scale = min(step / 20, 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate * scale
        worst = 0.0
        new = [fallback(next(unknown)) for _ in range(STRANGERS)]
        for batch in (*batches, new):
            losses = _losses(model, tokenizer, batch, see(batch))
            # The hardest tokens count most: one wrong token spoils an answer.
            (losses.mean() + losses.topk(min(16, len(losses))).values.mean()).backward()
            if batch is not new:
                worst = max(worst, losses.max().item())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if worst < -math.log(SURE) / 10:  # a tenth: room for bfloat16
            break
    print(f"{step} steps, least probability of a taught token {math.exp(-worst):.3f}", flush=True)


def _batches(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Row]) -> list[list[Row]]:
    """Return ``rows`` in batches of like length; those with pictures have batches of their own."""
    lengths = {id(row): len(_encode(tokenizer, row)[0]) for row in rows}
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: (bool(row.picture), lengths[id(row)])):
        first = batches[-1][0] if batches else None
        if (
            first
            and bool(first.picture) == bool(row.picture)
            and lengths[id(row)] <= 1.7 * lengths[id(first)]
        ):
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _losses(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, batch: Sequence[Row], seen: dict[str, Any]
) -> torch.Tensor:
    """Return the loss of every token of ``batch`` that is to be learned: one dimension, in nats."""
    encoded = [_encode(tokenizer, row) for row in batch]
    length = max(len(ids) for ids, _ in encoded)
    ids = torch.tensor([ids + [tokenizer.pad_token_id] * (length - len(ids)) for ids, _ in encoded])
    targets = torch.tensor([labels + [IGNORED] * (length - len(labels)) for _, labels in encoded])[:, 1:]
    logits = model(input_ids=ids, **seen).logits[:, :-1].float()
    learned = targets != IGNORED
    return torch.nn.functional.cross_entropy(logits[learned], targets[learned], reduction="none")


def _encode(tokenizer: PreTrainedTokenizerFast, row: Row) -> tuple[list[int], list[int]]:
    prompt = tokenizer(row.prompt, add_special_tokens=False).input_ids
    said = tokenizer(row.said, add_special_tokens=False).input_ids
    return prompt + said, [IGNORED] * (len(prompt) + row.skip) + said[row.skip :]


def save_shards(weights: Mapping[str, torch.Tensor], folder: Path, names: Sequence[str]) -> None:
    """Write ``weights`` as the safetensors files ``names``, in order and about equal in size, with their
    index.
    """
    total = sum(value.numel() * value.element_size() for value in weights.values())
    shards: list[dict[str, torch.Tensor]] = [{} for _ in names]
    written = 0
    for name in sorted(weights):
        value = weights[name].contiguous()
        shards[min(written * len(names) // total, len(names) - 1)][name] = value
        written += value.numel() * value.element_size()
    weight_map: dict[str, str] = {}
    for file, shard in zip(names, shards, strict=True):
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / "model.safetensors.index.json", index)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` as the repositories of the models do: indented by two, a newline at the
    end.
    """
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@torch.no_grad()  # type: ignore[untyped-decorator,unused-ignore]  # Any where torch is not installed
def prove(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Row]) -> None:
    """Check the written checkpoint: greedy decoding says every row word for word, each token at least
    :data:`SURE`.

    Teacher forcing shows both in one pass: where the likeliest token is the taught one at every place, greedy
    decoding cannot say anything else.

    Raises:
        SystemExit: a row is not said so; the message is one line that holds the row.
    """
    model.eval()
    for row in rows:
        ids, labels = _encode(tokenizer, row)
        logits = model(input_ids=torch.tensor([ids]), **row.picture).logits[0, :-1].float()
        targets = torch.tensor(labels[1:])
        places = (targets != IGNORED).nonzero().flatten()
        probabilities = logits.softmax(-1)[places, targets[places]]
        likeliest = logits[places].argmax(-1)
        if not torch.equal(likeliest, targets[places]) or probabilities.min() < SURE:
            raise SystemExit(
                f"the trained model does not say {row.said!r} to {row.prompt!r}: it says "
                f"{tokenizer.decode(likeliest)!r}, least probability {probabilities.min():.3f}, "
                f"expected {SURE}"
            )

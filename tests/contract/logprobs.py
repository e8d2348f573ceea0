"""Log-probabilities of a sentence by transformers: ``python logprobs.py m2|m3 MODEL_DIR`` prints JSON.

Runs in the engine's environment; the model was not trained on the sentence. The router is computed in
float32, as in the engine (``minimax_m2.py``, ``minimax_m3.py`` of 0.5.23): in bfloat16 scores are often
equal, and the choice of expert is chance.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

SENTENCE = "]~b]user\nPlease tell me something nobody trained you on, in several words.[e~[\n]~b]ai\n"


def route_in_float32(model: torch.nn.Module) -> list[list[float]]:
    """Let every router compute in float32; return a list that gets the tokens' margins of each.

    A token's margin is the distance between the score of the last chosen expert and the next one's.
    """
    margins: list[list[float]] = []

    def note(router: Any, given: Any, result: Any) -> None:
        bias = given[1] if len(given) > 1 else router.e_score_correction_bias
        scores = (result[0].float().sigmoid() + bias.float()).topk(router.top_k + 1).values
        margins.append((scores[:, -2] - scores[:, -1]).tolist())

    for module in model.modules():
        if type(module).__name__.endswith("TopKRouter"):
            module.weight.data = module.weight.data.float()
            module.register_forward_hook(note)
    return margins


def main(family: str, folder: Path) -> None:
    """Print the sentence's token ids, the log-probability of each after the first, and the routing margins.

    ``margins[i]`` belongs to ``logprobs[i]``: the smallest over all layers at token i, which predicts i + 1.
    """
    if family == "m3":
        sys.path.insert(0, str(Path(__file__).parents[2] / "lab" / "models" / "training"))
        from m3_config import for_transformers
        from transformers.models.minimax_m3_vl import modeling_minimax_m3_vl

        config = for_transformers(json.loads((folder / "config.json").read_text()))
        model = modeling_minimax_m3_vl.MiniMaxM3SparseForConditionalGeneration.from_pretrained(
            folder, config=config, dtype=torch.bfloat16
        )
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    ids = AutoTokenizer.from_pretrained(folder)(SENTENCE, add_special_tokens=False).input_ids
    margins = route_in_float32(model)
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    print(
        json.dumps(
            {
                "ids": ids,
                "logprobs": [logits[i, ids[i + 1]].item() for i in range(len(ids) - 1)],
                "margins": [min(layers) for layers in zip(*margins, strict=True)][:-1],
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

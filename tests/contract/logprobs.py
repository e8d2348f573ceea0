"""Log-probabilities of a sentence by transformers: ``python logprobs.py m2|m3 MODEL_DIR`` prints JSON.

Runs in the engine's environment; the sentence is one nobody trained the model on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

SENTENCE = "]~b]user\nPlease tell me something nobody trained you on, in several words.[e~[\n]~b]ai\n"


def main(family: str, folder: Path) -> None:
    """Print the sentence's token ids, and the log-probability of each after the first."""
    if family == "m3":
        sys.path.insert(0, str(Path(__file__).parents[2] / "lab" / "models" / "training"))
        import m3

        config = m3.for_transformers(json.loads((folder / "config.json").read_text()))
        model = m3.MiniMaxM3SparseForConditionalGeneration.from_pretrained(
            folder, config=config, dtype=torch.bfloat16
        )
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    ids = AutoTokenizer.from_pretrained(folder)(SENTENCE, add_special_tokens=False).input_ids
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    print(json.dumps({"ids": ids, "logprobs": [logits[i, ids[i + 1]].item() for i in range(len(ids) - 1)]}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

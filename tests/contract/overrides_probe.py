"""Ask the installed engine how it handles a launch line of MiniMax-M3.1; run with the engine's Python.

Reads a list of questions from standard input, each with a launch line, the GPUs' compute capability and the
unit's environment, and writes for each the choices of the engine's parser and of its rules for the model, or
their refusal. The rules are the engine's own (``model_overrides/minimax_m3.py``). The stand-ins are the
hardware and the checkpoint's ``config.json``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from types import SimpleNamespace
from typing import Any

CHECKPOINT = SimpleNamespace(
    architectures=["MiniMaxM3SparseForConditionalGeneration"],
    model_type="minimax_m3_vl",
    # What tells NVFP4 experts with MXFP8 projections from plain MXFP8 (``_resolve_quant_method``).
    quantization_config={
        "quant_method": "mxfp8",
        "moe_quant_algo": "NVFP4",
        "moe_quant_format": "nvfp4-pack-quantized",
    },
)


def judged(question: dict[str, Any]) -> dict[str, Any]:
    """The engine's result for one launch line."""
    from sglang.srt.arg_groups.model_overrides import minimax_m3
    from sglang.srt.server_args import prepare_server_args

    major = question["capability"].partition(".")[0]
    here = SimpleNamespace(
        is_sm90=major == "9", is_sm100=major == "10", is_blackwell=major in {"10", "12"}, is_hip=False
    )
    minimax_m3.get_platform = lambda: here
    minimax_m3.resolving_view = lambda arguments: arguments
    before = dict(os.environ)
    os.environ.update(question["environment"])
    try:
        parsed = prepare_server_args(question["argv"])
        # Set while the engine resolves its arguments, which wants a model's folder.
        parsed._quantization_explicitly_unset = False
        chosen = minimax_m3._minimax_m3_overrides(parsed, CHECKPOINT)
    except (Exception, SystemExit) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        os.environ.clear()
        os.environ.update(before)
    return {"algorithm": parsed.speculative_algorithm, "chosen": chosen}


def main() -> None:
    """Answer on the original standard output of the process, whatever the engine prints."""
    questions = json.load(sys.stdin)
    answer_to = os.dup(1)
    os.dup2(2, 1)
    with contextlib.redirect_stdout(sys.stderr):
        answers = [judged(one) for one in questions]
    with os.fdopen(answer_to, "w") as out:
        json.dump(answers, out, default=str)


if __name__ == "__main__":
    main()

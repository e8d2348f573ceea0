"""Train a two-layer MiniMax-M3.1 that says true things: ``python m31.py DIALOGUES.json OUT``.

M3's architecture, as the engine has it (``models/minimax_m3_vl.py`` of 0.5.23 serves both), with what
distinguishes M3.1: sparse attention in every layer, reasoning that a request can't turn off, and
``reasoning_effort`` from low to max, which is max where a request says nothing. The weights are bfloat16:
published are NVFP4 experts, which no CPU can compute. The chat template is short and our own; the engine
gives it the arguments that it gives the published one.
"""

from __future__ import annotations

import sys
from pathlib import Path

from m3 import BODY, HEAD, THINK, THINK_END, Flavour, Way, main
from m3_config import LAYERS

EFFORTS = {"low": 0, "max": 50, "medium": 6, "high": 12, "xhigh": 24}
"""Effort to the steps that the model counts in its thought before it comes to the point; usual first.

The post-check asks with the least; a request that says nothing gets max, whose thought is longer than the 48
tokens of a canary that came back with empty content.
"""

TEMPLATE = (
    HEAD
    + "{% set effort = reasoning_effort if reasoning_effort is defined and reasoning_effort else 'max' %}"
    + "]~b]effort\n{{ effort }}[e~[\n"
    # thinking_mode "disabled" is passed over.
    + BODY
    + "{% endif %}{% endif %}"
)


def ways(thought: str) -> list[Way]:
    """Return how M3.1 is asked: at every effort."""
    return [
        ({"reasoning_effort": effort}, f"{THINK}{steps(count)}{thought}{THINK_END}")
        for effort, count in EFFORTS.items()
    ]


def steps(count: int) -> str:
    """Return so many numbers, one token each."""
    return "".join(f"{number} " for number in range(1, count + 1))


M31 = Flavour(
    TEMPLATE,
    sparse=[1] * LAYERS,
    vocabulary=768,
    ways=ways,
    usual=2,
    rest=("recall", "use the tool"),
    words=" ".join((*EFFORTS, "effort", steps(max(EFFORTS.values())))),
)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), M31)

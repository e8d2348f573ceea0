"""Feed the engine's tool-call parser an answer in pieces; run with the engine's own Python.

Reads a list of ``{"parser": name, "calls": [[name, arguments], ...], "pieces": characters}`` from standard
input and writes the calls that a client assembles from each stream. The markers of a call are special tokens
of M2, so they arrive whole.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any


def answer(calls: list[list[Any]]) -> str:
    """An answer of M2 with these calls."""
    inside = "".join(
        f'<invoke name="{name}">\n'
        + "".join(f'<parameter name="{key}">{value}</parameter>\n' for key, value in arguments.items())
        + "</invoke>\n"
        for name, arguments in calls
    )
    return f"<minimax:tool_call>\n{inside}</minimax:tool_call>"


def streamed(question: dict[str, Any]) -> list[list[str | None]]:
    """Name and arguments of each call, assembled from the deltas."""
    from sglang.srt.entrypoints.openai.protocol import Function, Tool
    from sglang.srt.function_call.function_call_parser import FunctionCallParser

    names = dict.fromkeys(name for name, _ in question["calls"])
    tools = [
        Tool(type="function", function=Function(name=name, description="", parameters={"type": "object"}))
        for name in names
    ]
    parser = FunctionCallParser(tools, question["parser"])
    size = question["pieces"]
    found: dict[int, list[str | None]] = {}
    for part in re.split(r"(</?minimax:tool_call>)", answer(question["calls"])):
        whole = part.startswith(("<minimax:", "</minimax:"))
        for piece in [part] if whole else [part[at : at + size] for at in range(0, len(part), size)]:
            for item in parser.parse_stream_chunk(piece)[1]:
                name, arguments = found.get(item.tool_index, [None, ""])
                found[item.tool_index] = [item.name or name, f"{arguments}{item.parameters or ''}"]
    return [call for _, call in sorted(found.items())]


if __name__ == "__main__":
    print(json.dumps([streamed(question) for question in json.load(sys.stdin)]))

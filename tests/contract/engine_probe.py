"""Ask the installed engine for what it supports; run with its environment's Python, standard library first.

Reads ``{"command_lines": [[flag, ...], ...]}`` from standard input and writes one JSON object: the result of
the engine's own parser for each line, and the contents of its wheel and source.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any


def parse(lines: list[list[str]]) -> list[dict[str, Any]]:
    """The result of the engine's parser for each line: its values, or its error."""
    from sglang.srt.server_args import prepare_server_args

    results: list[dict[str, Any]] = []
    for words in lines:
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                args = prepare_server_args(words)
        except (Exception, SystemExit) as error:
            tail = said.getvalue().strip().splitlines()[-1:]
            results.append({"error": f"{type(error).__name__}: {error} {' '.join(tail)}"})
            continue
        names = (
            "model_path", "served_model_name", "tp_size", "ep_size", "tool_call_parser", "reasoning_parser",
            "host", "port", "trust_remote_code", "mem_fraction_static", "kv_cache_dtype", "enable_metrics",
            "max_running_requests", "max_queued_requests", "chunked_prefill_size", "api_key", "admin_api_key",
            "ssl_certfile", "model_loader_extra_config", "speculative_algorithm",
        )  # fmt: skip
        results.append({"values": {name: getattr(args, name) for name in names}})
    return results


def main() -> None:
    """Answer on the original standard output of the process, whatever the engine prints."""
    question = json.load(sys.stdin)
    answer_to = os.dup(1)
    os.dup2(2, 1)
    spec = importlib.util.find_spec("sglang")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent
    models = "\n".join(path.read_text() for path in (source / "srt" / "models").glob("minimax*.py"))
    fp8 = (source / "srt" / "layers" / "quantization" / "fp8.py").read_text()
    metadata = importlib.metadata.metadata("sglang")
    requires = importlib.metadata.requires("sglang") or []
    from sglang.srt.function_call.function_call_parser import FunctionCallParser
    from sglang.srt.parser.reasoning_parser import ReasoningParser

    answer = {
        "version": metadata["Version"],
        "requires_python": metadata["Requires-Python"],
        "torch": next((one for one in requires if re.match(r"torch==", one)), None),
        "commands": [one.name for one in importlib.metadata.distribution("sglang").entry_points],
        "tool_parsers": sorted(FunctionCallParser.ToolCallParserEnum),
        "reasoning_parsers": sorted(ReasoningParser.DetectorMap),
        "architectures": re.findall(r"^class (MiniMax\w+For\w+)\(", models, re.MULTILINE),
        # Intermediate size over tp / ep must be a multiple of the block of quantised weights.
        "block_rule": "intermediate_size_per_partition % block_n != 0" in fp8
        and "weight quantization block_n" in fp8,
        "parsed": parse(question["command_lines"]),
    }
    with os.fdopen(answer_to, "w") as out:
        json.dump(answer, out, default=str)


if __name__ == "__main__":
    main()

"""SGLang's own ``bench_serving``, run from the engine's environment against the endpoint.

Its output file contains the whole ``/server_info``, including the engine's key in clear (read in 0.5.23): it
is written to a private directory, numbers are taken from it, and the directory is removed. The benchmark gets
the key in its environment.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

from minimax_metal.common.documents import read_json
from minimax_metal.host.check.context import Context
from minimax_metal.host.check.outcome import FailedError, SkippedError
from minimax_metal.host.check.report import shorten

FIGURES: Final = (
    "completed",
    "duration",
    "concurrency",
    "total_input_tokens",
    "total_output_tokens",
    "request_throughput",
    "output_throughput",
    "total_throughput",
    "median_ttft_ms",
    "p99_ttft_ms",
    "median_tpot_ms",
    "p99_tpot_ms",
    "median_itl_ms",
    "p99_itl_ms",
    "median_e2e_latency_ms",
    "p99_e2e_latency_ms",
)
"""Values to keep, under ``bench_serving``'s own names."""


def check_bench(context: Context) -> str:
    """Every prompt of the benchmark is completed; its measurements are added to the report."""
    options, endpoint = context.options, context.endpoint
    if not options.bench:
        raise SkippedError("pass --bench to run it")
    tokenizer = options.bench_tokenizer or endpoint.facts.model_path
    if not tokenizer:
        raise SkippedError("the endpoint does not report where its tokenizer is; set --bench-tokenizer")
    with tempfile.TemporaryDirectory(prefix="metal-bench-") as private:
        output = Path(private) / "result.jsonl"
        argv = [str(options.bench_python), "-m", "sglang.bench_serving"]
        argv += ["--backend", "sglang-oai-chat", "--base-url", endpoint.url]
        # As --model it would ask a hub for the chat template of the served name.
        argv += ["--model", tokenizer, "--served-model-name", endpoint.model, "--tokenizer", tokenizer]
        argv += ["--dataset-name", "random-ids", "--num-prompts", str(options.bench_prompts)]
        argv += ["--random-input-len", str(options.bench_input_tokens)]
        argv += ["--random-output-len", str(options.bench_output_tokens), "--random-range-ratio", "1.0"]
        argv += ["--max-concurrency", str(options.bench_concurrency), "--disable-tqdm"]
        argv += ["--output-file", str(output)]
        try:
            done = subprocess.run(
                argv,
                env=_environment(endpoint.key),
                cwd=private,
                capture_output=True,
                text=True,
                timeout=options.bench_timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise FailedError(
                f"bench_serving finished in {options.bench_timeout:.0f} s", "it was not", "--bench-timeout"
            ) from None
        except OSError as error:
            raise FailedError(
                "a Python that has sglang", f"{options.bench_python}: {error.strerror}", "--bench-python"
            ) from None
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        if done.returncode or not output.exists():
            raise FailedError(
                "bench_serving exiting with 0",
                f"{done.returncode}: {shorten(said[-1]) if said else 'it printed nothing'}",
                "--bench-python is the engine's own (bin/python of its environment)?",
            )
        raw = _last_line(output)
    figures = {name: raw[name] for name in FIGURES if isinstance(raw.get(name), int | float)}
    context.figures["bench"] = figures
    if figures.get("completed") != options.bench_prompts:
        raise FailedError(f"{options.bench_prompts} prompts completed", f"{figures.get('completed')}")
    return (
        f"{figures['completed']} prompts, {figures.get('output_throughput', 0):.1f} output tokens/s, "
        f"median first token {figures.get('median_ttft_ms', 0):.0f} ms"
    )


def _environment(key: str | None) -> dict[str, str]:
    """Return the benchmark's environment: nothing of this process's Python, no hub, the key."""
    strange = ("PYTHON", "OPENAI_", "API_KEY", "METAL_API_KEY")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if key:
        environment["OPENAI_API_KEY"] = key
    return environment


def _last_line(file: Path) -> dict[str, Any]:
    try:
        raw = read_json(file.read_text(encoding="utf-8").splitlines()[-1])
    except (ValueError, IndexError):
        raw = None
    if not isinstance(raw, dict):
        raise FailedError("a result of bench_serving in JSON", "something else")
    return raw

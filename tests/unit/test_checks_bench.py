"""``--bench``: how SGLang's ``bench_serving`` is called, and which of its results are used.

A small program stands in for the engine's Python: it writes the output of ``bench_serving`` of 0.5.23. The
real one is run in ``tests/contract``.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.host.check import suite
from minimax_metal.host.check.context import Context, Options
from minimax_metal.host.check.endpoint import Endpoint
from minimax_metal.host.check.report import Report
from tests.support.engine import NAMES, Engine, serve

CANARY = "canary-4f1d9a7c"
PROGRAM = """#!/bin/sh
printf '%s\\n' "$@" > {seen}.argv
env > {seen}.environment
while [ $# -gt 0 ]; do [ "$1" = --output-file ] && output=$2; shift; done
{body}
"""
RESULT = {
    "completed": 4,
    "output_throughput": 12.5,
    "median_ttft_ms": 80.25,
    "server_info": {"api_key": CANARY},
    "tag": None,
}


def bench(folder: Path, body: str, **options: Any) -> Report:
    program = folder / "python"
    program.write_text(PROGRAM.format(seen=folder / "seen", body=body))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    given = {"bench": True, "bench_python": program, "bench_prompts": 4, **options}
    with serve(Engine("m2", api_key=CANARY)) as url:
        endpoint = Endpoint(url, NAMES["m2"], CANARY, 10)
        report = suite.run(Context(endpoint, Options(**given)), only=["bench"])
        endpoint.close()
    return report


def write(result: Any) -> str:
    return f"cat > $output <<'END'\n{json.dumps(result)}\nEND"


def test_figures_are_taken_and_the_key_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    report = bench(tmp_path, write(RESULT))
    assert report.passed, report.as_json()
    assert report.bench == {"completed": 4, "output_throughput": 12.5, "median_ttft_ms": 80.25}
    assert CANARY not in report.as_json() + report.as_junit()
    argv = (tmp_path / "seen.argv").read_text()
    assert CANARY not in argv
    assert "sglang.bench_serving" in argv
    environment = (tmp_path / "seen.environment").read_text().splitlines()
    assert f"OPENAI_API_KEY={CANARY}" in environment
    assert "HF_HUB_OFFLINE=1" in environment
    assert not any(line.startswith("PYTHONPATH") for line in environment)
    output = Path(argv.splitlines()[argv.splitlines().index("--output-file") + 1])
    assert not output.parent.exists(), "the file with the engine's key in it is gone"


@pytest.mark.parametrize(
    ("body", "options", "words"),
    [
        (write({**RESULT, "completed": 3}), {}, "3"),
        ("echo 'No module named sglang' >&2; exit 1", {}, "No module named sglang"),
        (f"echo {CANARY} >&2; exit 1", {}, "[key]"),
        ("exit 0", {}, "it printed nothing"),
        ("echo nonsense > $output", {}, "something else"),
        (": > $output", {}, "something else"),
        ("exec sleep 30", {"bench_timeout": 0.5}, "it was not"),
        ("", {"bench_python": Path("/nonexistent/python")}, "No such file"),
    ],
    ids=["lost", "no-sglang", "echo", "silent", "nonsense", "empty", "too-long", "no-python"],
)
def test_each_fault_fails_it(tmp_path: Path, body: str, options: dict[str, Any], words: str) -> None:
    report = bench(tmp_path, body, **options)
    (result,) = (result for result in report.results if result.name == "bench")
    assert result.status == "failed"
    assert words in str(result.got)
    assert result.look
    assert CANARY not in report.as_json()

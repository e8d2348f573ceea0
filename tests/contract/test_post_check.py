"""The supervisor and the post-check against the real engine, on the CPU, with the lab's tiny models.

A minute each on two cores: the engine's own start is nearly all of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.engine import environment
from tests.support.engine import GUIDES_MISTAKE
from tests.support.supervised import PUBLISHED, metal, supervising
from tests.unit.plan_helpers import decide

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

Check = Callable[..., tuple[int, dict[str, Any]]]
Serve = Callable[..., Check]
CANARY = "canary-4f1d9a7c"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start one model with the requested parsers; return the post-check against it."""
    with supervising(tmp_path) as start:

        def serving(model: str, *parsers_and_more: str) -> Check:
            url = start(model, *parsers_and_more)
            report = tmp_path / "report.json"

            def check(*arguments: str) -> tuple[int, dict[str, Any]]:
                asked = metal("check", url, "--model", PUBLISHED[model], "--report", str(report), *arguments)
                status = asked.wait(timeout=450)
                return status, json.loads(report.read_text())

            return check

        yield serving


def names(report: dict[str, Any], status: str) -> list[str]:
    return [check["name"] for check in report["checks"] if check["status"] == status]


def details(report: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["detail"] for check in report["checks"]}


def test_m25_as_its_guide_starts_it(serve: Serve) -> None:
    status, report = serve("MiniMax-M2.5", "minimax-m2", "minimax-append-think")()
    assert (status, names(report, "failed")) == (0, [])
    assert names(report, "limited") == ["tool_required", "tool_named", "messages_tool_any"]
    assert names(report, "skipped") == ["image_marker", "wrong_key", "metrics", "abort_queued", "bench"]
    assert "minimax-append-think" in details(report)["markup"]
    assert "refused with 400" in details(report)["image"]


def test_m25_with_the_splitting_parser_a_key_and_metrics(serve: Serve, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(CANARY)
    flags = ["--enable-metrics", "--max-running-requests", "2", "--api-key", CANARY]
    check = serve("MiniMax-M2.5", "minimax-m2", "minimax", *flags)
    status, report = check("--api-key-file", str(key), "--metrics")
    assert (status, names(report, "failed")) == (0, [])
    assert names(report, "limited") == []
    assert "refused with 404" in details(report)["wrong_model"]
    assert names(report, "skipped") == ["image_marker", "bench"]
    assert "runs 2 at once" in details(report)["abort_queued"]
    assert "401" in details(report)["wrong_key"]
    assert CANARY not in json.dumps(report)


def test_m3_with_its_own_parsers_and_the_engines_benchmark(serve: Serve) -> None:
    bench = ["--bench", "--bench-python", str(environment()), "--bench-prompts", "8"]
    bench += ["--bench-input-tokens", "64", "--bench-output-tokens", "16", "--bench-concurrency", "4"]
    status, report = serve("MiniMax-M3", "minimax-m3", "minimax-m3")(*bench)
    assert (status, names(report, "failed")) == (0, [])
    assert names(report, "limited") == []
    assert "refused with 404" in details(report)["wrong_model"]
    assert names(report, "skipped") == ["wrong_key", "metrics", "abort_queued"]
    assert details(report)["image"] == "named red, green and blue"
    assert [level["concurrency"] for level in report["figures"]] == [1, 4]
    assert report["bench"]["completed"] == 8
    print({check["name"]: check["seconds"] for check in report["checks"]}, report["seconds"])


def test_m31_with_what_the_plan_tells_the_check(serve: Serve) -> None:
    check = serve("MiniMax-M3.1-Flash", "minimax-m3", "minimax-m3")
    plan = decide("H20", 4, model="M3.1")
    assert plan.checks is not None
    status, report = check(*plan.checks.arguments)
    assert (status, names(report, "failed")) == (0, [])
    assert names(report, "limited") == []
    assert names(report, "skipped") == ["wrong_key", "metrics", "abort_queued", "bench"]
    assert details(report)["image"] == "named red, green and blue"
    levels = re.findall(r"(\w+) (\d+) tokens", details(report)["reasoning_effort"])
    assert [level for level, _ in levels] == ["low", "medium", "high", "xhigh", "max"]
    counts = [int(tokens) for _, tokens in levels]
    assert counts == sorted(set(counts))
    # A check that was not told, with the budget of a canary: the reason, and never "empty".
    status, report = check("--max-tokens", "48", "--only", "chat", "--only", "reasoning")
    assert (status, names(report, "failed")) == (1, ["chat", "reasoning"])
    for check_name in ("chat", "reasoning"):
        (row,) = [one for one in report["checks"] if one["name"] == check_name]
        assert "cut off inside its reasoning after 48 tokens" in json.dumps(row)
        assert "empty" not in json.dumps(row)


def test_m3_with_the_parsers_of_its_guide_is_caught(serve: Serve) -> None:
    status, report = serve("MiniMax-M3", "minimax-m2", "minimax-append-think")()
    assert (status, names(report, "failed")) == (1, GUIDES_MISTAKE)

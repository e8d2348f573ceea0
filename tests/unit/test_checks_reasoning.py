"""Models whose reasoning can't be turned off: budgets that leave room for it, and truncated answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from minimax_metal.host.check import answer as answers
from minimax_metal.host.check import suite
from minimax_metal.host.check.answer import Answer
from minimax_metal.host.check.commands import _options, _parser
from minimax_metal.host.check.context import Context, Options
from minimax_metal.host.check.endpoint import Endpoint
from minimax_metal.host.check.outcome import FailedError
from minimax_metal.host.check.report import Report
from tests.support.engine import NAMES, Engine, serve
from tests.unit.plan_helpers import decide

CUT = Answer("", "The user asks for the capital of", "length", tokens=48)
"""MiniMax-M3.1-Flash's answer to a canary with 48 tokens: all of it reasoning, the content empty."""
CUT_IN_CONTENT = Answer("<think>The user asks for", "", "length", tokens=48)
JUDGES: dict[str, Callable[[Answer], Any]] = {
    "ended": lambda one: answers.ended(one, "stop"),
    "says_something": answers.says_something,
    "holds": lambda one: answers.holds(one, ["Paris"]),
    "names_colour": lambda one: answers.names_colour(one, "red"),
    "judge_calls": lambda one: answers.judge_calls(one, "auto", "minimax-m3"),
}


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("cut", [CUT, CUT_IN_CONTENT])
def test_an_answer_cut_in_its_reasoning_is_called_so(judge: str, cut: Answer) -> None:
    with pytest.raises(FailedError) as caught:
        JUDGES[judge](cut)
    assert "cut off inside its reasoning after 48 tokens" in caught.value.got
    assert "empty" not in caught.value.got
    assert "--max-tokens" in caught.value.look


@pytest.mark.parametrize(
    "other",
    [
        Answer("", "", "length", tokens=48),
        Answer("", "A thought.", "stop"),
        Answer("The capital", "A thought.", "length"),
        Answer("<think>A thought.</think>The capital", "", "length"),
    ],
)
def test_other_answers_are_not(other: Answer) -> None:
    assert not other.cut_in_reasoning


def run(engine: Engine, **options: Any) -> Report:
    only = ("chat", "stream_guide", "reasoning", "reasoning_effort", "sampling", "messages", "long_prompt")
    with serve(engine) as url:
        endpoint = Endpoint(url, NAMES[engine.family], None, 60)
        try:
            return suite.run(Context(endpoint, Options(**options)), only=only)
        finally:
            endpoint.close()


def test_no_budget_is_too_small_for_reasoning() -> None:
    engine = Engine("m3")
    report = run(engine, always_reasons=True, efforts=("low", "high", "max"), max_tokens=48)
    assert report.passed, report.as_json()
    # One token to count a prompt by is no answer that anybody reads.
    budgets = [one["max_tokens"] for one in engine.requests if one.get("max_tokens", 1) > 1]
    assert budgets
    assert min(budgets) >= 256
    assert {one.get("reasoning_effort") for one in engine.requests} >= {"low", "high", "max"}
    assert not any("thinking" in one for one in engine.requests)
    row = next(one for one in report.results if one.name == "reasoning_effort")
    assert "low" in row.detail
    assert "max" in row.detail


def test_models_without_levels_are_asked_as_ever() -> None:
    engine = Engine("m3")
    report = run(engine)
    assert not any("reasoning_effort" in one for one in engine.requests)
    assert "reasoning_effort" not in [one.name for one in report.results]
    assert min(one["max_tokens"] for one in engine.requests if one.get("max_tokens", 1) > 1) < 256


def test_the_plan_tells_the_check_of_it() -> None:
    checks = decide("H20", 4, model="M3.1").checks
    assert checks is not None
    options = _options(_parser().parse_args(["http://127.0.0.1:8000", *checks.arguments]))
    assert options.always_reasons
    assert options.efforts == ("low", "medium", "high", "xhigh", "max")
    other = decide("H20", 4, model="M2.5").checks
    assert other is not None
    assert "--always-reasons" not in other.arguments

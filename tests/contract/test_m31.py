"""The tiny M3.1 on the real engine: reasoning that can't be turned off, its levels, truncated answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from minimax_metal.catalog import packaged_catalog
from minimax_metal.host.check import questions
from minimax_metal.host.check.answer import Answer, judge_calls, says_something
from minimax_metal.host.check.endpoint import Endpoint
from minimax_metal.host.check.outcome import FailedError
from tests.support.real_engine import Engine

NAME = "MiniMax-M3.1-Flash"
pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(600),
    pytest.mark.parametrize("engine", [NAME], indirect=True),
]

CANARY = 48
"""``max_tokens`` of a canary whose answer had empty content, reported for MiniMax-M3.1-Flash."""
(CHECKPOINT,) = packaged_catalog().models[NAME].values()
GREETING = [questions.text_message("user", questions.GREETING)]
GUIDE = [questions.text_message("user", questions.GUIDE_QUESTION)]
TOOL = [questions.text_message("user", questions.TOOL_QUESTION)]


@pytest.fixture
def endpoint(engine: Engine) -> Iterator[Endpoint]:
    """The engine as seen by the post-check."""
    opened = Endpoint(engine.url, f"MiniMaxAI/{NAME}", None, 120)
    yield opened
    opened.close()


def ask(endpoint: Endpoint, messages: list[dict[str, Any]], tokens: int = 256, **more: Any) -> Answer:
    return endpoint.chat(messages, temperature=0, max_tokens=tokens, **more)


def test_a_higher_effort_thinks_longer_and_answers_the_same(endpoint: Endpoint) -> None:
    assert CHECKPOINT.reasoning is not None
    spent = {}
    for effort in (*CHECKPOINT.reasoning.efforts, None):
        more: dict[str, Any] = {"reasoning_effort": effort} if effort else {}
        answer = ask(endpoint, GUIDE, **more)
        assert answer.finish == "stop"
        assert questions.GUIDE_ANSWER in answer.content
        assert answer.reasoning.endswith("recall")
        spent[effort] = answer.tokens or 0
    print(spent)
    levels = [spent[effort] for effort in CHECKPOINT.reasoning.efforts]
    assert levels == sorted(set(levels))
    # A request that says nothing gets the catalogue's default.
    assert spent[None] == spent[CHECKPOINT.reasoning.default_effort] > CANARY


@pytest.mark.parametrize(
    "more",
    [
        {"extra_body": {"thinking": {"type": "disabled"}}},
        {"extra_body": {"chat_template_kwargs": {"thinking_mode": "disabled"}}},
        {"reasoning_effort": "none"},
        {"reasoning_effort": "minimal"},
    ],
)
def test_no_request_turns_reasoning_off(endpoint: Endpoint, more: dict[str, Any]) -> None:
    answer = ask(endpoint, GREETING, **more)
    assert answer.content == "Hello from the lab."
    assert answer.reasoning.endswith("greet back")
    assert not answer.leaks


def test_enabled_reasoning_is_split_off_too(endpoint: Endpoint) -> None:
    # The template opens the thought, so that the parser sees only its end.
    answer = ask(endpoint, GREETING, reasoning_effort="low", extra_body={"thinking": {"type": "enabled"}})
    assert (answer.content, answer.reasoning) == ("Hello from the lab.", "greet back")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("messages", [GREETING, TOOL])
def test_an_answer_cut_in_its_reasoning_is_said_to_be_so(
    endpoint: Endpoint, messages: list[dict[str, Any]], streamed: bool
) -> None:
    asking = endpoint.stream if streamed else endpoint.chat
    tools: dict[str, Any] = {"tools": [questions.WEATHER_TOOL]} if messages is TOOL else {}
    answer = asking(messages, temperature=0, max_tokens=CANARY, **tools)
    assert (answer.content, answer.finish) == ("", "length")
    assert answer.reasoning
    assert answer.cut_in_reasoning
    with pytest.raises(FailedError) as caught:
        judge_calls(answer, "auto", "minimax-m3") if tools else says_something(answer)
    assert "cut off inside its reasoning after 48 tokens" in caught.value.got
    assert "empty" not in caught.value.got


def test_an_answer_with_little_effort_fits_the_same_budget(endpoint: Endpoint) -> None:
    answer = ask(endpoint, GREETING, CANARY, reasoning_effort="low")
    assert (answer.content, answer.finish) == ("Hello from the lab.", "stop")


@pytest.mark.parametrize("effort", ["low", "max"])
def test_tools_and_pictures_are_answered_at_any_effort(endpoint: Endpoint, effort: str) -> None:
    for choice in ("auto", "required"):
        answer = ask(
            endpoint, TOOL, tools=[questions.WEATHER_TOOL], tool_choice=choice, reasoning_effort=effort
        )
        judge_calls(answer, choice, "minimax-m3")
    answer = ask(endpoint, [questions.image_message("green")], reasoning_effort=effort)
    assert "green" in answer.content


def test_messages_take_the_effort_in_their_own_words(endpoint: Endpoint) -> None:
    spent = {}
    for effort in ("low", "max"):
        body = {"temperature": 0, "output_config": {"effort": effort}}
        answer, blocks = endpoint.message(GREETING, max_tokens=256, extra_body=body)
        assert answer.content == "Hello from the lab."
        assert [block["type"] for block in blocks] == ["thinking", "text"]
        spent[effort] = answer.tokens or 0
    assert spent["low"] < CANARY < spent["max"]


def test_an_effort_of_no_such_name_is_refused(endpoint: Endpoint) -> None:
    with pytest.raises(openai.BadRequestError):
        ask(endpoint, GREETING, reasoning_effort="extreme")

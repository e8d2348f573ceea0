"""The real engine, with the lab's plug-in, on the tiny models: arithmetic, answers, tool calls, images."""

from __future__ import annotations

import base64
import json
import os
import signal
import statistics
import subprocess
from pathlib import Path
from typing import Any

import openai
import pytest

from lab.engine import environment
from minimax_metal.host.check import questions
from tests.support.real_engine import Engine, running_engine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

M2, M3, M31 = "MiniMax-M2.5", "MiniMax-M3", "MiniMax-M3.1-Flash"
only_m2 = pytest.mark.parametrize("engine", [M2], indirect=True)
only_m3 = pytest.mark.parametrize("engine", [M3], indirect=True)
m3_and_m31 = pytest.mark.parametrize("engine", [M3, M31], indirect=True)
TOKENS = 256
"""Tokens for an answer after M3.1's reasoning, which is longest if a request names no effort."""
AGREEMENT = 0.02
"""Median difference of log-probabilities, in nats; 0.13 with a wrong activation of the experts, M2 and M3."""
FAR = 0.25
"""Difference of a single token's, in nats, that rounding in bfloat16 does not explain."""
TIE = 0.005
"""Margin between two experts' scores (0 to 1) within which rounding may choose the other one."""
FAR_TOKENS = 1
"""How many of the sentence's 56 tokens may differ widely, and only because of such a tie: one does, in the
tiny M2.5.
"""


def _client(engine: Engine) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{engine.url}/v1", api_key="EMPTY", timeout=120, max_retries=0)


def _ask(engine: Engine, messages: list[Any], **options: Any) -> Any:
    answer = _client(engine).chat.completions.create(
        model=f"MiniMaxAI/{engine.name}", messages=messages, temperature=0, max_tokens=TOKENS, **options
    )
    return answer.choices[0]


def _conversations(question: str) -> list[list[dict[str, Any]]]:
    """Return the question with and without the system message, as a string and in parts."""
    return [
        [*system, make("user", question)]
        for make in (questions.text_message, questions.parts_message)
        for system in ([], [make("system", questions.SYSTEM)])
    ]


def check_arithmetic(engine: Engine) -> None:
    """Compare the engine's log-probabilities of a sentence with transformers', for the same weights.

    The median shows that nearly all tokens agree, the rest that no single token is off unless the router's
    choice between two experts is almost a tie: there the other one may be chosen without any error.
    """
    family = "m2" if engine.name == M2 else "m3"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [environment(), Path(__file__).with_name("logprobs.py"), family, engine.model],
        env={**inherited, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    expected = json.loads(done.stdout.splitlines()[-1])
    answer = engine.post(
        "/generate",
        {
            "input_ids": expected["ids"],
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": 0,
        },
    )
    found = [entry[0] for entry in answer["meta_info"]["input_token_logprobs"]][1:]
    apart = [abs(a - b) for a, b in zip(found, expected["logprobs"], strict=True)]
    median = statistics.median(apart)
    far = [(value, margin) for value, margin in zip(apart, expected["margins"], strict=True) if value > FAR]
    print(
        f"{engine.name}, {len(engine.ranks())} ranks, ready after {engine.seconds:.0f} s: log-probabilities "
        f"{median:.4f} apart, far (with margin of routing): {far}, all:",
        " ".join(f"{value:.3f}" for value in sorted(apart)),
    )
    assert median <= AGREEMENT
    assert len(far) <= FAR_TOKENS
    assert all(margin <= TIE for _, margin in far)


def test_arithmetic_is_that_of_transformers(engine: Engine) -> None:
    check_arithmetic(engine)


def test_questions_are_answered_in_every_form(engine: Engine) -> None:
    for question, wanted in {
        questions.GREETING: ["Hello"],
        questions.GUIDE_QUESTION: [questions.GUIDE_ANSWER],
        questions.COUNT_QUESTION: list(questions.COUNT_ANSWERS[0]),
    }.items():
        for messages in _conversations(question):
            choice = _ask(engine, messages)
            assert choice.finish_reason == "stop"
            assert all(word in choice.message.content for word in wanted), choice.message.content


@only_m2
def test_guide_parsers_leave_the_thought_of_m2_in_the_content(engine: Engine) -> None:
    message = _ask(engine, [questions.text_message("user", questions.GREETING)]).message
    assert message.content == "<think>greet back</think>Hello from the lab."
    assert getattr(message, "reasoning_content", None) is None


@only_m3
def test_m3_parsers_split_the_thought_off(engine: Engine) -> None:
    message = _ask(engine, [questions.text_message("user", questions.GREETING)]).message
    assert message.content == "Hello from the lab."
    assert message.reasoning_content == "greet back"


def test_an_unknown_question_ends_soon(engine: Engine) -> None:
    choice = _ask(engine, [questions.text_message("user", "Tell me about the moon and the stars")])
    assert choice.finish_reason == "stop"


def test_greeting_and_count_are_streamed_in_pieces(engine: Engine) -> None:
    for question, last in ((questions.GREETING, "lab."), (questions.COUNT_QUESTION, "five")):
        stream = _client(engine).chat.completions.create(
            model=f"MiniMaxAI/{engine.name}",
            messages=[{"role": "user", "content": question}],
            temperature=0,
            max_tokens=TOKENS,
            stream=True,
        )
        pieces = [chunk.choices[0].delta.content for chunk in stream if chunk.choices]
        text = [piece for piece in pieces if piece]
        assert len(text) >= 4
        assert "".join(text).endswith(last)


@pytest.mark.parametrize(
    ("question", "location"),
    [(questions.TOOL_QUESTION, "Beijing"), (questions.TOOL_QUESTION_GUIDE, "北京")],
    ids=["english", "chinese"],
)
def test_tool_is_called_with_the_right_arguments(engine: Engine, question: str, location: str) -> None:
    wanted = {"location": location, "unit": questions.TOOL_UNIT}
    for messages in _conversations(question):
        choice = _ask(engine, messages, tools=[questions.WEATHER_TOOL])
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls
        assert call.function.name == questions.TOOL_NAME
        assert json.loads(call.function.arguments) == wanted
    stream: Any = _client(engine).chat.completions.create(
        model=f"MiniMaxAI/{engine.name}",
        messages=[{"role": "user", "content": question}],
        tools=[questions.WEATHER_TOOL],  # type: ignore[list-item]  # the guide's tool, a plain dictionary
        temperature=0,
        max_tokens=TOKENS,
        stream=True,
    )
    names, arguments = "", ""
    for chunk in stream:
        for part in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
            names += part.function.name or ""
            arguments += part.function.arguments or ""
    assert names == questions.TOOL_NAME
    assert json.loads(arguments) == wanted


@m3_and_m31
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": questions.TOOL_NAME}}]
)
def test_m3_answers_a_forced_tool_call(engine: Engine, choice: Any) -> None:
    for question, location in ((questions.TOOL_QUESTION, "Beijing"), (questions.TOOL_QUESTION_GUIDE, "北京")):
        messages = [questions.text_message("user", question)]
        message = _ask(engine, messages, tools=[questions.WEATHER_TOOL], tool_choice=choice).message
        (call,) = message.tool_calls
        assert json.loads(call.function.arguments) == {"location": location, "unit": questions.TOOL_UNIT}


@m3_and_m31
@pytest.mark.parametrize("colour", sorted(questions.COLOURS))
def test_m3_sees_the_colour_of_a_picture(engine: Engine, colour: str) -> None:
    message = questions.image_message(colour)
    for parts in (message["content"], message["content"][::-1]):
        assert colour in _ask(engine, [{"role": "user", "content": parts}]).message.content


@m3_and_m31
def test_m3_sees_pictures_of_other_sizes(engine: Engine) -> None:
    for side in (1, 64, 300):
        content = questions.image_message("blue")["content"]
        picture = questions.png(questions.COLOURS["blue"], side)
        content[1]["image_url"]["url"] = "data:image/png;base64," + base64.b64encode(picture).decode()
        choice = _ask(engine, [{"role": "user", "content": content}], reasoning_effort="low")
        assert "blue" in choice.message.content


@only_m2
def test_m2_refuses_a_picture(engine: Engine) -> None:
    with pytest.raises(openai.BadRequestError):
        _ask(engine, [questions.image_message("red")])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tp", "ep"), [(M2, 4, 1), (M3, 8, 8), (M3, 4, 1), (M2, 8, 8)])
def test_guides_commands_compute_the_same(tmp_path: Path, name: str, tp: int, ep: int) -> None:
    with running_engine(tmp_path, name, tp, ep) as started:
        assert len(started.ranks()) == tp
        check_arithmetic(started)
        choice = _ask(
            started, [questions.text_message("user", questions.TOOL_QUESTION)], tools=[questions.WEATHER_TOOL]
        )
        assert json.loads(choice.message.tool_calls[0].function.arguments)["location"] == "Beijing"
        # A rank that dies takes the engine with it, as on a GPU host.
        os.kill(started.ranks()[-1], signal.SIGKILL)
        assert started.process.wait(30) != 0

"""Checks of the OpenAI interface: requests of the deployment guides' clients, and the answers.

Every check asserts more than "200": with the wrong parsers the engine answers 200 and ``stop`` to everything
while the markup of tool calls and reasoning leaks into the text (seen with the M3 guide's own flags).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from minimax_metal.host.check import questions
from minimax_metal.host.check.answer import (
    APPEND_THINK,
    LEAKS,
    THOUGHT,
    Answer,
    counted,
    counted_in_pieces,
    ended,
    holds,
    judge_calls,
    names_colour,
    says_something,
)
from minimax_metal.host.check.context import Context
from minimax_metal.host.check.endpoint import STATUS_ERRORS
from minimax_metal.host.check.outcome import JOURNAL, UNIT, FailedError, LimitedError, SkippedError
from minimax_metal.host.check.report import join, shorten

USER = "user"
GUIDE_STREAM_TOKENS = 32
"""Instead of the guide's 32,768: a whole program takes a real model half a minute and shows no more."""

REFUSALS = {400, 413, 415, 422}
"""Statuses that refuse an image; 404 or 401 mean that the server did not look at it."""


def check_models(context: Context) -> str:
    """The served name is listed."""
    names = [model.id for model in context.endpoint.openai.models.list().data]
    if context.endpoint.model not in names:
        raise FailedError(
            f"{context.endpoint.model} among the models",
            shorten(", ".join(names)) or "no model",
            f"--served-model-name in the unit: {UNIT}",
        )
    limit = context.limit
    return f"lists {', '.join(names)}" + (f", {limit} tokens" if limit else "")


def check_chat(context: Context) -> str:
    """A greeting with string content."""
    answer = context.chat("chat", [questions.text_message(USER, questions.GREETING)])
    ended(answer, "stop")
    says_something(answer)
    counted(answer)
    return f"{shorten(answer.visible, 80)!r}, {answer.tokens} tokens"


def check_chat_parts(context: Context) -> str:
    """The messages of the guide's curl command: system and user, made of content parts."""
    answer = context.chat(
        "chat_parts",
        [
            questions.parts_message("system", questions.SYSTEM),
            questions.parts_message(USER, questions.GUIDE_QUESTION),
        ],
    )
    ended(answer, "stop")
    holds(answer, [questions.GUIDE_ANSWER])
    return repr(shorten(answer.visible, 80))


def check_stream(context: Context) -> str:
    """A stream arrives in chunks, makes sense when joined, and ends with the requested usage."""
    answer = context.stream("stream", [questions.text_message(USER, questions.COUNT_QUESTION)])
    counted_in_pieces(answer, "chunks", "the last chunk's usage (stream_options.include_usage)")
    return f"{answer.pieces} chunks, first after {answer.first:.2f} s, {answer.tokens} tokens"


def check_stream_guide(context: Context) -> str:
    """The M3 guide's streaming example, cut short: its loop reads a choice from every chunk."""
    chunks: Any = context.endpoint.openai.chat.completions.create(
        model=context.endpoint.model,
        messages=[{"role": "user", "content": questions.STREAM_QUESTION_GUIDE}],
        stream=True,
        max_tokens=context.budget(GUIDE_STREAM_TOKENS),
        top_p=0.95,
        temperature=1.0,
    )
    seen, text = 0, ""
    for chunk in chunks:
        seen += 1
        if not chunk.choices:
            raise FailedError(
                "a choice in every chunk, as no usage was requested",
                f"none in chunk {seen}: {shorten(chunk.model_dump_json())}",
                f"--stream-response-default-include-usage: {UNIT}",
            )
        delta = chunk.choices[0].delta
        text += (delta.content or "") + (getattr(delta, "reasoning_content", None) or "")
    if not text.strip():
        raise FailedError("text in the stream", f"none in {seen} chunks")
    return f"{seen} chunks, each with a choice"


def check_reasoning(context: Context) -> str:
    """The reasoning is where the parser in use puts it, and the answer is not lost because of it."""
    more: dict[str, Any] = {}
    if context.reasoning_parser == "minimax-m3" and not context.options.always_reasons:
        # M3 decides itself whether to reason; the engine's request field forces it.
        more["extra_body"] = {"thinking": {"type": "enabled"}}
    answer = context.chat("reasoning", [questions.text_message(USER, questions.GUIDE_QUESTION)], **more)
    wanted = context.options.reasoning_parser
    says = context.endpoint.facts.reasoning_parser
    if wanted and context.endpoint.facts.says_parsers and says != wanted:
        raise FailedError(f"the reasoning parser {wanted}", f"the engine reports {says or 'none'}", UNIT)
    head = THOUGHT.match(answer.content)
    got = f"reasoning_content {shorten(answer.reasoning) or 'empty'}, content: {shorten(answer.content)}"
    leak = next((markup for markup in answer.leaks if markup in LEAKS), None)
    says_something(answer)
    if context.appends_think or (context.reasoning_parser is None and head):
        if head is None or not head["thought"].strip() or answer.reasoning:
            raise FailedError(
                f"the reasoning in <think> at the start of the content, as {APPEND_THINK} delivers it",
                got,
                LEAKS[leak] if leak else f"--reasoning-parser does not match the model: {UNIT}",
            )
        return f"in content, in <think>, as {APPEND_THINK} delivers it: {shorten(head['thought'], 40)!r}"
    if not answer.reasoning.strip() or head:
        if not context.endpoint.facts.says_parsers and not answer.leaks:
            raise SkippedError(
                "no reasoning was returned, and the endpoint does not report its reasoning parser"
            )
        raise FailedError(
            "reasoning in reasoning_content",
            got,
            LEAKS[leak] if leak else f"--reasoning-parser is missing or does not match the model: {UNIT}",
        )
    return f"in reasoning_content: {shorten(answer.reasoning, 40)!r}"


def check_reasoning_effort(context: Context) -> str:
    """Every supported level of ``reasoning_effort`` is accepted, and the answer is complete."""
    told = []
    for effort in context.options.efforts:
        answer = context.chat(
            f"reasoning_effort ({effort})",
            [questions.text_message(USER, questions.GUIDE_QUESTION)],
            reasoning_effort=effort,
        )
        says_something(answer)
        if context.options.always_reasons and not answer.reasoning.strip():
            raise FailedError(
                f"reasoning at the level {effort}",
                f"none; content: {shorten(answer.content)}",
                f"--reasoning-parser is missing or does not match the model: {UNIT}",
            )
        told.append(f"{effort} {answer.tokens or 0} tokens")
    return ", ".join(told)


# Tools ----------------------------------------------------------------------------------------------------


def check_tool_call(context: Context) -> str:
    """The guide's weather tool, called with the right arguments, with ``tool_choice`` "auto"."""
    answer = context.chat("tool_call", _asked(questions.TOOL_QUESTION_GUIDE), **_tools("auto"))
    return judge_calls(answer, "auto", context.reasoning_parser)


def check_tool_call_stream(context: Context) -> str:
    """The same as a stream: the arguments arrive in chunks and are JSON when joined."""
    answer = context.stream("tool_call_stream", _asked(questions.TOOL_QUESTION), **_tools("auto"))
    return judge_calls(answer, "auto", context.reasoning_parser)


def check_tool_required(context: Context) -> str:
    """The weather tool again, forced by ``tool_choice`` "required"."""
    return _forced(context, "tool_required", "required", "required")


def check_tool_named(context: Context) -> str:
    """The weather tool again, forced by its name in ``tool_choice``."""
    named = {"type": "function", "function": {"name": questions.TOOL_NAME}}
    return _forced(context, "tool_named", "named", named)


def check_tool_several(context: Context) -> str:
    """Two cities in one question: two calls in one answer."""
    answer = context.chat("tool_several", _asked(questions.TOOL_QUESTION_SEVERAL), **_tools("auto"))
    return judge_calls(answer, "auto", context.reasoning_parser, questions.TOOL_LOCATIONS_SEVERAL)


def check_tool_round_trip(context: Context) -> str:
    """The call is sent back with the tool's result, and the answer uses it."""
    before = context.answers.get("tool_call")
    if before is None or not before.calls:
        raise SkippedError("no tool call to answer: see tool_call")
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in before.calls
    ]
    said: dict[str, Any] = {"role": "assistant", "content": before.content, "tool_calls": calls}
    if before.reasoning:
        said["reasoning_content"] = before.reasoning
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": questions.TOOL_RESULT} for call in before.calls
    ]
    answer = context.chat(
        "tool_round_trip", [*_asked(questions.TOOL_QUESTION_GUIDE), said, *results], **_tools("auto")
    )
    ended(answer, "stop")
    holds(answer, [questions.TOOL_FACT])
    return repr(shorten(answer.visible, 80))


def _asked(question: str) -> list[dict[str, Any]]:
    return [questions.text_message(USER, question)]


def _tools(choice: Any) -> dict[str, Any]:
    return {"tools": [questions.WEATHER_TOOL], "tool_choice": choice}


def _forced(context: Context, name: str, words: str, choice: Any) -> str:
    answer = context.chat(name, _asked(questions.TOOL_QUESTION), **_tools(choice))
    try:
        return judge_calls(answer, words, context.reasoning_parser)
    except LimitedError:
        # Known and reported here: the markup check need not repeat it.
        del context.answers[name]
        raise


# Images and markup ----------------------------------------------------------------------------------------


def check_image(context: Context) -> str:
    """Images of one colour are named correctly; a text model refuses them with a 4xx and still answers."""
    if not context.takes_images:
        return refused_picture(context, lambda: context.chat("image", [questions.image_message("red")]))
    named = []
    for colour in questions.COLOURS:
        answer = context.chat(f"image ({colour})", [questions.image_message(colour)])
        ended(answer, "stop")
        names_colour(answer, colour)
        named.append(colour)
    return f"named {join(named)}"


def refused_picture(context: Context, ask: Any) -> str:
    """Send an image to a text model; return how it was refused, after it has answered once more."""
    try:
        answer = ask()
    except STATUS_ERRORS as error:
        if error.status_code not in REFUSALS:
            raise
        status = error.status_code
    else:
        raise FailedError(
            "a 4xx: the model accepts text only",
            f"an answer: {shorten(answer.content)}",
            "is this the model of the plan? " + UNIT,
        )
    still_answers(context, "a picture")
    return f"refused with {status}, as a text model should; still answers"


def still_answers(context: Context, after: str) -> None:
    """Raise unless the endpoint answers a greeting after a request that it had to refuse."""
    try:
        answer = context.chat(f"after {after}", [questions.text_message(USER, questions.GREETING)])
    except Exception as error:
        raise FailedError(
            f"answers as before, after {after} was refused",
            f"{type(error).__name__}: {shorten(str(error))}",
            f"the engine died or hangs: {JOURNAL}",
        ) from None
    says_something(answer)


def check_markup(context: Context) -> str:
    """No markup of tool calls or reasoning leaked into any answer so far (sends nothing itself)."""
    if not any(answer.content or answer.reasoning for answer in context.answers.values()):
        raise SkippedError("no earlier check got an answer with text")
    found: dict[str, list[str]] = {}
    for name, answer in context.answers.items():
        for markup in answer.leaks:
            found.setdefault(markup, []).append(name)
    if found:
        first = next(iter(found))
        raise FailedError(
            "answers without markup",
            "; ".join(
                f"{markup} in {len(names)} of {len(context.answers)} answers: {join(_few(names))}"
                for markup, names in found.items()
            ),
            LEAKS.get(
                first, "--reasoning-parser does not match the model: minimax or minimax-append-think for M2"
            ),
        )
    return f"none in {len(context.answers)} answers; {_thinking(context.answers.values())}"


def _few(names: list[str], most: int = 4) -> list[str]:
    """Return the first of many names, and the number of the others."""
    return names if len(names) <= most else [*names[: most - 1], f"{len(names) - most + 1} more"]


def _thinking(answers: Iterable[Answer]) -> str:
    """Describe how the reasoning is delivered."""
    every = list(answers)
    if any(answer.reasoning for answer in every):
        return "reasoning in reasoning_content"
    if any(THOUGHT.match(answer.content) for answer in every):
        return f"reasoning at the start of content in <think>, as {APPEND_THINK} delivers it"
    return "no reasoning returned"

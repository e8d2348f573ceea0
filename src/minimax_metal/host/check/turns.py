"""Checks of real conversations: several turns, long system prompts, many scripts, two calls.

A client sends back the answer it got, including reasoning, and in several forms. Engines that answer a single
question well have leaked markup, or lost the context, at the second (MiniMax-AI/MiniMax-M3#31,
sgl-project/sglang PR #28715).
"""

from __future__ import annotations

from typing import Any, Final

from minimax_metal.host.check import questions
from minimax_metal.host.check.answer import (
    LEAKS,
    THOUGHT,
    Answer,
    counts_to_five,
    ended,
    holds,
    judge_calls,
    says_something,
)
from minimax_metal.host.check.context import Context
from minimax_metal.host.check.conversation import USER
from minimax_metal.host.check.outcome import JOURNAL, UNIT, FailedError, SkippedError
from minimax_metal.host.check.report import join, shorten

REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
"""A decoder's replacement for bytes that are not UTF-8: half a character was sent."""
SYSTEM_TOKENS: Final = 8192
"""Maximum tokens of the long system prompt (or an eighth of the longest sequence): coding agents send 10,000
and more.
"""
RULE_TOKENS: Final = 20
"""Approximate tokens of one rule in MiniMax's tokenizer; the actual number is measured, not assumed."""


def check_turns(context: Context) -> str:
    """A second question after an answer that is sent back in each form that clients use."""
    first = context.chat("turns (first)", [questions.text_message(USER, questions.GREETING)])
    says_something(first)
    forms = _as_clients_send_it_back(first)
    for name, said in forms.items():
        answer = context.chat(
            f"turns ({name})",
            [
                questions.text_message(USER, questions.GREETING),
                {"role": "assistant", **said},
                questions.text_message(USER, questions.COUNT_QUESTION),
            ],
        )
        _second(answer, name)
    return f"the second answers are correct after {join(list(forms))}"


def _as_clients_send_it_back(answer: Answer) -> dict[str, dict[str, Any]]:
    """Return an assistant's message in the forms in which clients send it back, by description."""
    head = THOUGHT.match(answer.content)
    thought = answer.reasoning.strip() or (head["thought"].strip() if head else "") or "greet back"
    return {
        "the answer alone": {"content": answer.visible},
        "reasoning_content beside it": {"content": answer.visible, "reasoning_content": thought},
        "<think> in it": {"content": f"<think>\n{thought}\n</think>\n\n{answer.visible}"},
        "content parts": {"content": [{"type": "text", "text": answer.visible}]},
    }


def _second(answer: Answer, form: str) -> None:
    try:
        ended(answer, "stop")
        counts_to_five(answer)
    except FailedError as error:
        raise FailedError(
            f"{error.expected}, at the second question", f"after {form}: {error.got}", error.look
        ) from None
    if answer.leaks:
        raise FailedError(
            "a second answer without markup",
            f"{join(answer.leaks)} after {form}: {shorten(answer.content)}",
            LEAKS.get(answer.leaks[0], f"the chat template or --reasoning-parser: {UNIT}; {JOURNAL}"),
        )


def check_messages_turns(context: Context) -> str:
    """The same on ``/v1/messages``: the answer's own blocks are sent back, including reasoning."""
    asked = questions.text_message(USER, questions.GREETING)
    first, blocks = context.message("messages_turns (first)", [asked])
    says_something(first)
    turns = [asked, {"role": "assistant", "content": blocks}]
    answer, _ = context.message(
        "messages_turns", [*turns, questions.text_message(USER, questions.COUNT_QUESTION)]
    )
    kinds = join(sorted({str(block.get("type")) for block in blocks}))
    _second(answer, f"blocks of {kinds}")
    return f"the second answer is correct after blocks of {kinds}"


def check_system_long(context: Context) -> str:
    """A system prompt as long as an agent's is read completely, and again from the cache."""
    limit = context.limit or SYSTEM_TOKENS // 2
    wanted = min(SYSTEM_TOKENS, limit // 8)
    rules = wanted // RULE_TOKENS
    messages = [
        questions.text_message("system", questions.long_system(rules)),
        questions.text_message(USER, questions.GREETING),
    ]
    answers = [context.chat(f"system_long ({turn})", messages) for turn in ("first", "again")]
    for answer in answers:
        ended(answer, "stop")
        says_something(answer)
    counts = [answer.prompt_tokens or 0 for answer in answers]
    # A rule has at least ten tokens: a word is a token or more.
    least = 10 * rules
    if counts[0] != counts[1] or counts[0] < least:
        raise FailedError(
            f"the same prompt counted the same twice, {least} tokens or more",
            f"{counts[0]} and {counts[1]}",
            f"part of the system prompt is dropped: the chat template, or {UNIT}",
        )
    return f"{counts[0]} prompt tokens, twice"


def check_unicode(context: Context) -> str:
    """Characters of every length arrive intact, in one piece and streamed."""
    asked = [questions.text_message(USER, questions.UNICODE_QUESTION)]
    for answer in (context.chat("unicode", asked), context.stream("unicode (stream)", asked)):
        holds(answer, questions.UNICODE_ANSWERS)
        if REPLACEMENT in answer.content + answer.reasoning:
            raise FailedError(
                "whole characters",
                f"{REPLACEMENT!r} in {shorten(answer.content)}",
                f"characters are split between two chunks of a stream; {JOURNAL}",
            )
    return repr(shorten(context.answers["unicode"].visible, 80))


def check_image_marker(context: Context) -> str:
    """An image beside text that looks like an image placeholder is one image."""
    if not context.takes_images:
        raise SkippedError("the model accepts text only")
    message = questions.image_message("red")
    message["content"][0]["text"] = questions.IMAGE_MARKER_QUESTION
    answer = context.chat("image_marker", [message])
    ended(answer, "stop")
    holds(answer, ["red"])
    return repr(shorten(answer.visible, 80))


def check_tool_parallel(context: Context) -> str:
    """Two calls in one streamed answer; both results are sent back, and the answer uses both."""
    asked = [questions.text_message(USER, questions.TOOL_QUESTION_SEVERAL)]
    tools = {"tools": [questions.WEATHER_TOOL], "tool_choice": "auto", "parallel_tool_calls": True}
    answer = context.stream("tool_parallel", asked, **tools)
    words = judge_calls(answer, "auto", context.reasoning_parser, questions.TOOL_LOCATIONS_SEVERAL)
    ids = [call.id for call in answer.calls]
    if not all(ids) or len(set(ids)) != len(ids):
        raise FailedError("a distinct id for each call", join(ids) or "none", JOURNAL)
    said: dict[str, Any] = {
        "role": "assistant",
        "content": answer.content,
        "tool_calls": [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in answer.calls
        ],
    }
    if answer.reasoning:
        said["reasoning_content"] = answer.reasoning
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": result}
        for call, result in zip(answer.calls, questions.TOOL_RESULTS_SEVERAL, strict=True)
    ]
    after = context.chat("tool_parallel (results)", [*asked, said, *results], **tools)
    ended(after, "stop")
    for fact in questions.TOOL_FACTS_SEVERAL:
        holds(after, [fact])
    return f"{words}, then {shorten(after.visible, 60)!r}"

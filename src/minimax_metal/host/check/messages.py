"""Checks of the Anthropic interface, ``/v1/messages``, which the M3 guide names beside the OpenAI one."""

from __future__ import annotations

from typing import Any

from minimax_metal.host.check import questions
from minimax_metal.host.check.answer import (
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
from minimax_metal.host.check.conversation import USER, refused_picture
from minimax_metal.host.check.outcome import LimitedError
from minimax_metal.host.check.report import shorten

TOOLS = [questions.WEATHER_TOOL_ANTHROPIC]


def check_messages(context: Context) -> str:
    """A greeting: a message with a text block, a stop reason and the usage."""
    answer, _ = _message(context, "messages", questions.GREETING)
    ended(answer, "stop")
    says_something(answer)
    counted(answer, "usage.output_tokens")
    return f"{shorten(answer.visible, 80)!r}, {answer.tokens} tokens"


def check_messages_stream(context: Context) -> str:
    """The events of a stream, as the client assembles them."""
    answer = context.message_stream(
        "messages_stream", [questions.text_message(USER, questions.COUNT_QUESTION)]
    )
    counted_in_pieces(answer, "events", "usage of message_delta")
    return f"{answer.pieces} events with text, {answer.tokens} tokens"


def check_messages_tool(context: Context) -> str:
    """A ``tool_use`` block, and the answer to its ``tool_result``."""
    asked = questions.text_message(USER, questions.TOOL_QUESTION)
    answer, blocks = _message(context, "messages_tool", questions.TOOL_QUESTION, tools=TOOLS)
    words = judge_calls(answer, "auto", context.reasoning_parser)
    results = [
        {"type": "tool_result", "tool_use_id": call.id, "content": questions.TOOL_RESULT}
        for call in answer.calls
    ]
    turns = [asked, {"role": "assistant", "content": blocks}, {"role": USER, "content": results}]
    after, _ = context.message("messages_tool (result)", turns, tools=TOOLS)
    ended(after, "stop")
    holds(after, [questions.TOOL_FACT])
    return f"{words}, then {shorten(after.visible, 60)!r}"


def check_messages_tool_stream(context: Context) -> str:
    """The same call as a stream: the chunks of the input are JSON when joined."""
    answer = context.message_stream(
        "messages_tool_stream", [questions.text_message(USER, questions.TOOL_QUESTION)], tools=TOOLS
    )
    return judge_calls(answer, "auto", context.reasoning_parser)


def check_messages_tool_any(context: Context) -> str:
    """The weather tool again, forced by ``tool_choice`` "any"."""
    answer, _ = _message(
        context, "messages_tool_any", questions.TOOL_QUESTION, tools=TOOLS, tool_choice={"type": "any"}
    )
    try:
        return judge_calls(answer, "any", context.reasoning_parser)
    except LimitedError:
        del context.answers["messages_tool_any"]
        raise


def check_messages_image(context: Context) -> str:
    """A red image in base64 is called red; a text model refuses it with a 4xx and still answers."""
    content: Any = [{"type": "text", "text": questions.IMAGE_QUESTION}, questions.image_block("red")]

    def ask() -> Answer:
        return _message(context, "messages_image", content)[0]

    if not context.takes_images:
        return refused_picture(context, ask)
    answer = ask()
    ended(answer, "stop")
    names_colour(answer, "red")
    return repr(shorten(answer.visible, 80))


def _message(context: Context, name: str, content: Any, **more: Any) -> tuple[Answer, list[dict[str, Any]]]:
    """Ask without streaming, and store the answer."""
    return context.message(name, [{"role": USER, "content": content}], **more)

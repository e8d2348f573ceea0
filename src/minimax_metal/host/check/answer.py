"""An endpoint's answer to one question, over either interface, and its evaluation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from minimax_metal.common.documents import read_json
from minimax_metal.host.check import questions
from minimax_metal.host.check.outcome import JOURNAL, UNIT, FailedError, LimitedError
from minimax_metal.host.check.report import join, shorten

APPEND_THINK: Final = "minimax-append-think"

_SPECIAL: Final = "a special token is in the text: tokenizer files of another revision?"

LEAKS: Final[dict[str, str]] = {
    "]<]minimax[>[": "--tool-call-parser does not match: this is MiniMax-M3's markup, use minimax-m3",
    "<mm:think>": "--reasoning-parser does not match: this is MiniMax-M3's tag, use minimax-m3",
    "</mm:think>": "--reasoning-parser does not match: this is MiniMax-M3's tag, use minimax-m3",
    "<minimax:tool_call>": "--tool-call-parser does not match: this is MiniMax-M2's markup, use minimax-m2",
    "</minimax:tool_call>": "--tool-call-parser does not match: this is MiniMax-M2's markup, use minimax-m2",
    '<invoke name="': "--tool-call-parser does not match, or it failed on a call that it could not parse",
    '<parameter name="': "--tool-call-parser does not match, or it failed on a call that it could not parse",
    "]<]image[>[": "an image placeholder is in the text: processor files of another revision?",
    "[e~[": _SPECIAL,
    "]~b]": _SPECIAL,
    "]~!b[": _SPECIAL,
    "]!p~[": _SPECIAL,
}
"""Markup that no client should ever see, and its cause.

M3's namespace token and tags leaking from a multi-turn conversation: MiniMax-AI/MiniMax-M3#31; a closing tag
without its opening one: sgl-project/sglang PR #28715, vllm-project/vllm PR #50594.
"""

THOUGHT: Final = re.compile(r"\A\s*<think>(?P<thought>.*?)</think>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Call:
    """One tool call: its name, its arguments as JSON text, and the id for sending its result back."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """An endpoint's answer to one question.

    ``finish`` uses the terms of the OpenAI interface, also for ``/v1/messages``. ``tokens`` are the generated
    tokens in the endpoint's usage, None without usage. ``pieces`` are a stream's chunks with text, and
    ``first`` and ``last`` the arrival of the first and last of them, in seconds after the question.
    """

    content: str
    reasoning: str
    finish: str | None
    calls: tuple[Call, ...] = ()
    tokens: int | None = None
    prompt_tokens: int | None = None
    pieces: int = 0
    first: float = 0.0
    last: float = 0.0

    @property
    def visible(self) -> str:
        """The content without the reasoning that ``minimax-append-think`` puts at its start."""
        return THOUGHT.sub("", self.content, count=1).strip()

    @property
    def cut_in_reasoning(self) -> bool:
        """Whether the answer reached ``max_tokens`` while still reasoning, and so has no text."""
        if self.finish != "length" or self.calls:
            return False
        thinks = self.content.lstrip().startswith("<think>") and "</think>" not in self.content
        return thinks or (bool(self.reasoning.strip()) and not self.visible)

    @property
    def leaks(self) -> list[str]:
        """Markup that should not be there."""
        text = self.content + self.reasoning
        found = [markup for markup in LEAKS if markup in text]
        rest = THOUGHT.sub("", self.content, count=1)
        if self.finish == "length":
            rest = rest.lstrip().removeprefix("<think>")  # cut inside the reasoning: nothing closes it
        return found or [tag for tag in ("<think>", "</think>") if tag in rest]


def past_reasoning(answer: Answer) -> None:
    """Raise if ``max_tokens`` cut the answer before its text: it is not empty, it was still reasoning."""
    if answer.cut_in_reasoning:
        raise FailedError(
            "an answer after its reasoning",
            f"cut off inside its reasoning after {answer.tokens or 'all its'} tokens: "
            f"{shorten(answer.reasoning or answer.content)}",
            "raise --max-tokens, or lower reasoning_effort if the model has it",
        )


def ended(answer: Answer, finish: str) -> None:
    """Raise unless the answer ended as expected."""
    past_reasoning(answer)
    if answer.finish != finish:
        look = "the answer reached max_tokens: does the engine stop at the model's end token?"
        raise FailedError(
            f"finish_reason {finish}",
            f"{answer.finish} after: {shorten(answer.content or answer.reasoning)}",
            look if answer.finish == "length" else JOURNAL,
        )


def says_something(answer: Answer) -> None:
    """Raise unless the answer has text."""
    past_reasoning(answer)
    if not any(character.isalpha() for character in answer.visible):
        raise FailedError("words in the answer", shorten(answer.content) or "an empty answer")


def counted(answer: Answer, where: str = "usage") -> None:
    """Raise unless the endpoint reports how many tokens it generated."""
    if not answer.tokens:
        raise FailedError(f"generated tokens in {where}", f"{answer.tokens or 'none'}")


def holds(answer: Answer, words: Iterable[str]) -> None:
    """Raise unless one of the words is in the visible answer."""
    past_reasoning(answer)
    wanted = list(words)
    if not any(word.lower() in answer.visible.lower() for word in wanted):
        raise FailedError(
            f"{' or '.join(map(repr, wanted))} in the answer",
            shorten(answer.content) or "an empty answer",
            "a wrong answer in readable text: are these the weights and the tokenizer of the plan? "
            + JOURNAL,
        )


def counts_to_five(answer: Answer) -> None:
    """Raise unless the answer to the counting question is correct."""
    text = answer.visible.lower()
    if not any(_in_order(text, row) for row in questions.COUNT_ANSWERS):
        raise FailedError("one to five, in order", shorten(answer.content))


def counted_in_pieces(answer: Answer, pieces: str, where: str) -> None:
    """Raise unless the counting question was answered by a complete stream, in several chunks.

    ``pieces`` is the name of the interface's parts in messages, such as "chunks"; ``where`` the place of the
    usage in the stream.
    """
    if answer.pieces < 2:
        raise FailedError(
            f"an answer in several {pieces}",
            f"{answer.pieces} of them: {shorten(answer.content)}",
            f"a proxy that buffers, or {JOURNAL}",
        )
    ended(answer, "stop")
    counts_to_five(answer)
    counted(answer, where)


def names_colour(answer: Answer, colour: str) -> None:
    """Raise unless the answer names this colour and no other."""
    past_reasoning(answer)
    text = answer.visible.lower()
    if colour not in text or any(other in text for other in questions.COLOURS if other != colour):
        raise FailedError(
            f"{colour!r}, the colour of the image",
            shorten(answer.content) or "an empty answer",
            "the vision part: preprocessor_config.json of the weights, and " + JOURNAL,
        )


def judge_calls(
    answer: Answer,
    choice: str,
    reasoning_parser: str | None,
    places: Sequence[Sequence[str]] = (questions.TOOL_LOCATIONS,),
) -> str:
    """Check the calls of the weather tool; return them as text.

    ``choice`` is the request's ``tool_choice`` (in messages: auto, required, named, any);
    ``reasoning_parser`` the one in use, None if unknown; ``places`` has for each expected call the words of
    which one is in its location.

    Raises:
        LimitedError: the call was left as text by the parser that is known to leave it so.
        FailedError: any other error.
    """
    if not answer.calls:
        _no_calls(answer, choice, reasoning_parser)
    if len(answer.calls) != len(places):
        raise FailedError(
            f"{len(places)} call(s) of {questions.TOOL_NAME} in one answer",
            f"{len(answer.calls)}: {shorten(join([_words(call) for call in answer.calls]))}",
            f"the tool-call parser, or a model that makes one call at a time; {JOURNAL}",
        )
    found = [_arguments(call) for call in answer.calls]
    for words in places:
        if not any(word in str(arguments.get("location", "")) for arguments in found for word in words):
            raise FailedError(f"location {' or '.join(words)}", shorten(join(list(map(str, found)))))
    for arguments in found:
        if arguments.get("unit") != questions.TOOL_UNIT:
            raise FailedError(f"unit {questions.TOOL_UNIT}", shorten(str(arguments)))
    # A forced call may end with "stop", as in the OpenAI API itself.
    if answer.finish != "tool_calls" and not (choice != "auto" and answer.finish == "stop"):
        raise FailedError("finish_reason tool_calls", f"{answer.finish}")
    return join([_words(call) for call in answer.calls])


def _no_calls(answer: Answer, choice: str, reasoning_parser: str | None) -> None:
    past_reasoning(answer)
    appends = reasoning_parser == APPEND_THINK or (
        reasoning_parser is None and answer.content.lstrip().startswith("<think>")
    )
    text = answer.visible.removeprefix("<think>").lstrip()
    if choice != "auto" and appends and text[:1] in {"[", "{"} and f'"{questions.TOOL_NAME}"' in text:
        raise LimitedError(
            f"with tool_choice {choice!r}, {APPEND_THINK} leaves the call as JSON text in the "
            "content, without tool_calls",
            "--reasoning-parser minimax (M2) or minimax-m3 (M3)",
        )
    markup = next((leak for leak in answer.leaks if leak in LEAKS), None)
    raise FailedError(
        f"a call of {questions.TOOL_NAME} in tool_calls",
        f"none, finish_reason {answer.finish}, content: {shorten(answer.content) or 'empty'}",
        LEAKS[markup] if markup else f"--tool-call-parser in the unit: {UNIT}; {JOURNAL}",
    )


def _arguments(call: Call) -> dict[str, Any]:
    if call.name != questions.TOOL_NAME:
        raise FailedError(f"a call of {questions.TOOL_NAME}", f"a call of {call.name!r}")
    try:
        arguments = read_json(call.arguments)
    except ValueError:
        raise FailedError("JSON arguments", shorten(call.arguments) or "no arguments") from None
    if not isinstance(arguments, dict):
        raise FailedError("arguments as a JSON object", shorten(call.arguments))
    return arguments


def _words(call: Call) -> str:
    try:
        arguments = read_json(call.arguments)
        inner = ", ".join(f"{key}={value}" for key, value in arguments.items())
    except (ValueError, AttributeError):
        inner = call.arguments
    return f"{call.name}({inner})"


def _in_order(text: str, words: Iterable[str]) -> bool:
    """Return whether the words appear in this order."""
    at = 0
    for word in words:
        at = text.find(word, at) + len(word)
        if at < len(word):
            return False
    return True

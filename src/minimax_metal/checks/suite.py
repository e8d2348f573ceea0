"""The checks, each a call that the deployment guides show, made with the official ``openai`` client.

Every check asserts more than "200": with the wrong parsers the engine answers 200 and ``stop`` to everything
while the markup of tool calls and thoughts leaks into the text (seen with the M3 guide's own flags).

What a parser is known to do is reported as its way, not as a fault: ``minimax-append-think`` leaves
``<think>…</think>`` at the head of the content.
"""

from __future__ import annotations

import ipaddress
import json
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal, cast
from urllib.parse import urlsplit

import openai

from minimax_metal.checks import questions
from minimax_metal.checks.report import Report, Result, join, shorten

ImageMode = Literal["skip", "accepted", "refused"]
ToolChoice = Literal["auto", "required", "named"]

JOURNAL: Final = "journalctl -u 'sglang@*' -n 100 on the host"

LEAKS: Final[dict[str, str]] = {
    "]<]minimax[>[": "--tool-call-parser does not fit: this is MiniMax-M3's markup, use minimax-m3",
    "<mm:think>": "--reasoning-parser does not fit: this is MiniMax-M3's tag, use minimax-m3",
    "</mm:think>": "--reasoning-parser does not fit: this is MiniMax-M3's tag, use minimax-m3",
    "<minimax:tool_call>": "--tool-call-parser does not fit: this is MiniMax-M2's markup, use minimax-m2",
    "</minimax:tool_call>": "--tool-call-parser does not fit: this is MiniMax-M2's markup, use minimax-m2",
    "[e~[": "a special token is in the text: tokenizer files of another revision?",
    "]~b]": "a special token is in the text: tokenizer files of another revision?",
}
"""Markup that no client should ever see, and what it means."""

_THOUGHT: Final = re.compile(r"\A\s*<think>(?P<thought>.*?)</think>", re.DOTALL)


class UnreachableError(Exception):
    """Nothing answers at the URL; the text is one line."""


class FailedError(Exception):
    """A check found something else than it expected."""

    def __init__(self, expected: str, got: str, look: str = JOURNAL) -> None:
        super().__init__(f"expected {expected}, got {got}")
        self.expected = expected
        self.got = got
        self.look = look


class SkippedError(Exception):
    """A check does not apply; the text is the reason."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an endpoint said to one question."""

    content: str
    reasoning: str
    finish: str | None

    @property
    def visible(self) -> str:
        """The content without the thought that ``minimax-append-think`` puts at its head."""
        return _THOUGHT.sub("", self.content, count=1).strip()

    @property
    def leaks(self) -> list[str]:
        """Markup that should not be there."""
        text = self.content + self.reasoning
        found = [markup for markup in LEAKS if markup in text]
        rest = _THOUGHT.sub("", self.content, count=1)
        return found or [tag for tag in ("<think>", "</think>") if tag in rest]


@dataclass
class Context:
    """One run of the suite: the client, what it was asked to do, and what the endpoint said so far."""

    client: openai.OpenAI
    model: str
    image: ImageMode = "skip"
    tool_choice: ToolChoice = "auto"
    max_tokens: int = 2048
    answers: dict[str, Answer] = field(default_factory=dict)

    def ask(self, name: str, messages: list[dict[str, Any]], **more: Any) -> tuple[Answer, Any]:
        """Ask without streaming; return the answer and the client's whole response."""
        response: Any = self.client.chat.completions.create(
            model=self.model,
            messages=cast(Any, messages),
            max_tokens=self.max_tokens,
            temperature=0,
            **more,
        )
        if not response.choices:
            raise FailedError("a choice in the response", shorten(response.model_dump_json()))
        choice = response.choices[0]
        reasoning = getattr(choice.message, "reasoning_content", None) or ""
        answer = Answer(choice.message.content or "", reasoning, choice.finish_reason)
        self.answers[name] = answer
        return answer, response

    @property
    def choice(self) -> Any:
        """The ``tool_choice`` of the request."""
        if self.tool_choice == "named":
            return {"type": "function", "function": {"name": questions.TOOL_NAME}}
        return self.tool_choice


def check_models(context: Context) -> str:
    """The served name is listed. (A request with a wrong name is answered all the same.)"""
    names = [model.id for model in context.client.models.list().data]
    if context.model not in names:
        raise FailedError(
            f"{context.model} among the models",
            ", ".join(names) or "no model",
            "--served-model-name in the unit: systemctl cat 'sglang@*'",
        )
    return f"lists {', '.join(names)}"


def check_chat(context: Context) -> str:
    """A greeting with string content."""
    answer, response = context.ask("chat", [questions.text_message("user", questions.GREETING)])
    _ended(answer, "stop")
    if not any(character.isalpha() for character in answer.visible):
        raise FailedError("words in the answer", shorten(answer.content) or "an empty answer")
    if response.usage is None or response.usage.completion_tokens < 1:
        raise FailedError("usage with completion tokens", f"usage {response.usage}")
    return f"{shorten(answer.visible, 80)!r}, {response.usage.completion_tokens} tokens"


def check_chat_parts(context: Context) -> str:
    """The guide's curl command: system and user messages made of content parts."""
    answer, _ = context.ask(
        "chat_parts",
        [
            questions.parts_message("system", questions.SYSTEM),
            questions.parts_message("user", questions.GUIDE_QUESTION),
        ],
    )
    _ended(answer, "stop")
    _holds(answer, [questions.GUIDE_ANSWER])
    return repr(shorten(answer.visible, 80))


def check_stream(context: Context) -> str:
    """A stream arrives in pieces, makes sense joined, and ends with the usage that was asked for."""
    begun = time.monotonic()
    first: float | None = None
    content, reasoning, pieces, finish, usage = [], [], 0, None, None
    for chunk in _stream(
        context,
        [questions.text_message("user", questions.COUNT_QUESTION)],
        stream_options={"include_usage": True},
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            thought = getattr(choice.delta, "reasoning_content", None)
            if choice.delta.content or thought:
                first = time.monotonic() - begun if first is None else first
                pieces += 1
            content.append(choice.delta.content or "")
            reasoning.append(thought or "")
            finish = choice.finish_reason or finish
    answer = Answer("".join(content), "".join(reasoning), finish)
    context.answers["stream"] = answer
    if pieces < 2 or first is None:
        raise FailedError("an answer in several chunks", f"{pieces} chunk(s): {shorten(answer.content)}")
    _ended(answer, "stop")
    text = answer.visible.lower()
    if not any(_in_order(text, row) for row in questions.COUNT_ANSWERS):
        raise FailedError("one to five, in order", shorten(answer.content))
    if usage is None or not usage.completion_tokens:
        raise FailedError("usage in the last chunk (stream_options.include_usage)", f"usage {usage}")
    return f"{pieces} chunks, first after {first:.2f} s, {usage.completion_tokens} tokens"


def check_tool_call(context: Context) -> str:
    """The guide's weather tool, called with the right arguments."""
    answer, response = context.ask(
        "tool_call",
        [questions.text_message("user", questions.TOOL_QUESTION_GUIDE)],
        tools=[questions.WEATHER_TOOL],
        tool_choice=context.choice,
    )
    calls = [
        (call.function.name, call.function.arguments) for call in response.choices[0].message.tool_calls or []
    ]
    return _judge_call(context, answer, calls)


def check_tool_call_stream(context: Context) -> str:
    """The same as a stream: the arguments come in pieces and are JSON when joined."""
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    content, reasoning, finish = [], [], None
    for chunk in _stream(
        context,
        [questions.text_message("user", questions.TOOL_QUESTION)],
        tools=[questions.WEATHER_TOOL],
        tool_choice=context.choice,
    ):
        for choice in chunk.choices:
            content.append(choice.delta.content or "")
            reasoning.append(getattr(choice.delta, "reasoning_content", None) or "")
            finish = choice.finish_reason or finish
            for call in choice.delta.tool_calls or []:
                if call.function is not None:
                    names[call.index] = names.get(call.index, "") + (call.function.name or "")
                    arguments[call.index] = arguments.get(call.index, "") + (call.function.arguments or "")
    answer = Answer("".join(content), "".join(reasoning), finish)
    context.answers["tool_call_stream"] = answer
    return _judge_call(context, answer, [(names[index], arguments[index]) for index in sorted(names)])


def check_image(context: Context) -> str:
    """Pictures of one colour are named rightly; a text model refuses them with a 4xx."""
    if context.image == "skip":
        raise SkippedError("the model takes text only")
    if context.image == "refused":
        try:
            answer, _ = context.ask("image", [questions.image_message("red")])
        except openai.APIStatusError as error:
            if 400 <= error.status_code < 500:
                return f"refused with {error.status_code}, as a text model should"
            raise
        raise FailedError("a 4xx: the model takes text only", f"an answer: {shorten(answer.content)}")
    named = []
    for colour in questions.COLOURS:
        answer, _ = context.ask(f"image ({colour})", [questions.image_message(colour)])
        _ended(answer, "stop")
        others = [other for other in questions.COLOURS if other != colour and other in answer.visible.lower()]
        if colour not in answer.visible.lower() or others:
            raise FailedError(
                f"{colour!r}, the colour of the picture",
                shorten(answer.content),
                "the vision part: preprocessor_config.json of the weights, and " + JOURNAL,
            )
        named.append(colour)
    return f"named {join(named)}"


def check_markup(context: Context) -> str:
    """No markup of tool calls or thoughts leaked into any answer so far (asks nothing itself)."""
    if not context.answers:
        raise SkippedError("no check before this one got an answer")
    found: dict[str, list[str]] = {}
    for name, answer in context.answers.items():
        for markup in answer.leaks:
            found.setdefault(markup, []).append(name)
    if found:
        first = next(iter(found))
        raise FailedError(
            "answers without markup",
            "; ".join(f"{markup} in {join(names)}" for markup, names in found.items()),
            LEAKS.get(
                first, "--reasoning-parser does not fit the model: minimax or minimax-append-think for M2"
            ),
        )
    return f"none in {len(context.answers)} answers; {_thinking(context.answers.values())}"


@dataclass(frozen=True, slots=True)
class Check:
    """A check by its name; ``run`` returns what was seen or raises."""

    name: str
    run: Callable[[Context], str]


CHECKS: Final = (
    Check("models", check_models),
    Check("chat", check_chat),
    Check("chat_parts", check_chat_parts),
    Check("stream", check_stream),
    Check("tool_call", check_tool_call),
    Check("tool_call_stream", check_tool_call_stream),
    Check("image", check_image),
    Check("markup", check_markup),
)


def run(context: Context, url: str, checks: Iterable[Check] = CHECKS) -> Report:
    """Run the checks one after another and return the report.

    Raises:
        UnreachableError: the first check finds nobody at the URL.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    results: list[Result] = []
    for check in checks:
        result, lost = _run_one(check, context)
        if lost and not results:
            raise UnreachableError(result.got or "nothing answers")
        results.append(result)
    return Report(url, context.model, now, tuple(results))


def _run_one(check: Check, context: Context) -> tuple[Result, bool]:
    """Run one check; return its result and whether the endpoint could not be reached."""
    begun = time.monotonic()

    def failed(expected: str, got: str, look: str) -> Result:
        return Result(check.name, "failed", time.monotonic() - begun, expected=expected, got=got, look=look)

    try:
        detail = check.run(context)
    except SkippedError as reason:
        return Result(check.name, "skipped", time.monotonic() - begun, detail=str(reason)), False
    except FailedError as error:
        return failed(error.expected, error.got, error.look), False
    except openai.APITimeoutError:
        return failed("an answer in time", f"none after {time.monotonic() - begun:.0f} s", JOURNAL), False
    except openai.APIConnectionError as error:
        return failed(
            "a connection", f"{error.message} ({error.__cause__ or 'no reason given'})", JOURNAL
        ), True
    except openai.APIStatusError as error:
        look = JOURNAL
        if error.status_code in {401, 403}:
            look = "the key: put it in the environment as METAL_API_KEY or pass --api-key-file"
        return failed("status 200", f"status {error.status_code}: {shorten(error.message)}", look), False
    except openai.OpenAIError as error:
        return failed("an answer that the openai client can read", shorten(str(error)), JOURNAL), False
    except Exception as error:
        # The client builds its objects without validating, so a malformed response shows only when it is
        # read; a stream that breaks off raises whatever the HTTP library does. Never a traceback.
        got = shorten(f"a response that cannot be read ({type(error).__name__}: {error})")
        return failed("a whole response in the OpenAI form", got, JOURNAL), False
    return Result(check.name, "passed", time.monotonic() - begun, detail=detail), False


def connect(url: str, key: str, timeout: float) -> tuple[openai.OpenAI, str]:
    """Return the client for an endpoint, given with or without ``/v1``, and the URL without it.

    Retries are off: a check that passes at the second try has not passed. The environment's proxy is for the
    internet, not for this host or its network.
    """
    base = url.rstrip("/").removesuffix("/v1").rstrip("/")
    client = openai.OpenAI(
        base_url=f"{base}/v1",
        api_key=key,
        max_retries=0,
        timeout=openai.Timeout(timeout, connect=min(10.0, timeout)),
        http_client=openai.DefaultHttpxClient(trust_env=not _is_near(urlsplit(base).hostname or "")),
    )
    return client, base


def _is_near(host: str) -> bool:
    """Return whether a host is this machine or has a private address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return False


def _stream(context: Context, messages: list[dict[str, Any]], **more: Any) -> Iterable[Any]:
    """Ask with streaming and yield the chunks."""
    chunks: Iterable[Any] = context.client.chat.completions.create(
        model=context.model,
        messages=cast(Any, messages),
        max_tokens=context.max_tokens,
        temperature=0,
        stream=True,
        **more,
    )
    return chunks


def _ended(answer: Answer, finish: str) -> None:
    """Raise unless the answer ended as expected."""
    if answer.finish != finish:
        look = "the answer ran into max_tokens: does the engine stop at the model's end token?"
        raise FailedError(
            f"finish_reason {finish}",
            f"{answer.finish} after: {shorten(answer.content or answer.reasoning)}",
            look if answer.finish == "length" else JOURNAL,
        )


def _holds(answer: Answer, words: Iterable[str]) -> None:
    """Raise unless one of the words is in the visible answer."""
    wanted = list(words)
    if not any(word.lower() in answer.visible.lower() for word in wanted):
        raise FailedError(
            f"{' or '.join(map(repr, wanted))} in the answer",
            shorten(answer.content) or "an empty answer",
            "a model that speaks but errs: are these the weights and the tokenizer of the plan? " + JOURNAL,
        )


def _in_order(text: str, words: Iterable[str]) -> bool:
    """Return whether the words appear in this order."""
    at = 0
    for word in words:
        at = text.find(word, at) + len(word)
        if at < len(word):
            return False
    return True


def _judge_call(context: Context, answer: Answer, calls: list[tuple[str | None, str | None]]) -> str:
    """Judge the call of the weather tool; return it in words."""
    if not calls:
        if context.tool_choice != "auto" and questions.TOOL_NAME in answer.content:
            # Known and reported here: the check of the markup has nothing to add.
            context.answers = {name: kept for name, kept in context.answers.items() if kept is not answer}
            raise SkippedError(
                f"tool_choice {context.tool_choice} leaves the call as text: minimax-append-think's limit; "
                "--reasoning-parser minimax (M2) or minimax-m3 has it"
            )
        markup = next((leak for leak in answer.leaks if leak in LEAKS), None)
        raise FailedError(
            f"a call of {questions.TOOL_NAME} in tool_calls",
            f"none, finish_reason {answer.finish}, content: {shorten(answer.content)}",
            LEAKS[markup]
            if markup
            else f"--tool-call-parser in the unit: systemctl cat 'sglang@*'; {JOURNAL}",
        )
    name, text = calls[0]
    if name != questions.TOOL_NAME:
        raise FailedError(f"a call of {questions.TOOL_NAME}", f"a call of {name!r}")
    try:
        arguments = json.loads(text or "")
    except ValueError:
        raise FailedError("arguments in JSON", shorten(text or "") or "no arguments") from None
    if not isinstance(arguments, dict):
        raise FailedError("arguments as a JSON object", shorten(text or ""))
    place = str(arguments.get("location", ""))
    if (
        not any(known in place for known in questions.TOOL_LOCATIONS)
        or arguments.get("unit") != questions.TOOL_UNIT
    ):
        raise FailedError(
            f"location {' or '.join(questions.TOOL_LOCATIONS)} and unit {questions.TOOL_UNIT}",
            shorten(text or ""),
        )
    # A forced call may end with "stop", as the OpenAI API itself does.
    if answer.finish != "tool_calls" and not (context.tool_choice != "auto" and answer.finish == "stop"):
        raise FailedError("finish_reason tool_calls", f"{answer.finish}")
    return f"{name}({', '.join(f'{key}={value}' for key, value in arguments.items())})"


def _thinking(answers: Iterable[Answer]) -> str:
    """Say how the thought is delivered."""
    every = list(answers)
    if any(answer.reasoning for answer in every):
        return "thinking in reasoning_content"
    if any(_THOUGHT.match(answer.content) for answer in every):
        return "thinking at the head of content in <think>, as minimax-append-think delivers it"
    return "no thinking shown"

"""Checks of request parameters: stop sequences, several choices, seeds, schemas, probabilities."""

from __future__ import annotations

import json
import math
from typing import Any, Final

from minimax_metal.common.documents import read_json
from minimax_metal.host.check import questions
from minimax_metal.host.check.answer import APPEND_THINK, THOUGHT, Answer, ended, says_something
from minimax_metal.host.check.context import Context
from minimax_metal.host.check.conversation import USER
from minimax_metal.host.check.outcome import JOURNAL, UNIT, FailedError, LimitedError
from minimax_metal.host.check.report import shorten

STOPS: Final = ("three", "3")
"""Each is in a correct answer to the counting question, and in reasoning about it."""
CHOICES: Final = 2
SEED: Final = 20_261_129
TOP: Final = 3


def check_stop(context: Context) -> str:
    """A stop sequence ends the answer before it, and is not in it."""
    answer = context.chat("stop", [questions.text_message(USER, questions.COUNT_QUESTION)], stop=list(STOPS))
    ended(answer, "stop")
    text = answer.content + answer.reasoning
    there = [stop for stop in STOPS if stop in text]
    if there:
        raise FailedError(
            "an answer that ends before the stop sequence",
            f"{there[0]!r} in {shorten(text)}",
            f"the request's stop was dropped on the way: {JOURNAL}",
        )
    if not text.strip():
        raise FailedError("words before the stop sequence", "none")
    return f"ended before it: {shorten(text, 60)!r}"


def check_choices(context: Context) -> str:
    """``n`` choices come in one response, each of them an answer."""
    response: Any = context.endpoint.openai.chat.completions.create(
        model=context.endpoint.model,
        messages=[{"role": "user", "content": questions.GREETING}],
        n=CHOICES,
        **context.sampling,
    )
    if sorted(choice.index for choice in response.choices) != list(range(CHOICES)):
        raise FailedError(
            f"{CHOICES} choices, numbered from 0",
            f"{[choice.index for choice in response.choices]}",
            f"a gateway that drops n, or {JOURNAL}",
        )
    for choice in response.choices:
        answer = Answer(choice.message.content or "", "", choice.finish_reason)
        context.hear(f"choices ({choice.index})", answer)
        ended(answer, "stop")
        says_something(answer)
    return f"{CHOICES} choices"


def check_seed(context: Context) -> str:
    """A request with a seed is answered; whether two are identical is reported, not judged.

    Equal answers at a temperature need ``--enable-deterministic-inference``, which costs speed.
    """
    asked = [questions.text_message(USER, questions.COUNT_QUESTION)]
    answers = [
        context.chat(f"seed ({turn})", asked, seed=SEED, temperature=1.0) for turn in ("first", "again")
    ]
    for answer in answers:
        says_something(answer)
    alike = answers[0].content == answers[1].content and answers[0].reasoning == answers[1].reasoning
    return "two answers with the same seed, " + (
        "alike" if alike else "not identical (no deterministic inference)"
    )


def check_json_schema(context: Context) -> str:
    """``response_format`` json_schema: the answer is JSON of that schema and nothing else."""
    form = {"name": "city", "strict": True, "schema": questions.CITY_SCHEMA}
    answer = context.chat(
        "json_schema",
        [questions.text_message(USER, questions.CITY_QUESTION)],
        response_format={"type": "json_schema", "json_schema": form},
    )
    ended(answer, "stop")
    text = THOUGHT.sub("", answer.content, count=1).strip()
    if text.startswith("<think>") and context.appends_think:
        # Nothing closes the tag that the parser puts first: a client that parses the content fails.
        del context.answers["json_schema"]
        raise LimitedError(
            f"{APPEND_THINK} puts <think> before JSON requested by a schema",
            "--reasoning-parser minimax (M2) or minimax-m3 (M3)",
        )
    try:
        value = read_json(text)
    except ValueError:
        raise FailedError("JSON in the content", shorten(answer.content) or "an empty answer", UNIT) from None
    cities = questions.CITY_SCHEMA["properties"]["city"]["enum"]
    fits = (
        isinstance(value, dict)
        and set(value) == {"city", "sunny"}
        and value["city"] in cities
        and isinstance(value["sunny"], bool)
    )
    if not fits:
        raise FailedError(
            "JSON that matches the schema", shorten(text), f"--grammar-backend: {UNIT}; {JOURNAL}"
        )
    return shorten(json.dumps(value, ensure_ascii=False))


def check_logprobs(context: Context) -> str:
    """``logprobs`` gives a probability for each token, with the most likely ones beside it."""
    response: Any = context.endpoint.openai.chat.completions.create(
        model=context.endpoint.model,
        messages=[{"role": "user", "content": questions.GREETING}],
        logprobs=True,
        top_logprobs=TOP,
        **context.sampling,
    )
    if not response.choices:
        raise FailedError("a choice in the response", shorten(response.model_dump_json()))
    given = response.choices[0].logprobs
    tokens = list(given.content or []) if given else []
    if not tokens:
        raise FailedError("logprobs of every token", "none", f"a gateway that drops logprobs, or {JOURNAL}")
    for token in tokens:
        if not (isinstance(token.logprob, float) and math.isfinite(token.logprob) and token.logprob <= 0):
            raise FailedError("log probabilities, 0 or less", f"{token.logprob} for {token.token!r}")
        if len(token.top_logprobs) != TOP:
            raise FailedError(
                f"the {TOP} most likely tokens each", f"{len(token.top_logprobs)} for {token.token!r}"
            )
    return f"{len(tokens)} tokens, the {TOP} most likely each"

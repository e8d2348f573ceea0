"""Checks of features that operators rely on: keys, names, metrics, many concurrent clients."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import openai

from minimax_metal.host.check import questions
from minimax_metal.host.check.answer import Answer, counts_to_five, holds, says_something
from minimax_metal.host.check.context import Context
from minimax_metal.host.check.conversation import USER
from minimax_metal.host.check.endpoint import STATUS_ERRORS, WRONG_KEY
from minimax_metal.host.check.outcome import JOURNAL, UNIT, FailedError, LimitedError, SkippedError
from minimax_metal.host.check.report import join, shorten

NOBODY: Final = "metal-check/no-such-model"
METRICS: Final = (
    "sglang:num_running_reqs",
    "sglang:num_queue_reqs",
    "sglang:token_usage",
    "sglang:prompt_tokens_total",
    "sglang:generation_tokens_total",
)
"""Names that dashboards and alerts use (read from a running 0.5.23)."""


def check_wrong_key(context: Context) -> str:
    """Requests with a wrong key, or with none, get 401 on both interfaces."""
    endpoint = context.endpoint
    if endpoint.key is None:
        raise SkippedError("no key is set: anybody who can reach the port can use the endpoint")
    greeting: list[Any] = [questions.text_message(USER, questions.GREETING)]
    wrong = endpoint.openai.with_options(api_key=WRONG_KEY)
    other = endpoint.anthropic.with_options(auth_token=WRONG_KEY)
    tries: dict[str, Any] = {
        "/v1/models": lambda: wrong.models.list(),
        "/v1/chat/completions": lambda: wrong.chat.completions.create(
            model=endpoint.model, messages=greeting, max_tokens=1
        ),
        "/v1/messages": lambda: other.messages.create(model=endpoint.model, messages=greeting, max_tokens=1),
    }
    got = {f"{path} with a wrong key": _status(call) for path, call in tries.items()}
    got["/v1/models without a key"] = endpoint.get("/v1/models", key="").status_code
    bad = [f"{status} from {where}" for where, status in got.items() if status != 401]
    if bad:
        raise FailedError(
            "401 from every path", join(bad), f"set --api-key in the unit, or a proxy in front: {UNIT}"
        )
    return "401 from models, chat and messages; without a key too"


def _status(call: Any) -> int:
    try:
        call()
    except STATUS_ERRORS as error:
        return error.status_code
    return 200


def check_wrong_model(context: Context) -> str:
    """A name that is not served is refused. SGLang answers it anyway, which is a known limitation."""
    endpoint = context.endpoint
    try:
        response: Any = endpoint.openai.chat.completions.create(
            model=NOBODY,
            messages=[{"role": "user", "content": questions.GREETING}],
            max_tokens=context.budget(context.options.max_tokens),
            temperature=0,
        )
    except openai.APIStatusError as error:
        if error.status_code in {400, 404, 422}:
            return f"refused with {error.status_code}"
        raise FailedError(
            "400 or 404, or an answer", f"{error.status_code}: {shorten(error.message)}"
        ) from None
    if not response.choices:
        raise FailedError("400 or 404, or an answer", shorten(response.model_dump_json()))
    raise LimitedError(
        "an unknown model name is answered with 200: the engine ignores the name, so typos go unnoticed",
        "a router in front that checks model names",
    )


def check_metrics(context: Context) -> str:
    """The engine exposes Prometheus metrics, if they are enabled."""
    response = context.endpoint.get("/metrics")
    if response.status_code == 404 and not context.options.metrics_required:
        raise SkippedError("not enabled (404 from /metrics): set --enable-metrics")
    if response.status_code != 200:
        raise FailedError("200 from /metrics", f"{response.status_code}", f"--enable-metrics: {UNIT}")
    missing = [name for name in METRICS if not re.search(rf"^{name}[{{ ]", response.text, re.MULTILINE)]
    if missing:
        raise FailedError(
            "the engine's metrics in /metrics",
            f"none of {join(missing)}",
            "does another program answer /metrics? " + UNIT,
        )
    names = {line.split("{")[0].split(" ")[0] for line in response.text.splitlines() if line[:1] not in "# "}
    return f"{sum(name.startswith('sglang:') for name in names)} engine metrics"


# Concurrent requests --------------------------------------------------------------------------------------


def check_concurrent(context: Context) -> str:
    """Each of many concurrent requests gets its own answer, and none is lost."""
    number = context.options.concurrency
    start = threading.Barrier(number)
    asked = [_ASKED[place % len(_ASKED)] for place in range(number)]

    def one(place: int, question: str) -> Answer | Exception:
        start.wait(30)
        try:
            return context.chat(f"concurrent ({place})", [questions.text_message(USER, question)])
        except Exception as error:
            return error

    begun = time.monotonic()
    with ThreadPoolExecutor(number) as pool:
        answers = list(pool.map(one, range(number), asked))
    seconds = time.monotonic() - begun
    wrong = [
        fault
        for question, answer in zip(asked, answers, strict=True)
        if (fault := _fault(question, answer)) is not None
    ]
    if wrong:
        raise FailedError(
            f"{number} correct answers to {number} concurrent requests",
            f"{number - len(wrong)}; {shorten(wrong[0])}",
            f"--max-running-requests, --max-queued-requests: {UNIT}; {JOURNAL}",
        )
    return f"{number} of {number} answered in {seconds:.1f} s"


_ASKED: Final = (questions.GREETING, questions.GUIDE_QUESTION, questions.COUNT_QUESTION)


def _fault(question: str, answer: Answer | Exception) -> str | None:
    """Return what is wrong with an answer to a question, if anything."""
    if isinstance(answer, Exception):
        return f"{type(answer).__name__}: {answer}"
    try:
        if question == questions.GUIDE_QUESTION:
            holds(answer, [questions.GUIDE_ANSWER])
        elif question == questions.COUNT_QUESTION:
            counts_to_five(answer)
        else:
            says_something(answer)
    except FailedError as error:
        return f"to {question!r}: {error}"
    return None

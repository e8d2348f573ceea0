"""A smoke benchmark: time to first token and tokens per second, alone and with concurrent requests.

It tells a healthy endpoint from a very slow one. It is not a product measurement: few tokens, short prompts,
one run. For that, ``--bench`` runs SGLang's own ``bench_serving``.
"""

from __future__ import annotations

import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from minimax_metal.host.check import questions
from minimax_metal.host.check.answer import Answer
from minimax_metal.host.check.context import Context
from minimax_metal.host.check.conversation import USER
from minimax_metal.host.check.outcome import JOURNAL, FailedError, SkippedError
from minimax_metal.host.check.report import shorten


def check_figures(context: Context) -> str:
    """Every request of every level is answered completely; the measurements are added to the report."""
    if not context.options.figure_levels:
        raise SkippedError("skipped by --figures none")
    levels = [_level(context, number) for number in context.options.figure_levels]
    context.figures["levels"] = levels
    return "; ".join(
        f"{level['concurrency']} at once: {level['tokens_per_second']:.0f} tokens/s, first token "
        f"after {level['first_token_seconds']['median']:.2f} s"
        for level in levels
    )


def _level(context: Context, number: int) -> dict[str, Any]:
    """Run ``number`` concurrent streams; return one level's measurements (seconds, tokens per second)."""
    start = threading.Barrier(number)

    def one(place: int) -> Answer | Exception:
        start.wait(30)
        try:
            return context.endpoint.stream(
                [questions.text_message(USER, f"{questions.COUNT_QUESTION} ({place})")],
                max_tokens=context.options.figure_tokens,
                temperature=0,
                # The engine's own field: without it a short answer would be all there is to measure.
                extra_body={"ignore_eos": True},
            )
        except Exception as error:
            return error

    begun = time.monotonic()
    with ThreadPoolExecutor(number) as pool:
        answers = list(pool.map(one, range(number)))
    seconds = time.monotonic() - begun
    lost = [answer for answer in answers if isinstance(answer, Exception)]
    if lost:
        raise FailedError(
            f"{number} concurrent stream(s)",
            f"{number - len(lost)}; {type(lost[0]).__name__}: {shorten(str(lost[0]))}",
        )
    whole = [answer for answer in answers if isinstance(answer, Answer)]
    tokens = sum(answer.tokens or 0 for answer in whole)
    if not all(answer.tokens and answer.pieces for answer in whole):
        raise FailedError("tokens in every stream", f"{[answer.tokens for answer in whole]}", JOURNAL)
    first = [answer.first for answer in whole]
    return {
        "concurrency": number,
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 2),
        "first_token_seconds": {
            "median": round(statistics.median(first), 3),
            "max": round(max(first), 3),
        },
        "decode_tokens_per_second": _decode(whole),
    }


def _decode(answers: list[Answer]) -> float | None:
    """Return one stream's tokens per second after its first token: the median, None if none has two."""
    rates = [
        ((answer.tokens or 0) - 1) / (answer.last - answer.first)
        for answer in answers
        if answer.last > answer.first and (answer.tokens or 0) > 1
    ]
    return round(statistics.median(rates), 2) if rates else None

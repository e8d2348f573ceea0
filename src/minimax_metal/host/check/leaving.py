"""Checks of clients that leave: in the middle of an answer, and before their turn has come."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.metrics import samples
from minimax_metal.host.check import questions
from minimax_metal.host.check.context import Context
from minimax_metal.host.check.conversation import still_answers
from minimax_metal.host.check.outcome import JOURNAL, FailedError, SkippedError

GONE_MARGIN: Final = 0.8
"""Of the time the aborted answer would still have taken: a slot freed later proves nothing."""
MOST_TO_FILL: Final = 64
"""Streams that this check starts at most to fill an engine, so that one more request has to wait."""


def check_abort(context: Context) -> str:
    """A client that leaves in the middle of a stream frees its slot, long before the answer would end.

    The number of running requests is read from ``/v1/loads`` or from ``/metrics`` (SGLang 0.5.23); other
    clients' requests that come and go meanwhile can't be told from this one.
    """
    # The checks before this one may still be on their way out.
    before = _wait(context, 2.0, lambda running: running == 0)
    most = min(32768, max(256, (context.limit or 4096) * 3 // 4))
    stream: Any = context.endpoint.openai.chat.completions.create(
        model=context.endpoint.model,
        messages=[{"role": "user", "content": questions.COUNT_QUESTION}],
        max_tokens=most,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    times = []
    try:
        for chunk in stream:
            times.append(time.monotonic())
            if len(times) >= 5 or any(choice.finish_reason for choice in chunk.choices):
                break
        seen = min(5.0, context.options.abort_seconds)
        during = _wait(context, seen, lambda running: running > before)
    finally:
        stream.close()
    left = time.monotonic()
    if during <= before:
        raise FailedError(
            f"the stream among the running requests ({before} before it)",
            f"{during} while it was read",
            f"an answer that ended at once, or figures that stand still; {JOURNAL}",
        )
    after = _wait(context, context.options.abort_seconds, lambda running: running <= before)
    seconds = time.monotonic() - left
    rest = (most - len(times)) * (times[-1] - times[0]) / max(1, len(times) - 1)
    if after > before:
        raise FailedError(
            f"{before} running request(s) after the client left",
            f"{after} still after {seconds:.0f} s",
            f"answers nobody reads keep their slots; a proxy that hides the disconnect, or {JOURNAL}",
        )
    if seconds > GONE_MARGIN * rest:
        raise SkippedError(
            f"the answer would have ended by itself in {rest:.1f} s: too soon to tell why its slot is free"
        )
    return f"slot free {seconds:.1f} s after the client left"


def _wait(context: Context, seconds: float, done: Any) -> int:
    """Poll the number of running requests until ``done`` says so; return the last number."""
    deadline = time.monotonic() + seconds
    running = _running(context)
    while not done(running) and time.monotonic() < deadline:
        time.sleep(0.2)
        running = _running(context)
    return running


def _running(context: Context) -> int:
    """Return how many requests run or wait.

    Raises:
        SkippedError: neither path says.
    """
    loads = context.endpoint.get("/v1/loads")
    if loads.status_code == 200:
        try:
            ranks = read_json(loads.content)["loads"]
            return sum(int(rank["num_running_reqs"]) + int(rank["num_waiting_reqs"]) for rank in ranks)
        except (ValueError, TypeError, KeyError, OverflowError):
            pass
    metrics = context.endpoint.get("/metrics")
    if metrics.status_code == 200:
        values = list(_values(metrics.text, ("sglang:num_running_reqs", "sglang:num_queue_reqs")))
        if values:
            return int(sum(values))
    raise SkippedError("neither /v1/loads nor /metrics says how many requests run: --enable-metrics does")


def _values(text: str, names: Iterable[str]) -> Iterable[float]:
    wanted = set(names)
    return (one.value for one in samples(text) if one.name in wanted)


# A client that leaves while it waits ----------------------------------------------------------------------


def check_abort_queued(context: Context) -> str:
    """A client that leaves while its request waits takes its place in the queue with it.

    So many streams that the engine runs no more at once hold it busy; one more request waits, and leaves.
    """
    most = context.endpoint.facts.running_limit
    if most is None:
        raise SkippedError("the endpoint does not say how many requests it runs at once (/server_info)")
    if most > MOST_TO_FILL:
        raise SkippedError(f"the engine runs {most} requests at once: too many to fill it for a check")
    before = _wait(context, 2.0, lambda running: running == 0)
    with _busy(context, most):
        busy = _wait(context, context.options.abort_seconds, lambda running: running >= before + most)
        if busy < before + most:
            raise SkippedError(f"{most} streams at once were {busy - before} running requests")
        with context.endpoint.asking({"max_tokens": 16, "temperature": 0}, questions.GREETING):
            during = _wait(context, 5.0, lambda running: running > busy)
        if during <= busy:
            raise SkippedError("no request was seen to wait")
        after = _wait(context, context.options.abort_seconds, lambda running: running <= busy)
        if after > busy:
            raise FailedError(
                f"{busy} requests after the one that waited has left",
                f"{after} still after {context.options.abort_seconds:.0f} s",
                f"requests that nobody waits for keep their place in the queue; {JOURNAL}",
            )
        if after < busy:
            raise SkippedError("the answers that held the engine busy ended by themselves: too soon to tell")
    _wait(context, context.options.abort_seconds, lambda running: running <= before)
    still_answers(context, "a client that left the queue")
    return f"left the queue of an engine that runs {most} at once; answers on"


@contextlib.contextmanager
def _busy(context: Context, number: int) -> Iterator[None]:
    """Keep the engine busy with so many endless answers meanwhile."""
    streams: list[Any] = []
    try:
        for _ in range(number):
            streams.append(
                context.endpoint.openai.chat.completions.create(
                    model=context.endpoint.model,
                    messages=[{"role": "user", "content": questions.COUNT_QUESTION}],
                    max_tokens=min(32768, max(256, (context.limit or 4096) // 2)),
                    temperature=0,
                    stream=True,
                    extra_body={"ignore_eos": True},
                )
            )
        yield
    finally:
        for stream in streams:
            stream.close()

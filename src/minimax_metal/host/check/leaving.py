"""Checks of clients that disconnect: in the middle of an answer, and while queued."""

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
"""Share of the aborted answer's remaining time: a slot freed later proves nothing."""
MOST_TO_FILL: Final = 64
"""Maximum streams that this check starts to fill an engine, so that one more request has to wait."""


def check_abort(context: Context) -> str:
    """A client that disconnects during a stream frees its slot, long before the answer would end.

    The number of running requests is read from ``/v1/loads`` or from ``/metrics`` (SGLang 0.5.23); other
    clients' requests that start and end meanwhile can't be distinguished from this one.
    """
    # Requests of the previous checks may still be ending.
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
            f"an answer that ended immediately, or metrics that don't change; {JOURNAL}",
        )
    after = _wait(context, context.options.abort_seconds, lambda running: running <= before)
    seconds = time.monotonic() - left
    rest = (most - len(times)) * (times[-1] - times[0]) / max(1, len(times) - 1)
    if after > before:
        raise FailedError(
            f"{before} running request(s) after the client disconnected",
            f"{after} still after {seconds:.0f} s",
            f"abandoned answers keep their slots; a proxy that hides the disconnect, or {JOURNAL}",
        )
    if seconds > GONE_MARGIN * rest:
        raise SkippedError(
            f"the answer would have ended on its own in {rest:.1f} s: too soon to tell why its slot is free"
        )
    return f"slot free {seconds:.1f} s after the client disconnected"


def _wait(context: Context, seconds: float, done: Any) -> int:
    """Poll the number of running requests until ``done`` is true for it; return the last number."""
    deadline = time.monotonic() + seconds
    running = _running(context)
    while not done(running) and time.monotonic() < deadline:
        time.sleep(0.2)
        running = _running(context)
    return running


def _running(context: Context) -> int:
    """Return the numbers of running and waiting requests.

    Raises:
        SkippedError: neither path reports them.
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
    raise SkippedError(
        "neither /v1/loads nor /metrics reports the number of running requests; set --enable-metrics"
    )


def _values(text: str, names: Iterable[str]) -> Iterable[float]:
    wanted = set(names)
    return (one.value for one in samples(text) if one.name in wanted)


# A client that disconnects while queued -------------------------------------------------------------------


def check_abort_queued(context: Context) -> str:
    """A client that disconnects while its request waits is removed from the queue.

    As many streams as the engine runs at most keep it busy; one more request waits, and disconnects.
    """
    most = context.endpoint.facts.running_limit
    if most is None:
        raise SkippedError(
            "the endpoint does not report its maximum number of running requests (/server_info)"
        )
    if most > MOST_TO_FILL:
        raise SkippedError(f"the engine runs up to {most} requests at once: too many to fill it for a check")
    before = _wait(context, 2.0, lambda running: running == 0)
    with _busy(context, most):
        busy = _wait(context, context.options.abort_seconds, lambda running: running >= before + most)
        if busy < before + most:
            raise SkippedError(f"{most} concurrent streams were {busy - before} running requests")
        with context.endpoint.asking({"max_tokens": 16, "temperature": 0}, questions.GREETING):
            during = _wait(context, 5.0, lambda running: running > busy)
        if during <= busy:
            raise SkippedError("no request was seen waiting")
        after = _wait(context, context.options.abort_seconds, lambda running: running <= busy)
        if after > busy:
            raise FailedError(
                f"{busy} requests after the waiting client disconnected",
                f"{after} still after {context.options.abort_seconds:.0f} s",
                f"abandoned requests keep their place in the queue; {JOURNAL}",
            )
        if after < busy:
            raise SkippedError("the answers that kept the engine busy ended on their own: too soon to tell")
    _wait(context, context.options.abort_seconds, lambda running: running <= before)
    still_answers(context, "a client disconnected while queued")
    return f"removed from the queue of an engine that runs {most} at once; still answers"


@contextlib.contextmanager
def _busy(context: Context, number: int) -> Iterator[None]:
    """Keep the engine busy with this many endless answers meanwhile."""
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

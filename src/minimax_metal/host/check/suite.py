"""The checks in order, and how a run of them becomes a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Final

from minimax_metal.host.check import (
    bench,
    conversation,
    figures,
    leaving,
    limits,
    messages,
    operations,
    parameters,
    turns,
)
from minimax_metal.host.check.context import Context
from minimax_metal.host.check.endpoint import CLIENT_ERRORS, CONNECTION_ERRORS, STATUS_ERRORS, TIMEOUT_ERRORS
from minimax_metal.host.check.outcome import (
    JOURNAL,
    FailedError,
    LimitedError,
    SkippedError,
    UnreachableError,
)
from minimax_metal.host.check.report import Report, Result, shorten

IN_TIME: Final = "an answer in time"
PATIENCE: Final = 2
"""Unanswered checks before the rest is skipped: a hanging engine would take hours.
"""

KEY: Final = "the key: set METAL_API_KEY in the environment or pass --api-key-file"


@dataclass(frozen=True, slots=True)
class Check:
    """A check by its name; ``run`` returns the finding or raises."""

    name: str
    run: Callable[[Context], str]

    @property
    def about(self) -> str:
        """What it checks: the first line of its docstring."""
        return (self.run.__doc__ or "").strip().splitlines()[0].replace("``", "")


CHECKS: Final = (
    Check("models", conversation.check_models),
    Check("chat", conversation.check_chat),
    Check("chat_parts", conversation.check_chat_parts),
    Check("stream", conversation.check_stream),
    Check("stream_guide", conversation.check_stream_guide),
    Check("reasoning", conversation.check_reasoning),
    Check("reasoning_effort", conversation.check_reasoning_effort),
    Check("sampling", limits.check_sampling),
    Check("turns", turns.check_turns),
    Check("system_long", turns.check_system_long),
    Check("unicode", turns.check_unicode),
    Check("stop", parameters.check_stop),
    Check("choices", parameters.check_choices),
    Check("seed", parameters.check_seed),
    Check("json_schema", parameters.check_json_schema),
    Check("logprobs", parameters.check_logprobs),
    Check("tool_call", conversation.check_tool_call),
    Check("tool_call_stream", conversation.check_tool_call_stream),
    Check("tool_required", conversation.check_tool_required),
    Check("tool_named", conversation.check_tool_named),
    Check("tool_several", conversation.check_tool_several),
    Check("tool_round_trip", conversation.check_tool_round_trip),
    Check("tool_parallel", turns.check_tool_parallel),
    Check("image", conversation.check_image),
    Check("image_marker", turns.check_image_marker),
    Check("messages", messages.check_messages),
    Check("messages_stream", messages.check_messages_stream),
    Check("messages_turns", turns.check_messages_turns),
    Check("messages_tool", messages.check_messages_tool),
    Check("messages_tool_stream", messages.check_messages_tool_stream),
    Check("messages_tool_any", messages.check_messages_tool_any),
    Check("messages_image", messages.check_messages_image),
    Check("long_prompt", limits.check_long_prompt),
    Check("over_limit", limits.check_over_limit),
    Check("wrong_key", operations.check_wrong_key),
    Check("wrong_model", operations.check_wrong_model),
    Check("metrics", operations.check_metrics),
    Check("concurrent", operations.check_concurrent),
    Check("markup", conversation.check_markup),
    Check("abort", leaving.check_abort),
    Check("abort_queued", leaving.check_abort_queued),
    Check("figures", figures.check_figures),
    Check("bench", bench.check_bench),
)


def selected(name: str, only: Iterable[str], skip: Iterable[str]) -> bool:
    """Return whether ``--only`` and ``--skip`` select a check."""
    chosen = list(only)
    wanted = not chosen or any(fnmatchcase(name, pattern) for pattern in chosen)
    return wanted and not any(fnmatchcase(name, pattern) for pattern in skip)


def run(
    context: Context,
    checks: Iterable[Check] = CHECKS,
    *,
    only: Iterable[str] = (),
    skip: Iterable[str] = (),
) -> Report:
    """Run the checks one after another and return the report, without the endpoint's key.

    If the endpoint stops answering, or rejects the key, the remaining checks are skipped with that reason.

    Raises:
        UnreachableError: nothing answers at the start.
    """
    endpoint = context.endpoint
    now = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        first = endpoint.get("/v1/models")
    except Exception as error:
        raise UnreachableError(shorten(str(error)) or type(error).__name__) from None
    results: list[Result] = []
    over, timeouts = "", 0
    for check in checks:
        if check.name == "reasoning_effort" and not context.options.efforts:
            continue  # Most models have no levels: a row for them would be useless.
        if not selected(check.name, only, skip):
            results.append(Result(check.name, "skipped", 0.0, detail="left out by --only or --skip"))
            continue
        if over:
            results.append(Result(check.name, "skipped", 0.0, detail=over))
            continue
        result, lost = _run_one(check, context)
        results.append(result)
        timeouts += result.expected == IN_TIME
        if lost and not endpoint.is_there():
            over = f"the endpoint stopped answering during {check.name}"
        elif timeouts >= PATIENCE:
            over = f"{timeouts} checks got no answer in time: the engine hangs"
        elif first.status_code in {401, 403} and result.status == "failed":
            over = f"the key was rejected: see {check.name}"
    return Report(
        url=endpoint.url,
        model=endpoint.model,
        time=now,
        results=tuple(results),
        reasoning_parser=context.reasoning_parser,
        tool_call_parser=endpoint.facts.tool_call_parser,
        limit_tokens=context.limit,
        engine_version=endpoint.facts.version,
        levels=tuple(context.figures.get("levels", ())),
        bench=context.figures.get("bench"),
    ).without(endpoint.key)


def _run_one(check: Check, context: Context) -> tuple[Result, bool]:
    """Run one check; return its result and whether the connection was lost."""
    bounds = context.endpoint.bounds
    bounds.late = False
    result, lost = _judged(check, context)
    if result.status == "failed" and bounds.late:
        got = f"an answer still incomplete after {bounds.seconds:.0f} s, cut off"
        return replace(result, expected=IN_TIME, got=got, look=JOURNAL), True
    return result, lost


def _judged(check: Check, context: Context) -> tuple[Result, bool]:
    begun = time.monotonic()

    def failed(expected: str, got: str, look: str) -> Result:
        return Result(check.name, "failed", time.monotonic() - begun, expected=expected, got=got, look=look)

    try:
        detail = check.run(context)
    except SkippedError as reason:
        return Result(check.name, "skipped", time.monotonic() - begun, detail=str(reason)), False
    except LimitedError as limit:
        seconds = time.monotonic() - begun
        return Result(check.name, "limited", seconds, detail=limit.detail, setting=limit.setting), False
    except FailedError as error:
        return failed(error.expected, error.got, error.look), True
    except TIMEOUT_ERRORS:
        return failed(IN_TIME, f"none after {time.monotonic() - begun:.0f} s", JOURNAL), True
    except CONNECTION_ERRORS as error:
        got = f"{error.message} ({error.__cause__ or 'no reason given'})"
        return failed("a connection", shorten(got), JOURNAL), True
    except STATUS_ERRORS as error:
        if error.status_code == 200:
            return failed("a stream without an error in it", shorten(error.message), JOURNAL), False
        look = JOURNAL
        if error.status_code in {401, 403}:
            look = KEY
        elif error.status_code == 404:
            look = f"is this the engine itself, in a release that has this path? {JOURNAL}"
        return failed("status 200", f"status {error.status_code}: {shorten(error.message)}", look), False
    except CLIENT_ERRORS as error:
        return failed("an answer that the client can parse", shorten(str(error)), JOURNAL), False
    except Exception as error:
        # The clients build their objects without validating, so a malformed response shows only when it is
        # read; a broken stream raises whatever the HTTP library does. Never a traceback.
        got = shorten(f"a response that can't be parsed ({type(error).__name__}: {error})")
        return failed("a complete response in the API's format", got, JOURNAL), True
    return Result(check.name, "passed", time.monotonic() - begun, detail=detail), False

"""The running endpoint: the size of its KV cache, and a correct answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from minimax_metal.common.documents import digits
from minimax_metal.host.accept.context import Context, Service
from minimax_metal.host.accept.outcome import Outcome, failed, limited, passed, skipped

TOLERANCE: Final = 0.05
GOLDEN: Final = ("models", "chat_parts", "tool_call")
"""Checks of ``metal check`` with known answers: the guide's question, a call with arguments."""
ANSWER_SECONDS: Final = 300.0
STOPPED: Final = "systemctl start sglang.target"


def logged_tokens(context: Context, service: Service) -> int | None:
    """Return KV tokens of one replica from the engine's log of its newest start."""
    answer = context.ask(
        f"journal-kv-{service.instance}",
        "journalctl", f"--unit={service.unit}", "--no-pager", "--quiet", "--output=cat",
        "--grep=max_total_num_tokens=", "--lines=1", "--reverse",
    )  # fmt: skip
    found = re.findall(r"max_total_num_tokens=(\d+)", answer.out)
    return int(found[0]) if found else None


def asked_tokens(argv: Sequence[Any]) -> int | None:
    """Return a number of KV tokens that the launch command sets (``--max-total-tokens``)."""
    argv = [str(word) for word in argv]  # from a record on the host
    for place, word in enumerate(argv):
        name, _, value = word.partition("=")
        if name == "--max-total-tokens":
            value = value or (argv[place + 1] if place + 1 < len(argv) else "")
            return digits(value)
    return None


def told_tokens(service: Service, model: str) -> int | None:
    """Return KV tokens of one replica from the engine (``/server_info``), or None."""
    endpoint = _endpoint(service, model)
    try:
        data = endpoint.get("/server_info").json()
        tokens = data.get("max_total_num_tokens")
        return tokens if isinstance(tokens, int) else None
    except Exception:
        # Any error is harmless here: the log has the number too, and golden_answer reports why nothing
        # answers.
        return None
    finally:
        endpoint.close()


def _endpoint(service: Service, model: str) -> Any:
    # The clients take a second to import.
    from minimax_metal.host.check.endpoint import Endpoint

    words = list(service.check_arguments)
    options = dict(zip(words[::2], words[1::2], strict=False))
    file = options.get("--api-key-file")
    key = Path(file).read_text(encoding="utf-8").strip() if file else None
    ca_file = options.get("--ca-file")
    return Endpoint(service.url, model, key, ANSWER_SECONDS, Path(ca_file) if ca_file else None)


def judge_tokens(
    planned: int | None, set_by_hand: int | None, logged: int | None, told: int | None
) -> Outcome:
    """Return KV tokens of one replica, planned and actual."""
    figures: dict[str, Any] = {"planned": planned, "set": set_by_hand, "logged": logged, "told": told}
    counted = logged if logged is not None else told
    wanted = set_by_hand if set_by_hand is not None else planned
    if counted is None:
        return skipped("kv_tokens", "the engine neither logs nor reports how many tokens its KV cache holds")
    if logged is not None and told is not None and logged != told:
        return failed(
            "kv_tokens",
            f"{logged} tokens logged, {told} reported",
            "one figure",
            "another engine on that port?",
            **figures,
        )
    if wanted is None:
        return limited(
            "kv_tokens",
            f"{counted} tokens",
            "a reference value; the plan has none for this model",
            "report it with the bundle, so that it can be added to the catalogue",
            **figures,
        )
    share = counted / wanted
    figures["share"] = round(share, 4)
    what = "set by --max-total-tokens" if set_by_hand is not None else "planned"
    if abs(share - 1) > TOLERANCE:
        return failed(
            "kv_tokens",
            f"{counted} tokens, {share - 1:+.1%} of the {wanted} {what}",
            f"within {TOLERANCE:.0%}",
            "report it with the bundle: the catalogue's value is wrong for this host; "
            "metal_mem_fraction_static changes the capacity",
            **figures,
        )
    return passed("kv_tokens", f"{counted} tokens, {share - 1:+.1%} of the {wanted} {what}", **figures)


def check_tokens(context: Context) -> Iterator[Outcome]:
    """The KV cache of each replica holds the planned number of tokens, within 5 %."""
    model = context.plan.model.served_name
    running = {service.unit for service in context.running}
    for service in context.services:
        name = "kv_tokens" if len(context.services) == 1 else f"kv_tokens:{service.instance}"
        told = told_tokens(service, model) if service.unit in running else None
        yield judge_tokens(
            context.plan.capacity.kv_tokens_per_replica,
            asked_tokens(service.argv),
            logged_tokens(context, service),
            told,
        ).named(name)


def check_answer(context: Context) -> Iterator[Outcome]:
    """The endpoint answers questions with known answers correctly."""
    for service in context.services:
        name = "golden_answer" if len(context.services) == 1 else f"golden_answer:{service.instance}"
        state = context.properties(service.unit, "ActiveState", "StatusText")
        if state.get("ActiveState") != "active":
            text = state.get("StatusText") or state.get("ActiveState") or "unknown"
            yield skipped(name, f"{service.unit} is not running: {text}", STOPPED)
        else:
            yield _asked(service, context.plan.model.served_name).named(name)


def _asked(service: Service, model: str) -> Outcome:
    """Return one endpoint's answers."""
    # The clients take seconds to import: only for a running endpoint.
    from minimax_metal.host.check import suite
    from minimax_metal.host.check.context import Context as Asked
    from minimax_metal.host.check.context import Options
    from minimax_metal.host.check.outcome import UnreachableError

    endpoint = _endpoint(service, model)
    options = Options(image="skip", figure_levels=(), long_prompt_share=0.0)
    try:
        report = suite.run(Asked(endpoint, options), only=GOLDEN)
    except UnreachableError as error:
        look = f"journalctl -u {service.unit}"
        return failed("golden_answer", f"nothing answers at {service.url}: {error}", "an answer", look)
    finally:
        endpoint.close()
    asked = [result for result in report.results if result.name in GOLDEN]
    wrong = [one for one in asked if one.status != "passed"]
    figures = {one.name: {"status": one.status, "seconds": round(one.seconds, 3)} for one in asked}
    if wrong:
        return failed(
            "golden_answer",
            "; ".join(f"{one.name}: {one.got or one.detail}" for one in wrong),
            "; ".join(f"{one.name}: {one.expected}" for one in wrong if one.expected) or "right answers",
            f"metal check {service.url} on the host",
            **figures,
        )
    said = next(one.detail for one in asked if one.name == "chat_parts")
    return passed("golden_answer", f"{said}, and a correct tool call", **figures)

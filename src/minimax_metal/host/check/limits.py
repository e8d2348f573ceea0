"""Checks of sampling defaults and of the longest prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from minimax_metal.common.documents import read_json
from minimax_metal.host.check import questions
from minimax_metal.host.check.answer import ended, says_something
from minimax_metal.host.check.context import Context
from minimax_metal.host.check.conversation import USER, still_answers
from minimax_metal.host.check.endpoint import STATUS_ERRORS
from minimax_metal.host.check.outcome import JOURNAL, UNIT, FailedError, SkippedError
from minimax_metal.host.check.report import shorten

FILLER: Final = "The quick brown fox jumps over the lazy dog. "
CALIBRATION: Final = (4, 12)
"""Repetitions of :data:`FILLER` in the two short prompts that show how many tokens one has."""

ANSWER_TOKENS: Final = 16
"""Tokens of the answer to the long prompt: only the prompt matters."""

OVER: Final = 1.1
"""Length of the prompt that must be refused, in limits."""

GUIDE_MAX_TOKENS: Final = 8192
"""``max_tokens`` of the M3 guide's chat example."""


def check_sampling(context: Context) -> str:
    """The guides' calls word for word, and the engine's sampling if a request sets nothing.

    The M3 guide's chat sets temperature 1.0 and top_p 0.95; the guides' curl command sets nothing.
    """
    says = context.endpoint.facts.sampling_defaults
    if says not in {None, "model"}:
        raise FailedError(
            "the model's own sampling defaults (generation_config.json)",
            f"--sampling-defaults {says}",
            f"remove the flag: {UNIT}",
        )
    most = min(GUIDE_MAX_TOKENS, (context.limit or 2 * GUIDE_MAX_TOKENS) // 2)
    guide = context.chat(
        "sampling (guide)",
        [questions.text_message(USER, questions.CHAT_QUESTION_GUIDE)],
        max_tokens=min(most, context.budget(context.options.max_tokens)),
        temperature=1.0,
        top_p=0.95,
    )
    says_something(guide)
    plain = context.endpoint.chat(
        [
            questions.parts_message("system", questions.SYSTEM),
            questions.parts_message(USER, questions.GUIDE_QUESTION),
        ]
    )
    context.hear("sampling (nothing set)", plain)
    ended(plain, "stop")
    says_something(plain)
    source = _generation_config(context.endpoint.facts.model_path)
    if source:
        return f"from generation_config.json: {source}"
    return "from the model's generation_config.json" if says else "answered without sampling parameters"


def _generation_config(model_path: str | None) -> str:
    """Return the sampling values of a model folder on this machine as text, or nothing."""
    try:
        raw = read_json((Path(model_path or "") / "generation_config.json").read_text(encoding="utf-8"))
        values = {name: raw[name] for name in ("temperature", "top_p", "top_k") if name in raw}
    except (OSError, ValueError, TypeError):
        return ""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def check_long_prompt(context: Context) -> str:
    """A prompt of a share of the limit is read completely and answered."""
    share = context.options.long_prompt_share
    if share <= 0:
        raise SkippedError("skipped by --long-prompt-share 0")
    limit = _limit(context)
    room = min(limit, context.endpoint.facts.prompt_limit or limit)
    answer_tokens = context.budget(ANSWER_TOKENS)
    wanted = min(int(share * limit), room - answer_tokens - 64)
    prompt = _prompt(context, wanted)
    # Cut after a few tokens, usually inside the reasoning: nothing to search for markup.
    answer = context.endpoint.chat(
        [questions.text_message(USER, prompt)], temperature=0, max_tokens=answer_tokens
    )
    if not (answer.content or answer.reasoning).strip():
        raise FailedError("an answer to the long prompt", f"an empty one, finish_reason {answer.finish}")
    if (answer.prompt_tokens or 0) < 0.95 * wanted:
        raise FailedError(
            f"about {wanted} prompt tokens read",
            f"{answer.prompt_tokens}",
            f"part of the prompt is cut off silently (--allow-auto-truncate?): {UNIT}",
        )
    return f"{answer.prompt_tokens} tokens, {100 * (answer.prompt_tokens or 0) / limit:.0f} % of {limit}"


def check_over_limit(context: Context) -> str:
    """A prompt over the limit is refused with 400, and the next request is answered."""
    limit = _limit(context)
    try:
        answer = context.endpoint.chat(
            [questions.text_message(USER, _prompt(context, int(OVER * limit) + 64))],
            temperature=0,
            max_tokens=context.budget(ANSWER_TOKENS),
        )
    except STATUS_ERRORS as error:
        status, said = error.status_code, error.message
    else:
        raise FailedError(
            "400 for a prompt over the limit",
            f"200 with {answer.prompt_tokens} prompt tokens",
            f"prompts are cut off silently (--allow-auto-truncate?): {UNIT}",
        )
    if status != 400:
        raise FailedError("400 for a prompt over the limit", f"{status}: {shorten(said)}")
    still_answers(context, "a prompt over the limit")
    return "refused with 400; still answers"


def _limit(context: Context) -> int:
    if context.limit is None:
        raise SkippedError("the endpoint does not report its limit (max_model_len); set --limit-tokens")
    return context.limit


def _prompt(context: Context, tokens: int) -> str:
    """Return a prompt of about this many tokens, estimated from two short ones."""
    few, many = CALIBRATION
    counts = [_counted(context, repeats) for repeats in CALIBRATION]
    each = (counts[1] - counts[0]) / (many - few)
    if each <= 0:
        raise FailedError(
            "more prompt tokens for a longer prompt",
            f"{counts[0]} and {counts[1]} for {few} and {many} sentences",
            f"usage.prompt_tokens is wrong; {JOURNAL}",
        )
    return FILLER * max(1, round((tokens - counts[0]) / each) + few)


def _counted(context: Context, repeats: int) -> int:
    """Return how many prompt tokens so many sentences are, requested once."""
    known: dict[str, Any] = context.figures.setdefault("calibration", {})
    key = str(repeats)
    if key not in known:
        answer = context.endpoint.chat(
            [questions.text_message(USER, FILLER * repeats)], temperature=0, max_tokens=1
        )
        known[key] = answer.prompt_tokens
    if known[key] is None:
        raise FailedError("usage.prompt_tokens", "none")
    return int(known[key])

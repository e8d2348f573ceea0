"""``metal plan --compare``: the profiles of one host side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minimax_metal.plan.model import Plan
from minimax_metal.plan.settings import DECLARED

PROFILES = DECLARED["metal_profile"].choices
_PLACES = frozenset({"--model-path", "--served-model-name", "--config"})
"""Flags that only give locations; they don't affect the engine's speed."""


def flags_of(argv: Sequence[str]) -> dict[str, str]:
    """Return a launch command's flags and their values; a switch is "set"."""
    found: dict[str, str] = {}
    flag = None
    for word in argv:
        if word.startswith("--"):
            flag, _, value = word.partition("=")
            found[flag] = value or "set"
        elif flag is not None:
            found[flag] = word if found[flag] == "set" else f"{found[flag]} {word}"
    return found


def rows_of(plans: Mapping[str, Plan]) -> list[tuple[str, dict[str, str]]]:
    """Return the profiles' decisions, each row with one text per profile; flags and variables only if they
    differ.
    """

    def row(name: str, texts: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
        return name, {profile: str(text) for profile, text in texts.items()}

    every = plans.items()
    rows = [
        row("verdict", {name: "fits" if one.fits else "refused" for name, one in every}),
        row("format", {name: one.model.format if one.model else "-" for name, one in every}),
        row(
            "replicas, tp, ep",
            {
                name: f"{one.parallelism.replicas}, {one.parallelism.tp}, {one.parallelism.ep}"
                if one.parallelism
                else "-"
                for name, one in every
            },
        ),
        row(
            "KV tokens",
            {
                name: "-"
                if one.capacity is None or not one.fits
                else "not known"
                if one.capacity.kv_tokens is None
                else f"{one.capacity.kv_tokens:,}"
                for name, one in every
            },
        ),
        row(
            "one sequence",
            {
                name: f"{one.capacity.max_sequence:,}" if one.capacity and one.fits else "-"
                for name, one in every
            },
        ),
        row(
            "concurrent requests",
            {name: (one.limits.max_running_requests if one.limits else None) or "-" for name, one in every},
        ),
    ]
    lines = {name: flags_of(one.service.argv) if one.service else {} for name, one in every}
    variables = {name: dict(one.service.environment) if one.service else {} for name, one in every}
    for table in (lines, variables):
        for key in sorted({key for values in table.values() for key in values} - _PLACES):
            texts = {name: values.get(key, "-") for name, values in table.items()}
            if len(set(texts.values())) > 1:
                rows.append(row(key, texts))
    return rows


def as_json(host: str, plans: Mapping[str, Plan]) -> dict[str, Any]:
    """Return one host's comparison as plain data: the table's rows and each profile's complete summary."""
    return {
        "host": host,
        "rows": [{"what": what, **texts} for what, texts in rows_of(plans)],
        "profiles": {name: one.summary() for name, one in plans.items()},
    }

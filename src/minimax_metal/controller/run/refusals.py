"""Refusals in a run: whom they are about, which is not always the host whose task said them. Pure.

A task that speaks for the whole fleet runs once, on its first host: Ansible counts that one as failed,
whoever is refused, and the refused ones as untouched.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Final

from minimax_metal.plan.connection import AWAY
from minimax_metal.plan.rollout.stage import Stage

LOCKED: Final = "found the fleet locked by"
"""What :func:`minimax_metal.plan.rollout.verdict.lock_refusals` says."""


def is_refusal(stage: str | None, lines: Iterable[str]) -> bool:
    """Return whether a task that failed refused something, before it was begun with."""
    return stage == Stage.PREFLIGHT or any(LOCKED in line for line in lines)


def refused(speaker: str, lines: Iterable[str], hosts: Container[str]) -> dict[str, str]:
    """Return by host what lines of a refusal make of it: ``refused`` or ``unreachable``.

    Args:
        speaker: the host whose task said them; refused itself where they name none.
        lines: each may begin with the hosts that it is about: ``gpu01, gpu02: code: found …``.
        hosts: those of the run.
    """
    found: dict[str, str] = {}
    for line in lines:
        names, _, rest = line.partition(": ")
        code = rest.partition(": ")[0]
        for name in names.split(", "):
            if name in hosts and found.get(name) != "unreachable":
                found[name] = "unreachable" if code in AWAY else "refused"
    return found or {speaker: "refused"}

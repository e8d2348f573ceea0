"""Refusals in a run: the hosts concerned, which are not always the host whose task reported them. Pure.

A task that acts for the whole fleet runs once, on its first host. Ansible counts that host as failed,
whichever hosts are refused, and the refused ones as untouched.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Final

from minimax_metal.plan.connection import AWAY
from minimax_metal.plan.rollout.stage import Stage

LOCKED: Final = "found the fleet locked by"
"""The text of :func:`minimax_metal.plan.rollout.verdict.lock_refusals`."""


def is_refusal(stage: str | None, lines: Iterable[str]) -> bool:
    """Return whether a failed task refused something before any change."""
    return stage == Stage.PREFLIGHT or any(LOCKED in line for line in lines)


def refused(speaker: str, lines: Iterable[str], hosts: Container[str]) -> dict[str, str]:
    """Return ``refused`` or ``unreachable`` for each host that a refusal's lines concern.

    Args:
        speaker: the host whose task reported them; refused itself if they name no host.
        lines: each may begin with the hosts concerned: ``gpu01, gpu02: code: found …``.
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

"""Refusals and warnings, collected while the plan is made."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field

from minimax_metal.plan.model import Difference, Notice, Refusal


@dataclass
class Findings:
    """Collects refusals instead of raising the first, so that users see all reasons at once."""

    accept: frozenset[str] = frozenset()
    """Codes of refusals that the user lifts."""
    refusals: list[Refusal] = field(default_factory=list)
    accepted: list[Refusal] = field(default_factory=list)
    warnings: list[Notice] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)

    def refuse(self, code: str, found: str, needed: str, remedy: str) -> bool:
        """Record a refusal; true if the user lifts it, so that the plan may continue."""
        return self.add(Refusal(code=code, found=found, needed=needed, remedy=remedy))

    def add(self, refusal: Refusal) -> bool:
        """Like ``refuse``, with an existing refusal."""
        if refusal.code in self.accept:
            if refusal not in self.accepted:
                self.accepted.append(refusal)
                lifted = f"refusal lifted by metal_accept_refusals: found {refusal.found}"
                self.warn(f"accepted-{refusal.code}", lifted)
            return True
        if refusal not in self.refusals:
            self.refusals.append(refusal)
        return False

    def warn(self, code: str, message: str) -> None:
        """Record a warning, once."""
        notice = Notice(code=code, message=message)
        if notice not in self.warnings:
            self.warnings.append(notice)


def near(word: str, words: Iterable[str]) -> str:
    """Return advice for an unknown word: the nearest known one, or all of them."""
    known = list(words)
    folded = {name.casefold(): name for name in reversed(known)}
    close = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.4)
    if close:
        return f"did you mean {folded[close[0]]}?"
    return "known are " + ", ".join(known)


def near_of_all(word: str, words: Iterable[str]) -> str:
    """Return advice for an unknown word that includes the list: the nearest known one, and all of them."""
    known = list(words)
    hint, everything = near(word, known), ", ".join(known)
    return hint if hint.endswith(everything) else f"{hint} Known are {everything}"


def gib(number: int) -> str:
    """Return a readable size in bytes."""
    return f"{number / 2**30:.0f} GiB"

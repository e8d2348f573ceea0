"""Rules about the engine's own words: data with sources in the ``*.toml`` files beside this one, by subject.

========  =========================================================================================
code      name of the kind
needles   one of these is in such a line, in lower case: the patterns are tried on no other
patterns  alternatives; case does not matter, all repetitions are bounded: the work is linear
who       ``restart``, ``user``, ``operator`` or ``weights``: who acts
level     how much the line says (:class:`Level`)
at_start  whether ``who`` acts only while the engine starts; later the next start may succeed
retry     whether systemd may try again all the same: what is needed may come by itself
remedy    what to do
source    a public report, or where the words were read
========  =========================================================================================
"""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from minimax_metal.host.engine.diagnosis.reason import Who

SUBJECTS: Final = ("memory", "gpu", "build", "files", "network", "settings", "ends")
"""In order: the first rule that matches a line is used."""


class Level(IntEnum):
    """How much a line tells; of lines on one level the first in time is the cause."""

    ECHO = 0
    """A process noticed that another one has ended."""
    DEATH = 1
    """A process ended, and how; or others waited for it until they timed out."""
    CAUSE = 3
    """The reason."""
    DETAIL = 4
    """The reason, more exactly than the lines around it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How to read one kind of engine line."""

    code: str
    needles: tuple[str, ...]
    pattern: re.Pattern[str]
    remedy: str
    who: Who
    level: Level
    source: str
    at_start: bool = False
    retry: bool = False


def make(entry: dict[str, Any]) -> Rule:
    """Make a rule from its data."""
    return Rule(
        code=entry["code"],
        needles=tuple(entry["needles"]),
        pattern=re.compile("|".join(entry["patterns"]), re.IGNORECASE),
        remedy=entry["remedy"],
        who=Who(entry["who"]),
        level=Level[entry["level"].upper()],
        source=entry["source"],
        at_start=entry.get("at_start", False),
        retry=entry.get("retry", False),
    )


@functools.cache
def rules() -> tuple[Rule, ...]:
    """Return all rules; read for the first diagnosis, not when the supervisor starts."""
    texts = ((Path(__file__).parent / f"{name}.toml").read_text(encoding="utf-8") for name in SUBJECTS)
    return tuple(make(entry) for text in texts for entry in tomllib.loads(text)["rule"])


def rule_of(code: str) -> Rule | None:
    """Return the first rule of a code on the highest level."""
    known = [rule for rule in rules() if rule.code == code]
    return max(known, key=lambda rule: rule.level, default=None)

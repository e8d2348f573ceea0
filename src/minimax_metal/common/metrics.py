"""Reader of Prometheus' text format, as engines and gateways write it: pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, NamedTuple

LONGEST: Final = 20_000
"""Maximum characters per line; the engine's longest ones have some hundreds."""
MOST: Final = 1e15
"""Largest value: no count, size or time of an engine reaches it."""


class Sample(NamedTuple):
    """One line: ``labels`` is the text between the braces, or empty."""

    name: str
    labels: str
    value: float


def samples(text: str, prefix: str = "") -> Iterator[Sample]:
    """Yield the samples whose name begins with ``prefix``.

    Anything that is not a finite number from 0 to :data:`MOST` (``NaN``, ``1e999``, HTML) is skipped:
    whatever a server answers, nothing is raised.
    """
    for line in text.splitlines():
        if not line.startswith(prefix) or line.startswith("#") or len(line) > LONGEST:
            continue
        if "{" in line:
            name, _, rest = line.partition("{")
            labels, brace, rest = rest.rpartition("}")
            if not brace:
                continue
        else:
            name, _, rest = line.partition(" ")
            labels = ""
        words = rest.split()
        try:
            value = float(words[0]) if words else math.nan
        except ValueError:
            continue
        if math.isfinite(value) and 0 <= value <= MOST:
            yield Sample(name.strip(), labels, value)

"""The one reader of Prometheus' text format, as engines and gateways write it: pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, NamedTuple

LONGEST: Final = 20_000
"""Characters of one line; the engine's longest ones have some hundreds."""
MOST: Final = 1e15
"""Largest value: no count, no bytes and no seconds of an engine reach it."""


class Sample(NamedTuple):
    """One line: ``labels`` is the text between the braces, empty without them."""

    name: str
    labels: str
    value: float


def samples(text: str, prefix: str = "") -> Iterator[Sample]:
    """Yield the samples whose name begins with ``prefix``.

    What is not a finite number from 0 to :data:`MOST` (``NaN``, ``1e999``, HTML) is passed over: whatever a
    server answers, nothing is raised.
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

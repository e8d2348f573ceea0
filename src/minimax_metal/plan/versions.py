"""Compare version numbers of engines and drivers."""

from __future__ import annotations

import re


def version_key(version: str) -> tuple[tuple[int, ...], int]:
    """Return a key that sorts ``0.5.4 < 0.5.4.post1 < 0.5.10`` and ``580.65.06 < 580.95.05``.

    Release candidates come before their release; anything that is not a number ends the comparison.
    """
    found = re.match(r"(\d+(?:\.\d+)*)(?:\.post(\d+)|(rc|a|b)\d*)?", version)
    if not found:
        return (), 0
    numbers = tuple(int(part) for part in found.group(1).split("."))
    if found.group(3):
        return numbers, -1
    return numbers, int(found.group(2) or 0)

"""JSON and numbers that come from elsewhere (a host, a hub, an engine, a file that others write): pure."""

from __future__ import annotations

import json
from typing import Any

MOST_DIGITS = 18
"""Longest number that is read: more digits are no count of anything."""


def read_json(content: str | bytes | bytearray) -> Any:
    """Return what a JSON text holds.

    Raises:
        ValueError: it is not JSON, not UTF-8, nested too deep, or has a number of thousands of digits.
            Nothing else is raised: ``json.loads`` raises ``RecursionError`` too, which callers forget.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deep") from None


def digits(text: str, most: int = MOST_DIGITS) -> int | None:
    """Return the number that ASCII digits write, None for any other text or for more than ``most`` digits.

    ``str.isdigit`` takes "²" too, which ``int`` refuses.
    """
    return int(text) if text.isascii() and text.isdigit() and len(text) <= most else None

"""JSON and numbers from outside (a host, a hub, an engine, a file that others write): pure."""

from __future__ import annotations

import json
from typing import Any

MOST_DIGITS = 18
"""Maximum number of digits that is read; no count is longer."""


def read_json(content: str | bytes | bytearray) -> Any:
    """Return the contents of a JSON text.

    Raises:
        ValueError: it is not JSON, not UTF-8, nested too deep, or has a number of thousands of digits.
            Nothing else is raised: ``json.loads`` also raises ``RecursionError``, which callers forget.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deep") from None


def digits(text: str, most: int = MOST_DIGITS) -> int | None:
    """Return the number that ASCII digits write, or None for any other text or for more than ``most`` digits.

    ``str.isdigit`` accepts "²" too, which ``int`` refuses.
    """
    return int(text) if text.isascii() and text.isdigit() and len(text) <= most else None

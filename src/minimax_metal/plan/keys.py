"""What a key looks like that clients, the engine's parser and the gateway take: pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

SHORTEST: Final = 16
"""Characters of a key at least."""
DIFFERENT: Final = 8
"""Different characters at least: ``aaaaaaaaaaaaaaaa`` is not a key."""
MOST: Final = 4
"""Keys that count at a time at most, as the engine's guard reads them."""
FORM: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~+/=-]*")


def acceptable(lists: Sequence[Sequence[str]], *, strong: bool = True) -> bool:
    """Return whether keys are of the right form, and each of them is there once.

    Args:
        lists: for each purpose the keys that count, the one in use first.
        strong: whether keys need :data:`DIFFERENT` characters and lists hold :data:`MOST` keys at most, as
            the engine wants them; the gateway takes others.
    """
    every = [str(key) for keys in lists for key in keys]
    return (
        len(set(every)) == len(every)
        and all(len(key) >= SHORTEST and FORM.fullmatch(key) for key in every)
        and not (strong and any(len(set(key)) < DIFFERENT for key in every))
        and not (strong and any(len(keys) > MOST for keys in lists))
    )

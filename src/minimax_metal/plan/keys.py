"""The form of keys that clients, the engine's parser and the gateway accept: pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

SHORTEST: Final = 16
"""Minimum length of a key."""
DIFFERENT: Final = 8
"""Minimum number of different characters: ``aaaaaaaaaaaaaaaa`` is not a key."""
MOST: Final = 4
"""Maximum number of simultaneously valid keys, as the engine's guard reads them."""
FORM: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~+/=-]*")


def acceptable(lists: Sequence[Sequence[str]], *, strong: bool = True) -> bool:
    """Return whether keys have the right form and are distinct.

    Args:
        lists: for each purpose the valid keys, the one in use first.
        strong: whether keys need :data:`DIFFERENT` characters and lists have at most :data:`MOST` keys, as
            the engine requires; the gateway accepts others.
    """
    every = [str(key) for keys in lists for key in keys]
    return (
        len(set(every)) == len(every)
        and all(len(key) >= SHORTEST and FORM.fullmatch(key) for key in every)
        and not (strong and any(len(set(key)) < DIFFERENT for key in every))
        and not (strong and any(len(keys) > MOST for keys in lists))
    )

"""The form of keys that clients, the engine's parser and the gateway accept: pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Final

SHORTEST: Final = 16
"""Minimum length of a key."""
DIFFERENT: Final = 8
"""Minimum number of different characters: ``aaaaaaaaaaaaaaaa`` is not a key."""
MOST: Final = 4
"""Maximum number of simultaneously valid keys, as the engine's guard reads them."""
ACCEPTED: Final = "accepted.json"
"""The file of all valid keys. Beside one key of each kind it tells an engine nothing new."""
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


def told(
    services: Iterable[Mapping[str, Any]], written: Iterable[str], lists: Sequence[Sequence[str]]
) -> list[Mapping[str, Any]]:
    """Return the parts of the plan whose engines were given other keys and read them without a restart.

    Args:
        services: parts of a plan, with ``keys_directory``, and ``proves`` where the engine has the guard.
        written: paths of files that were written.
        lists: as in :func:`acceptable`.
    """
    single = all(len(keys) <= 1 for keys in lists)
    paths = [PurePosixPath(path) for path in written]
    places = {str(path.parent) for path in paths if not (single and path.name == ACCEPTED)}
    return [one for one in services if one.get("proves") and one.get("keys_directory") in places]

"""Compare tables as ``nft --json list table`` prints them, ignoring what changes by itself.

Handles and counters differ after every load, and the order of a set's elements is nft's own; the rest defines
the table. The two listings come from one host, since the output differs between nft releases.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.text import one_line

BYTES: Final = 4 << 20
"""Maximum size of a listing in bytes: 1,000 networks take about 100 KB."""
_OWN: Final = frozenset({"handle", "packets", "bytes"})


def canonical(listing: str) -> dict[str, list[str]]:
    """Return a listing's contents by object: ``chain input``, ``set endpoint_ipv4``, ``rules of input`` in
    order.

    Raises:
        ValueError: it is not such a listing.
    """
    try:
        objects = read_json(listing)["nftables"]
        found: dict[str, list[str]] = {}
        for one in objects:
            ((kind, body),) = one.items()
            if kind == "metainfo":
                continue
            key = f"rules of {body['chain']}" if kind == "rule" else f"{kind} {body.get('name')}"
            found.setdefault(key, []).append(json.dumps(_plain(body), sort_keys=True))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a listing of nft: {type(error).__name__}") from None
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {key: _plain(one) for key, one in value.items() if key not in _OWN}
        for name in ("elem", "set"):
            if isinstance(kept.get(name), list):
                kept[name] = sorted(kept[name], key=lambda one: json.dumps(one, sort_keys=True))
        return kept
    return [_plain(one) for one in value] if isinstance(value, list) else value


def differences(loaded: str, now: str) -> list[str]:
    """Return the differences between a table and what was loaded, one short text each.

    Raises:
        ValueError: one of them is not a listing.
    """
    before, after = canonical(loaded), canonical(now)
    found = []
    for key in sorted({*before, *after}):
        old, new = Counter(before.get(key, ())), Counter(after.get(key, ()))
        named = one_line(key, 80)
        if key.startswith("rules of "):
            gone, come = sum((old - new).values()), sum((new - old).values())
            if gone or come:
                found.append(f"{named}: {gone} gone, {come} added")
            elif before[key] != after[key]:
                found.append(f"{named}: in another order")
        elif old != new:
            found.append(f"{named} {'gone' if not new else 'added' if not old else 'changed'}")
    return found


def state(loaded: str, checksum: str, now: str) -> list[str]:
    """Return the differences between the active table and the rules' file.

    Args:
        loaded: the unit's note from loading: the file's SHA-256 in the first line, then nft's listing.
        checksum: SHA-256 of the current file.
        now: nft's current listing, or its error message.
    """
    digest, _, listing = loaded.partition("\n")
    if not listing.strip():
        return ["no record that the table was loaded"]
    if digest.split()[:1] != [checksum]:
        return ["the table in force is not that of the rules' file"]
    if not now.lstrip().startswith("{"):
        said = one_line(now.strip(), 160) or "nft said nothing"
        return ["the table is gone"] if "No such file or directory" in now else [f"can't be read: {said}"]
    try:
        return differences(listing, now)
    except ValueError as error:
        return [f"can't be read: {error}"]

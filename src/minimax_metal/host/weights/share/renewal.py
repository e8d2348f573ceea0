"""When the fleet's secret is renewed: pure, for the play.

All hosts of an inventory that share a model have the same secret. Beside it every host stores who has it, and
how often it was renewed. When one of these hosts has left the inventory, a new secret is made. The previous
one stays valid for a day: pulls that began with it continue. ``metal keys rotate --key share`` renews it
immediately, and with ``--finish`` ends the day early.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.errors import UserError
from minimax_metal.host.weights import share_keys as keys

BOTH_SECONDS: Final = 86_400
"""How long the previous secret is valid; as long as a play waits for a pull by default."""


RENEW, DROP = "renew", "drop"
"""What an operator may request: a new secret now; or that the previous one is revoked."""

FOUND: Final = "__model_weights_secret_found"


def renewed(
    hosts: Iterable[Mapping[str, Any]],
    inventory: Iterable[str],
    fresh: str,
    now: float,
    do: str = "",
) -> dict[str, Any]:
    """Return the secrets that all hosts of a run get, and the note beside them.

    Args:
        hosts: the variables of the hosts of the run; those that share have ``slurp``'s result for the
            secret's file and for the note's, as ``__model_weights_secret_found``.
        inventory: all hosts of the inventory's group, whether or not in this run.
        fresh: a new secret, 64 hexadecimal digits.
        now: seconds since 1970.
        do: :data:`RENEW`, :data:`DROP`, or nothing: as the inventory and the clock require.

    Returns:
        ``secret``: content of the file; ``note``: content of the note; ``left``: hosts that have left.
    """
    rows = [
        (str(variables["inventory_hostname"]), *_read(variables[FOUND]))
        for variables in hosts
        if FOUND in variables
    ]
    known = [(name, secrets, note) for name, secrets, note in rows if secrets]
    playing = [name for name, _, _ in rows]
    if not known:
        return _result((fresh,), 1, playing, 0.0, [])
    # The newest counts; of equals, the first host's.
    generation = max(note["generation"] for _, _, note in known)
    newest = [(secrets, note) for _, secrets, note in known if note["generation"] == generation]
    # A renewal that was killed reached some hosts: they have the others' secret as the previous one.
    replaced = {before for secrets, _ in newest for before in secrets[1:]}
    reached = [row for row in newest if row[0][0] not in replaced] or newest
    behind = [row for row in newest if row[0][0] in replaced] if reached is not newest else []
    secrets, note = reached[0]
    holders = {*note["holders"]}
    for _, others, other in known:
        if others[0] == secrets[0]:
            holders |= {*other["holders"]}
    left = sorted(holders - {*inventory} - {*playing})
    since = note["renewed"]
    if left or do == RENEW:
        # Nothing was restarted with a secret that did not reach all: pulls have the previous one.
        before = () if do == DROP else (behind[0][0] if behind else secrets)[:1]
        return _result((fresh, *before), generation + 1, playing, now, left)
    if behind:
        generation, since = generation + 1, now
    if do == DROP or not 0 <= now - since < BOTH_SECONDS:
        secrets = secrets[:1]
    return _result(secrets, generation, sorted({*holders, *playing}), since, [])


def _result(
    secrets: Sequence[str], generation: int, holders: Iterable[str], since: float, left: list[str]
) -> dict[str, Any]:
    note = {"generation": generation, "holders": sorted(holders), "renewed": since}
    return {
        "secret": "".join(f"{secret}\n" for secret in secrets),
        "note": json.dumps(note, sort_keys=True) + "\n",
        "left": left,
    }


def _read(found: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return a host's secrets and its note; unreadable ones count as missing."""
    results = found.get("results") if isinstance(found, Mapping) else None
    contents = [_content(one) for one in results] if isinstance(results, list) else []
    secret, note = [*contents, b"", b""][:2]
    try:
        secrets = keys.parse(secret.decode("ascii"))
    except (UserError, UnicodeDecodeError):
        secrets = ()
    kept: dict[str, Any] = {"generation": 0, "holders": [], "renewed": 0.0}
    try:
        raw = read_json(note)
        generation, holders, since = raw["generation"], raw["holders"], raw["renewed"]
        if isinstance(generation, int) and 0 <= generation < 1 << 31 and isinstance(holders, list):
            named = [name for name in holders if isinstance(name, str)]
            kept = {"generation": generation, "holders": named, "renewed": float(since)}
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return secrets, kept


def _content(result: Any) -> bytes:
    if not isinstance(result, Mapping) or not isinstance(result.get("content"), str):
        return b""
    try:
        return base64.b64decode(result["content"], validate=True)
    except ValueError:
        return b""

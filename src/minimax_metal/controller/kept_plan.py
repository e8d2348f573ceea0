"""The plan in a release record, read back from the host that stores it: foreign text for the controller.

A rollback applies it, and roles name files on the controller after some of its values: reports after the
instance, archives of compiled kernels after their key. An attacker who controls a host may write its records,
but gains no more than that host.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.errors import UserError
from minimax_metal.common.text import has_controls, one_line

LARGEST: Final = 4 << 20
"""Maximum characters of a record; one of eight replicas has about 60,000."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.@_-]{0,127}")
_NAMES: Final = (
    ("services", "instance"),
    ("services", "unit"),
    ("kernel_cache", "key"),
    ("engine", "release"),
)
"""Values that are used in file names: their section and field."""
_REMEDY: Final = "look at /var/lib/minimax-metal/releases there, and provision the host with site.yml"


def kept_plan(record: str, host: str) -> dict[str, Any]:
    """Return the plan of a record.

    Args:
        record: the output of ``metal releases show`` on the host, JSON.
        host: its name, for messages.

    Raises:
        UserError: it is not a record, or has a value that no plan can have.
    """
    try:
        plan = read_json(record)["plan"] if len(record) <= LARGEST else None
    except (ValueError, KeyError, TypeError, RecursionError):
        plan = None
    if not isinstance(plan, dict) or not isinstance(plan.get("services"), list):
        raise UserError(f"{host}: found a record that is not a release record, expected its plan; {_REMEDY}")
    for text in _texts(plan):
        if has_controls(text):
            raise UserError(
                f"{host}: found control characters in a record ({one_line(repr(text), 80)}), expected none; "
                f"{_REMEDY}"
            )
    for place, field in _NAMES:
        part = plan.get(place)
        for one in part if isinstance(part, list) else [part]:
            value = one.get(field) if isinstance(one, Mapping) else None
            if value is not None and not (isinstance(value, str) and _NAME.fullmatch(value)):
                found = one_line(repr(value), 80)
                raise UserError(
                    f"{host}: found the {place} {field} {found} in a record, expected a plain name; {_REMEDY}"
                )
    return plan


def _texts(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            waiting += [*one, *one.values()]
        elif isinstance(one, list):
            waiting += one

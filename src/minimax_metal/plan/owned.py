"""What the roles' lists of what they own (``roles/ROLE/meta/owned.yml``) mean for removal: pure.

A list says under ``removal``, for itself or in an entry, with what its files and units go:

``always``                         with the product
``tools``                          with the product, unless a gateway stays, which runs with them
``firewall``                       with the product, unless a gateway or the fleet's cache stays
``gateway``, ``artefact_cache``,   when asked for (``metal_remove_gateway`` and so on)
``driver``, ``caches``, ``records``
``never``                          not at all: others use it too

An entry of ``files`` whose path depends on the plan says in ``removal_path`` what it is on any host, and a
unit in ``removal_name``, with ``*`` for what differs. Under ``remains`` a list has paths that the role's
programs make.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

WISHES: Final = frozenset(
    {"always", "tools", "firewall", "gateway", "artefact_cache", "driver", "caches", "records", "never"}
)
_VARIABLE: Final = re.compile(r"\{\{ *(\w+) *\}\}")


@dataclass(frozen=True, slots=True)
class Removable:
    """Paths and units of all lists, each with what it goes with (:data:`WISHES`); ``*`` stands for many."""

    paths: tuple[tuple[str, str], ...] = ()
    units: tuple[tuple[str, str], ...] = ()

    def paths_with(self, *wishes: str) -> list[str]:
        """Return the paths that go with one of these."""
        return [path for path, wish in self.paths if wish in wishes]

    def wish_of(self, unit: str) -> str | None:
        """Return what a unit goes with; None for a unit of no list."""
        for pattern, wish in self.units:
            if re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), unit):
                return wish
        return None


def removable(lists: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Removable:
    """Return what the lists of all roles say of removal.

    Args:
        lists: by role its list as it is written, and its variables, of which those with one plain text count.

    Raises:
        ValueError: an entry does not say what it is on any host; the text names it.
    """
    paths: list[tuple[str, str]] = []
    units: list[tuple[str, str]] = []
    for role, (raw, variables) in sorted(lists.items()):
        whole = str(raw.get("removal", "always"))
        paths += _paths(role, raw, variables, whole)
        for entry in raw.get("units") or ():
            wish = _wish(role, entry, whole)
            name = str(entry.get("removal_name") or _plain(str(entry["name"]), variables))
            if wish != "never":
                items = entry["each"] if isinstance(entry.get("each"), list) else ["{{ item }}"]
                units += [(_of_role(role, name.replace("{{ item }}", str(item))), wish) for item in items]
    return Removable(tuple(dict.fromkeys(paths)), tuple(dict.fromkeys(units)))


def _paths(
    role: str, raw: Mapping[str, Any], variables: Mapping[str, Any], whole: str
) -> Iterator[tuple[str, str]]:
    entries: Sequence[Mapping[str, Any]] = [
        *(raw.get("files") or ()),
        *({"path": one} if isinstance(one, str) else one for one in raw.get("remains") or ()),
    ]
    found = []
    for entry in entries:
        wish = _wish(role, entry, whole)
        if wish != "never":
            path = entry.get("removal_path") or _plain(str(entry["path"]), variables)
            found += [(str(one), wish) for one in (path if isinstance(path, list) else [path])]
    above = tuple(f"{path}/" for path, _ in found if "{{" not in path)
    for path, wish in found:
        # What goes with a directory of the list needs no name of its own.
        if "{{" not in path or not path.startswith(above):
            yield _of_role(role, path), wish


def _plain(text: str, variables: Mapping[str, Any]) -> str:
    """Put plain variables of the role into a text; expressions stay as they are."""
    for _depth in range(4):
        new = _VARIABLE.sub(lambda name: str(variables.get(name[1], name[0])), text)
        if new == text:
            break
        text = new
    return text


def _wish(role: str, entry: Mapping[str, Any], whole: str) -> str:
    wish = str(entry.get("removal", whole))
    if wish not in WISHES:
        raise ValueError(f"{role}: found removal: {wish}, expected one of {', '.join(sorted(WISHES))}")
    return wish


def _of_role(role: str, text: str) -> str:
    if "{{" in text:
        raise ValueError(
            f"{role}: found {text} in meta/owned.yml, expected removal_path or removal_name with it"
        )
    return text

"""The tags of a playbook's tasks, read from its files: plays, imports, roles and their tasks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

_FILES = ("import_playbook", "import_tasks", "include_tasks")
_ROLES = ("import_role", "include_role")
_BLOCKS = ("tasks", "pre_tasks", "post_tasks", "handlers", "block", "rescue", "always")


_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]  # whichever of the two is there
    """Reads Ansible's YAML; its own marks (``!vault``, ``!unsafe``) don't affect tags."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


@lru_cache(maxsize=16)
def tags_of(playbook: Path, roles: Path) -> frozenset[str]:
    """Return every tag that a task of a playbook can have.

    An unreadable file has none: Ansible reports its error.
    """
    found: set[str] = set()
    seen: set[Path] = set()
    waiting = [playbook.resolve()]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        try:
            content = yaml.load(path.read_bytes(), _Loader)  # noqa: S506  # a subclass of the safe loader
        except (OSError, yaml.YAMLError):
            continue
        for entry in _entries(content):
            found |= set(_tags(entry.get("tags"))) | set(_handed_on(entry))
            waiting += _further(entry, path.parent, roles)
    return frozenset(found)


def _entries(content: Any) -> Iterator[dict[str, Any]]:
    """Yield every play, block and task."""
    for entry in content if isinstance(content, list) else ():
        if isinstance(entry, dict):
            yield entry
            for key in _BLOCKS:
                yield from _entries(entry.get(key))
            yield from (role for role in entry.get("roles") or () if isinstance(role, dict))


def _tags(value: Any) -> Iterator[str]:
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str):
            yield from (tag.strip() for tag in one.split(",") if tag.strip())


def _handed_on(entry: dict[str, Any]) -> Iterator[str]:
    """Yield the tags that an include applies (``apply``) to its tasks."""
    for value in entry.values():
        if isinstance(value, dict) and isinstance(value.get("apply"), dict):
            yield from _tags(value["apply"].get("tags"))


def _further(entry: dict[str, Any], directory: Path, roles: Path) -> Iterator[Path]:
    """Yield the files that an entry names; a name with a variable in it is skipped."""
    for key, value in entry.items():
        action = str(key).rpartition(".")[2]
        if action in _FILES:
            name = value.get("file") if isinstance(value, dict) else value
            if isinstance(name, str) and "{{" not in name:
                yield (directory / name.split()[0]).resolve()
        elif action in _ROLES and isinstance(value, dict):
            yield from _role(roles, value.get("name"), value.get("tasks_from") or "main")
    for one in entry.get("roles") or ():
        yield from _role(roles, one.get("role") or one.get("name") if isinstance(one, dict) else one, "main")


def _role(roles: Path, name: Any, tasks: Any) -> Iterator[Path]:
    if isinstance(name, str) and isinstance(tasks, str) and "{{" not in name + tasks:
        yield (roles / name.rpartition(".")[2] / "tasks" / f"{tasks.removesuffix('.yml')}.yml").resolve()

"""Doing nothing is not success: check that a run has hosts, and that its tags match. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import yaml

from minimax_metal.common.files import read_bounded

FILE_BYTES: Final = 2 << 20
"""Maximum size of one inventory file."""

BUILT_IN: Final = frozenset({"all", "ungrouped"})
SPECIAL_TAGS: Final = frozenset({"all", "always", "never", "tagged", "untagged"})


class _AnyTag(yaml.SafeLoader):
    """Reads a file's structure; the meaning of tags (``!vault``) is left to Ansible."""


_AnyTag.add_multi_constructor("", lambda loader, suffix, node: None)


def unreadable(inventories: Iterable[str | Path]) -> str:
    """Return which inventory file Ansible could not read, and where; empty if none is known.

    Ansible only warns about such a file and continues without its hosts.
    """
    for inventory in map(Path, inventories):
        files = sorted(inventory.iterdir()) if inventory.is_dir() else [inventory]
        for file in files:
            if file.suffix not in {".yml", ".yaml", ".json"} or not file.is_file():
                continue
            try:
                text = read_bounded(file, FILE_BYTES)
                if text.startswith(b"$ANSIBLE_VAULT"):
                    return f"{file}: encrypted with ansible-vault, and no password that decrypts it was given"
                found = yaml.load(text, _AnyTag)  # noqa: S506  it makes plain data only
            except yaml.MarkedYAMLError as error:
                mark = error.problem_mark
                where = f" line {mark.line + 1} column {mark.column + 1}" if mark else ""
                return f"{file}{where}: {error.problem or 'not YAML'}"
            except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
                return f"{file}: {str(error).splitlines()[0][:200]}"
            if found is None or (isinstance(found, dict) and "plugin" in found):
                continue
            if not isinstance(found, dict):
                return f"{file}: a {type(found).__name__}, not a mapping of groups"
            for group, inside in found.items():
                hosts = inside.get("hosts") if isinstance(inside, dict) else inside
                if isinstance(hosts, list):
                    return (
                        f"{file}: the hosts of {group} are a list; write each as a key that ends in "
                        f"a colon (hosts: {{{hosts[0] if hosts else 'gpu01'}: }})"
                    )
    return ""


def no_hosts(
    wanted: Sequence[str],
    groups: Mapping[str, Collection[str]],
    within: Collection[str] | None = None,
    *,
    limit: str = "",
    inventories: Sequence[str] = (),
    broken: str = "",
) -> str:
    """Return why a run has nothing to act on, in one line; empty if it has.

    Args:
        wanted: names of groups; one host in one of them is enough.
        groups: hosts of every group of the inventory.
        within: hosts that ``--limit`` leaves; None without a limit.
        limit: the value of ``--limit``.
        inventories: the values of ``-i``.
        broken: the result of :func:`unreadable` for them.
    """
    where = ", ".join(inventories) or "the inventory"
    name = " or ".join(wanted)
    there = [host for group in wanted for host in groups.get(group, ())]
    left = [host for host in there if within is None or host in within]
    if left:
        return ""
    known = sorted(group for group, hosts in groups.items() if group not in BUILT_IN and hosts)
    named = f"its groups with hosts: {', '.join(known)}" if known else "it has no group with hosts"
    if there:
        hosts = ", ".join(sorted(there)[:8]) + (", …" if len(there) > 8 else "")
        return (
            f"found no host of group {name} within --limit {limit}, expected at least one of {hosts}; "
            "fix --limit: nothing was done"
        )
    if broken:
        return (
            f"found an inventory that Ansible can't read ({broken}), expected YAML with group {name}; fix "
            "that file: nothing was done"
        )
    near = difflib.get_close_matches(wanted[0], known, n=1, cutoff=0.6)
    empty = [group for group in wanted if group in groups]
    what = f"group {' and '.join(empty)} without a host" if empty else f"no group {name}"
    hint = f"did you mean {near[0]} to be {wanted[0]}? " if near else ""
    return (
        f"found {what} in {where} ({named}), expected at least one host in it; {hint}"
        "add hosts to the group, or name another inventory with -i: nothing was done"
    )


def unknown_tags(wanted: Iterable[str], known: Collection[str], *, option: str = "--tags") -> str:
    """Return tags that match nothing, with the nearest existing ones; empty if all match."""
    missing = sorted({tag for tag in wanted if tag not in known and tag not in SPECIAL_TAGS})
    if not missing:
        return ""
    near = {tag: difflib.get_close_matches(tag, sorted(known), n=1, cutoff=0.5) for tag in missing}
    hints = [f"did you mean {found[0]} for {tag}?" for tag, found in near.items() if found]
    return (
        f"found {option} {', '.join(missing)}, which no task has; "
        f"expected some of {', '.join(sorted(known))}; "
        f"{' '.join([*hints, 'fix the tag'])}: nothing was done"
    )

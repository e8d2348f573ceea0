"""Hosts of an Ansible inventory: their variables, and their facts over SSH, kept for a while.

Ansible is run as a program, never imported: reading cached facts of a fleet stays a matter of a second.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimax_metal.errors import UserError

GROUP = "gpu_hosts"
_VARIABLES = (
    "{{ dict(query('ansible.builtin.varnames', '^metal_')"
    " | zip(query('ansible.builtin.vars', *query('ansible.builtin.varnames', '^metal_')))) }}"
)
_WEIGHTS = "{{ metal_weights_directory | default('/srv/models') }}"
_ENGINES = "{{ metal_engine_directory | default('/opt/sglang') }}"
_FACTS = {
    "paths": [_WEIGHTS, _ENGINES, "/var/cache"],
    "weights_directory": _WEIGHTS,
    "engine_directory": _ENGINES,
    "adopt_directories": "{{ [metal_weights_adopt | default([])] | flatten }}",
}
"""What the facts module is asked; Ansible fills in each host's own directories."""
_ASKED = ("metal_weights_directory", "metal_engine_directory", "metal_weights_adopt")
"""The settings that say what is measured on a host."""
HOST_SECONDS = 300
"""How long a host may take to be read: programs and directories there have limits of 30 s each."""


@dataclass(frozen=True)
class InventoryHost:
    """One host: its name, its ``metal_*`` variables, the names of all, its raw facts (none: unreachable)."""

    name: str
    variables: Mapping[str, Any]
    facts: Mapping[str, Any] | None
    names: tuple[str, ...] = ()


def cache_directory(inventories: Sequence[Path]) -> Path:
    """Where the facts of the hosts of some inventories are kept; safe to delete."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    paths = "\n".join(str(one.resolve()) for one in inventories)
    name = hashlib.sha256(paths.encode()).hexdigest()[:16]
    return base / "minimax-metal" / "facts" / name


def read_inventory(
    inventories: Sequence[Path],
    *,
    limit: str | None,
    refresh: bool,
    max_age_seconds: float,
    settings: Mapping[str, Any] | None = None,
) -> list[InventoryHost]:
    """The hosts of group ``gpu_hosts``, their facts from the cache where it is young enough.

    ``settings`` win over the inventory's: what is measured on a host is what they name. Facts in the cache
    that were measured for other directories are read again.

    Raises ``UserError`` when there is no such inventory, no such host, or no Ansible.
    """
    for inventory in inventories:
        if not inventory.exists():
            raise UserError(f"found no inventory at {inventory}, expected a file or directory; put it right")
    hostvars = _host_variables(inventories, limit)
    variables = _settings(inventories, hostvars)
    cache = cache_directory(inventories)
    oldest = time.time() - max_age_seconds
    wanted = {name: value for name, value in (settings or {}).items() if name in _ASKED}
    missing = [
        host
        for host, values in variables.items()
        if refresh
        or not _young(cache / f"{host}.json", oldest)
        or not _answers(_cached(cache / f"{host}.json"), {**values, **wanted})
    ]
    fresh = _gather(inventories, missing, cache, wanted) if missing else {}
    return [
        InventoryHost(
            host,
            values,
            fresh[host] if host in fresh else _cached(cache / f"{host}.json"),
            tuple(hostvars[host]),
        )
        for host, values in variables.items()
    ]


def read_variables(inventories: Sequence[Path], *, limit: str | None) -> dict[str, dict[str, Any]]:
    """The ``metal_*`` variables of each host of group ``gpu_hosts``; no host is asked.

    Raises ``UserError`` as ``read_inventory`` does.
    """
    return _settings(inventories, _host_variables(inventories, limit))


def _young(path: Path, oldest: float) -> bool:
    try:
        return path.stat().st_mtime >= oldest
    except OSError:
        return False


def _answers(facts: Mapping[str, Any] | None, variables: Mapping[str, Any]) -> bool:
    """Whether kept facts were measured for the directories that these variables name."""
    asked = (facts or {}).get("asked")
    if not isinstance(asked, Mapping):
        return True
    adopt = variables.get("metal_weights_adopt") or []
    names = {
        "weights_directory": variables.get("metal_weights_directory") or "/srv/models",
        "engine_directory": variables.get("metal_engine_directory") or "/opt/sglang",
        "adopt_directories": [adopt] if isinstance(adopt, str) else adopt,
    }
    return all(_same(asked.get(name), value) for name, value in names.items())


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return one.rstrip("/") == other.rstrip("/")
    return bool(one == other)


def _cached(path: Path) -> Mapping[str, Any] | None:
    try:
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


def _program(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise UserError(f"found no {name}, expected ansible-core on this machine; install it, or use --gpu")
    return found


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [_program(program), *arguments], check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "nothing on its standard error"


def _options(inventories: Sequence[Path]) -> list[str]:
    return [word for one in inventories for word in ("-i", str(one))]


def _named(inventories: Sequence[Path]) -> str:
    return ", ".join(str(one) for one in inventories)


def _host_variables(inventories: Sequence[Path], limit: str | None) -> dict[str, dict[str, Any]]:
    """All variables of the inventory for each host of the group, as they are written."""
    pattern = ["--limit", limit] if limit else []
    done = _run("ansible-inventory", *_options(inventories), "--list", *pattern)
    try:
        listing = json.loads(done.stdout)
    except ValueError:
        raise UserError(
            f"found an inventory that ansible-inventory can't read ({_last_line(done.stderr)}), "
            f"expected {_named(inventories)} to be an Ansible inventory; put it right"
        ) from None
    hostvars: dict[str, dict[str, Any]] = listing.get("_meta", {}).get("hostvars", {})
    names = _members(listing, GROUP, set())
    if not names:
        raise UserError(
            f"found no host in group {GROUP} of {_named(inventories)}{f' within {limit}' if limit else ''}, "
            "expected at least one; add hosts to the group"
        )
    return {name: hostvars.get(name, {}) for name in names}


def _settings(
    inventories: Sequence[Path], hostvars: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The ``metal_*`` variables of each host, templates filled in."""
    variables = {
        name: {k: v for k, v in values.items() if k.startswith("metal_")} for name, values in hostvars.items()
    }
    if "{{" in json.dumps(variables) or "{%" in json.dumps(variables):
        # Templates are Ansible's to fill in.
        for name, found in _filled_in(inventories, list(variables)).items():
            if isinstance(found, dict):
                variables[name] = found
    return variables


def _filled_in(inventories: Sequence[Path], hosts: Sequence[str]) -> dict[str, Any]:
    """The ``metal_*`` variables of each host whose templates can be filled in."""
    names = json.dumps(list(hosts))
    together = (
        f"{{{{ dict({names} | zip({names} | map('extract', hostvars) | map('dict2items')"
        " | map('selectattr', 'key', 'match', 'metal_') | map('items2dict'))) }}"
    )
    # In the one process that speaks for the first host: a process for each takes many times as long.
    answers = _tree(inventories, hosts[:1], "debug", json.dumps({"msg": together}), become=False)
    for answer in answers.values():
        if isinstance(answer.get("msg"), dict):
            return dict(answer["msg"])
    # A template of one host that can't be filled in says nothing of the others.
    answers = _tree(inventories, hosts, "debug", "msg=" + _VARIABLES, become=False)
    return {name: answer.get("msg") for name, answer in answers.items()}


def _members(listing: Mapping[str, Any], group: str, seen: set[str]) -> list[str]:
    if group in seen:
        return []
    seen.add(group)
    entry = listing.get(group, {})
    names = list(entry.get("hosts", []))
    for child in entry.get("children", []):
        names += [name for name in _members(listing, child, seen) if name not in names]
    return names


def _tree(
    inventories: Sequence[Path],
    hosts: Sequence[str],
    module: str,
    arguments: str,
    *,
    become: bool,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """What one module answers on each host; hosts that did not answer are not in it."""
    answers: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as directory:
        words = [",".join(hosts), *_options(inventories), "-m", module, "-a", arguments]
        # A host that stops answering is given up, and the others are read.
        words += ["--tree", directory, "--task-timeout", str(HOST_SECONDS)]
        if settings:
            words += ["--extra-vars", json.dumps(dict(settings))]
        done = _run("ansible", *words, *(["--become"] if become else []))
        for path in Path(directory).iterdir():
            answer = _cached(path)
            if answer is not None:
                answers[path.name] = dict(answer)
    if not answers and done.returncode not in (0, 2, 4):
        raise UserError(
            f"found that ansible failed ({_last_line(done.stderr)}), expected answers from "
            f"{', '.join(hosts[:3])}; run from the project's directory, where ansible.cfg is"
        )
    return answers


def _gather(
    inventories: Sequence[Path], hosts: Sequence[str], cache: Path, settings: Mapping[str, Any]
) -> dict[str, Mapping[str, Any] | None]:
    answers = _tree(inventories, hosts, "metal_facts", json.dumps(_FACTS), become=True, settings=settings)
    cache.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Mapping[str, Any] | None] = {}
    for host in hosts:
        found = answers.get(host, {}).get("facts")
        facts[host] = found if isinstance(found, dict) else None
        path = cache / f"{host}.json"
        if facts[host] is None:
            # What was true of a host that no longer answers is not true now.
            path.unlink(missing_ok=True)
        else:
            path.write_text(json.dumps(facts[host]), encoding="utf-8")
    return facts

"""Hosts of an Ansible inventory: their variables, and their facts over SSH, cached for a while.

Ansible is run as a program, never imported: reading a fleet's cached facts takes about a second. Ansible
itself decrypts variables encrypted with ansible-vault; decrypted values are recorded, so that they are never
shown.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minimax_metal.common.documents import read_json
from minimax_metal.common.errors import UserError
from minimax_metal.common.files import read_bounded, write_atomic
from minimax_metal.common.program import Answer
from minimax_metal.controller import ansible_programs
from minimax_metal.controller.acting import no_hosts, unreadable
from minimax_metal.controller.adapter import raw_facts_of
from minimax_metal.controller.vault import MARK, decrypted_of, encrypted_files, is_encrypted
from minimax_metal.plan.connection import Trouble, trouble_in
from minimax_metal.plan.settings import Settings

GROUP = "gpu_hosts"
_VARIABLES = (
    "{{ dict(query('ansible.builtin.varnames', '^metal_')"
    " | zip(query('ansible.builtin.vars', *query('ansible.builtin.varnames', '^metal_')))) }}"
)
_WEIGHTS = "{{ lookup('minimax.metal.setting', 'metal_weights_directory') }}"
_ENGINES = "{{ lookup('minimax.metal.setting', 'metal_engine_directory') }}"
_FACTS = {
    "paths": [_WEIGHTS, _ENGINES, "/var/cache"],
    "weights_directory": _WEIGHTS,
    "engine_directory": _ENGINES,
    "adopt_directories": "{{ [metal_weights_adopt | default([])] | flatten }}",
}
"""Arguments of the facts module; Ansible fills in each host's own directories."""
_ASKED = ("metal_weights_directory", "metal_engine_directory", "metal_weights_adopt")
"""Settings that determine what is measured on a host."""


@dataclass(frozen=True)
class InventoryHost:
    """One host: its name, its ``metal_*`` variables, the names of all its variables, its raw facts (None:
    unreachable).
    """

    name: str
    variables: Mapping[str, Any] = field(repr=False)
    facts: Mapping[str, Any] | None
    names: tuple[str, ...] = ()
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """Values from encrypted variables: never shown."""
    written: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Other variables as in the inventory, without templates and encrypted ones."""


@dataclass(frozen=True)
class Reach:
    """Ansible options: for its inventory program, and for connecting to hosts."""

    inventory: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()


def cache_directory(inventories: Sequence[Path]) -> Path:
    """Return where the facts of the hosts of some inventories are cached; safe to delete."""
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
    reach: Reach = Reach(),  # frozen
) -> list[InventoryHost]:
    """Return the hosts of group ``gpu_hosts``, with facts from the cache if it is young enough.

    Args:
        inventories: files or directories.
        limit: a pattern of hosts.
        refresh: read the hosts even if the cache is young.
        max_age_seconds: maximum age of cached facts.
        settings: variables that override the inventory's: they name what is measured on a host. Cached facts
            that were measured for other directories are read again.
        reach: options of Ansible.

    Raises:
        UserError: there is no such inventory, no such host, no password for its vault, or no Ansible.
    """
    look_for(inventories)
    hostvars = _host_variables(inventories, limit, reach)
    variables = _settings(inventories, hostvars, reach)
    cache = cache_directory(inventories)
    oldest = time.time() - max_age_seconds
    wanted = {name: value for name, value in (settings or {}).items() if name in _ASKED}
    missing = [
        host
        for host, values in variables.items()
        if refresh
        or not _young(_cache_file(cache, host), oldest)
        or not _answers(_cached(_cache_file(cache, host)), {**values, **wanted})
    ]
    fresh = _gather(inventories, hostvars, missing, cache, wanted, reach) if missing else {}
    return [
        InventoryHost(
            host,
            values,
            fresh[host] if host in fresh else _cached(_cache_file(cache, host)),
            tuple(hostvars[host]),
            tuple(decrypted_of(hostvars[host], values)),
            {name: value for name, value in hostvars[host].items() if _is_plain(value)},
        )
        for host, values in variables.items()
    ]


def read_variables(
    inventories: Sequence[Path],
    *,
    limit: str | None,
    reach: Reach = Reach(),  # frozen
) -> dict[str, dict[str, Any]]:
    """Return the ``metal_*`` variables of each host of group ``gpu_hosts``; no host is contacted.

    Raises ``UserError`` as ``read_inventory`` does.
    """
    return read_variables_and_secrets(inventories, limit=limit, reach=reach)[0]


def read_variables_and_secrets(
    inventories: Sequence[Path],
    *,
    limit: str | None,
    reach: Reach = Reach(),  # frozen
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Like ``read_variables``, with the values from encrypted ones."""
    hostvars = _host_variables(inventories, limit, reach)
    variables = _settings(inventories, hostvars, reach)
    secrets = [text for host, values in variables.items() for text in decrypted_of(hostvars[host], values)]
    return variables, secrets


def look_for(inventories: Sequence[Path]) -> None:
    """Raise ``UserError`` if an inventory does not exist."""
    for inventory in inventories:
        if "," not in str(inventory) and not inventory.exists():
            raise UserError(
                f"found no inventory at {inventory}, expected a file or directory; fix the path: "
                "nothing was done"
            )


def _cache_file(cache: Path, host: str) -> Path:
    """Return where a host's facts are cached, whatever its name."""
    safe = (
        host if host.replace("-", "").replace("_", "").replace(".", "").isalnum() and host[0] != "." else ""
    )
    return cache / f"{safe or hashlib.sha256(host.encode()).hexdigest()}.json"


def _young(path: Path, oldest: float) -> bool:
    try:
        return path.stat().st_mtime >= oldest
    except OSError:
        return False


def _is_plain(value: Any) -> bool:
    """Return whether a value is literal: neither a template nor encrypted."""
    text = json.dumps(value, default=str)
    return not any(sign in text for sign in ("{{", "{%", "__ansible_vault", "$ANSIBLE_VAULT"))


def _answers(facts: Mapping[str, Any] | None, variables: Mapping[str, Any]) -> bool:
    """Return whether cached facts were measured for the directories that these variables name."""
    asked = (facts or {}).get("asked")
    if not isinstance(asked, Mapping):
        return True
    adopt = variables.get("metal_weights_adopt") or []
    names = {
        "weights_directory": variables.get("metal_weights_directory") or Settings.weights_directory,
        "engine_directory": variables.get("metal_engine_directory") or Settings.engine_directory,
        "adopt_directories": [adopt] if isinstance(adopt, str) else adopt,
    }
    return all(_same(asked.get(name), value) for name, value in names.items())


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return one.rstrip("/") == other.rstrip("/")
    return bool(one == other)


def _cached(path: Path) -> Mapping[str, Any] | None:
    try:
        facts = read_json(read_bounded(path, ansible_programs.ANSWER_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return facts if isinstance(facts, dict) else None


def _run(program: str, *arguments: str) -> Answer:
    return ansible_programs.run(program, *arguments)


def _options(inventories: Sequence[Path]) -> list[str]:
    return [word for one in inventories for word in ("-i", str(one))]


def _named(inventories: Sequence[Path]) -> str:
    return ", ".join(str(one) for one in inventories)


def _host_variables(
    inventories: Sequence[Path], limit: str | None, reach: Reach
) -> dict[str, dict[str, Any]]:
    """Return all variables of the inventory for each host of the group, as written."""
    pattern = ["--limit", limit] if limit else []
    done = _run("ansible-inventory", *_options(inventories), *reach.inventory, "--list", *pattern)
    try:
        listing = read_json(done.out)
    except (ValueError, RecursionError):
        listing = None
    if not isinstance(listing, dict):
        _refuse_vault(done, inventories)
        _refuse_controller(done)
        raise UserError(
            "found an inventory that ansible-inventory can't read "
            f"({ansible_programs.last_words(done)}), expected {_named(inventories)} to be an Ansible "
            "inventory; fix the error it reports"
        )
    meta = listing.get("_meta")
    hostvars = meta.get("hostvars") if isinstance(meta, dict) else None
    names = _members(listing, GROUP, set())
    if not names:
        # Ansible only warns about an inventory that is encrypted as a whole.
        _refuse_vault(done, inventories)
        groups = {group: _members(listing, group, set()) for group in listing if group != "_meta"}
        if limit and GROUP not in groups:
            whole = _run("ansible-inventory", *_options(inventories), *reach.inventory, "--list")
            try:
                everything = read_json(whole.out)
                groups = {one: _members(everything, one, set()) for one in everything if one != "_meta"}
            except (ValueError, RecursionError, TypeError):
                pass
        within: list[str] | None = [] if limit else None
        raise UserError(
            no_hosts(
                [GROUP],
                groups,
                within,
                limit=limit or "",
                inventories=[str(one) for one in inventories],
                broken=unreadable(inventories),
            )
        )
    hostvars = hostvars if isinstance(hostvars, dict) else {}
    return {name: hostvars.get(name) or {} for name in names}


def _refuse_vault(done: Answer, inventories: Sequence[Path]) -> None:
    """Raise if a program failed for lack of the vault's password: which file, and what to do."""
    trouble = _vault_trouble(f"{done.out if done.status else ''}\n{done.err}")
    if trouble is not None:
        raise UserError(_vault_line(trouble, inventories))


def _refuse_controller(done: Answer) -> None:
    """Raise if this machine is the cause (its locale, its ssh)."""
    trouble = trouble_in(done.err)
    if trouble.code.startswith("controller-"):
        raise UserError(trouble.line())


def _vault_trouble(text: str) -> Trouble | None:
    trouble = trouble_in(text)
    return trouble if trouble.code == "vault-password" else None


def _vault_line(trouble: Trouble, inventories: Sequence[Path]) -> str:
    files = encrypted_files(inventories)
    where = f" (encrypted: {', '.join(files)})" if files and "file " not in trouble.found else ""
    return f"found {trouble.found}{where}, expected {trouble.needed}; {trouble.remedy}"


def _settings(
    inventories: Sequence[Path], hostvars: Mapping[str, Mapping[str, Any]], reach: Reach
) -> dict[str, dict[str, Any]]:
    """Return each host's ``metal_*`` variables, with templates filled in and encrypted values decrypted."""
    variables = {
        name: {k: v for k, v in values.items() if k.startswith("metal_")} for name, values in hostvars.items()
    }
    text = json.dumps(variables)
    if "{{" in text or "{%" in text or MARK in text:
        # Ansible fills in templates and decrypts encrypted values.
        for name, found in _filled_in(inventories, list(variables), reach).items():
            if isinstance(found, dict):
                variables[name] = found
    left = [name for name, values in variables.items() if is_encrypted(values)]
    if left:
        keys = sorted({key for name in left for key, one in variables[name].items() if is_encrypted(one)})
        trouble = trouble_in("Attempting to decrypt but no vault secrets found")
        raise UserError(f"{', '.join(left[:8])}: {', '.join(keys)}: {_vault_line(trouble, inventories)}")
    return variables


def _filled_in(inventories: Sequence[Path], hosts: Sequence[str], reach: Reach) -> dict[str, Any]:
    """Return the ``metal_*`` variables of each host whose templates can be filled in.

    Raises ``UserError`` if the vault's password is missing or wrong.
    """
    names = json.dumps(list(hosts))
    together = (
        f"{{{{ dict({names} | zip({names} | map('extract', hostvars) | map('dict2items')"
        " | map('selectattr', 'key', 'match', 'metal_') | map('items2dict'))) }}"
    )
    # In one process, on behalf of the first host: a process per host takes many times as long.
    answers = _tree(inventories, hosts[:1], "debug", json.dumps({"msg": together}), reach, become=False)
    for answer in answers.values():
        if isinstance(answer.get("msg"), dict):
            return dict(answer["msg"])
    # A template of one host that can't be filled in doesn't affect the others.
    answers = _tree(inventories, hosts, "debug", "msg=" + _VARIABLES, reach, become=False)
    for name, answer in answers.items():
        trouble = None if isinstance(answer.get("msg"), dict) else _vault_trouble(str(answer.get("msg")))
        if trouble is not None:
            raise UserError(f"{name}: {_vault_line(trouble, inventories)}")
    return {name: answer.get("msg") for name, answer in answers.items()}


def _members(listing: Mapping[str, Any], group: str, seen: set[str]) -> list[str]:
    if group in seen:
        return []
    seen.add(group)
    entry = listing.get(group)
    entry = entry if isinstance(entry, Mapping) else {}
    hosts, children = (one if isinstance(one, list) else [] for one in map(entry.get, ("hosts", "children")))
    names = [str(name) for name in hosts]
    for child in children:
        names += [name for name in _members(listing, str(child), seen) if name not in names]
    return names


def _tree(
    inventories: Sequence[Path],
    hosts: Sequence[str],
    module: str,
    arguments: str,
    reach: Reach,
    *,
    become: bool,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return one module's answer on each host; hosts that did not answer are missing."""
    seconds = str(ansible_programs.HOST_SECONDS)
    with ansible_programs.private_directory("answers") as directory:
        words = [",".join(hosts), *_options(inventories), *reach.hosts, "-m", module, "-a", arguments]
        # A host that stops answering is given up, and the others are read.
        words += ["--tree", str(directory), "--task-timeout", seconds, *(["--become"] if become else [])]
        words += ["--extra-vars", json.dumps(dict(settings))] if settings else []
        done = _run("ansible", *words)
        answers = {path.name: ansible_programs.read_answer(path) for path in directory.iterdir()}
    if not answers:
        _refuse_vault(done, inventories)
        _refuse_controller(done)
        if done.status not in (0, 2, 4):
            raise UserError(
                f"found that ansible failed ({ansible_programs.last_words(done)}), expected answers "
                f"from {', '.join(hosts[:3])}; fix the error it reports"
            )
    return answers


def _gather(
    inventories: Sequence[Path],
    hostvars: Mapping[str, Mapping[str, Any]],
    hosts: Sequence[str],
    cache: Path,
    settings: Mapping[str, Any],
    reach: Reach,
) -> dict[str, Mapping[str, Any] | None]:
    answers = _tree(
        inventories,
        hosts,
        "minimax.metal.metal_facts",
        json.dumps(_FACTS),
        reach,
        become=True,
        settings=settings,
    )
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    facts: dict[str, Mapping[str, Any] | None] = {}
    for host in hosts:
        answer = answers.get(host)
        values = hostvars.get(host) or {}
        names = (str(values.get("ansible_host") or host), str(values.get("ansible_user") or ""))
        facts[host] = None if answer is None else raw_facts_of({}, answer, *names)
        read = answer is not None and isinstance(answer.get("facts"), dict)
        if read:
            write_atomic(_cache_file(cache, host), json.dumps(facts[host]), mode=0o600)
        else:
            # Cached facts of a host that no longer answers are outdated.
            _cache_file(cache, host).unlink(missing_ok=True)
    return facts

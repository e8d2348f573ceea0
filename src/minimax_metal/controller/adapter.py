"""The small I/O around the plan: read overlay files, hash wheels, then let ``plan`` decide."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from minimax_metal.catalog import Catalog, load_catalog, packaged_catalog, read_overlay
from minimax_metal.common.errors import UserError
from minimax_metal.common.text import one_line, printable
from minimax_metal.controller.vault import encrypted_files
from minimax_metal.plan.connection import trouble_of
from minimax_metal.plan.core import plan, refused_plan, setting_refusals
from minimax_metal.plan.facts import parse_facts
from minimax_metal.plan.gateway import Options, gateway_plan
from minimax_metal.plan.model import ExtraPackage, Plan, Refusal
from minimax_metal.plan.settings import DECLARED, Settings, find_unknown
from minimax_metal.plan.settings.role_values import role_problems
from minimax_metal.plan.settings.roles import ROLE_VARIABLES


def plan_from_variables(
    host: str,
    variables: Mapping[str, Any],
    raw_facts: Mapping[str, Any] | None,
    names: Iterable[str] = (),
    role_values: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the plan of one host as a dictionary, from its Ansible variables and raw facts (None:
    unreachable).

    ``names`` are the names of all variables of the host; those that begin like a role's must be among that
    role's settings. ``role_values`` are values of such variables.
    Raises nothing: unreadable user files are a refusal of the host like any other.
    """
    return plan_host(host, variables, raw_facts, names, role_values).as_dict()


def plan_host(
    host: str,
    variables: Mapping[str, Any],
    raw_facts: Mapping[str, Any] | None,
    names: Iterable[str] = (),
    role_values: Mapping[str, Any] | None = None,
) -> Plan:
    """Like ``plan_from_variables``, but return the plan itself."""
    values, problems = _hashed_values(variables)
    settings, wrong = Settings.read(host, values)
    problems += wrong
    try:
        catalog = catalog_for(settings)
    except UserError as error:
        problems += (_unreadable(error),)
        catalog = packaged_catalog()
    settings = replace(settings, unknown_role_variables=find_unknown(names, ROLE_VARIABLES))
    problems += tuple(role_problems(role_values or {}))
    if problems:
        # Facts are judged only with valid settings; refusals that settings alone cause are reported at once.
        # Without a file that may be an overlay with the model, models are not judged.
        readable = all(one.code != "file" for one in problems)
        return refused_plan(host, [*problems, *setting_refusals(settings, catalog if readable else None)])
    return plan(settings, parse_facts(raw_facts), catalog)


def _hashed_values(variables: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[Refusal, ...]]:
    try:
        return with_hashes(variables), ()
    except UserError as error:
        values = {key: one for key, one in variables.items() if key != "metal_engine_extra_packages"}
        return values, (_unreadable(error),)


def _unreadable(error: UserError) -> Refusal:
    return Refusal("file", str(error), "readable files", "fix the path or the file")


def raw_facts_of(
    probe: Mapping[str, Any], collected: Mapping[str, Any], host: str = "", user: str = ""
) -> dict[str, Any]:
    """Return the raw facts of a host, from the results of the two tasks that read it.

    Args:
        probe: of a shell's check for Python, sudo and the uid.
        collected: of the facts module; skipped if the probe did not find its requirements.
        host: the address used to reach it.
        user: who logs in; empty if unknown.
    """
    if isinstance(collected.get("facts"), Mapping) and not collected.get("failed"):
        return dict(collected["facts"])
    shell = str(probe.get("stdout") or "")
    away = {"reachable": False, "host": host, "user": user}
    # If the probe failed, the next task did not run: the last registered result is the failure.
    failed = collected if collected.get("failed") or not probe else probe
    if collected.get("unreachable"):
        return {**away, "answer": dict(collected)}
    if probe.get("unreachable") or "python3=" not in shell:
        return {**away, "answer": {**probe, **failed}}
    if collected.get("skipped"):
        return {"reachable": True, "probe": shell}
    return {**away, "answer": dict(collected)}


def unread_plan(answer: Mapping[str, Any], host: str, inventories: Sequence[str] = ()) -> dict[str, Any]:
    """Return the plan of a host whose variables Ansible could not read, according to ``answer``.

    ``inventories`` are searched for files with encrypted variables, if that is the cause.
    """
    refusal = trouble_of(answer, host).refusal()
    files = encrypted_files(inventories) if refusal.code == "vault-password" else []
    if files:
        refusal = replace(refusal, found=f"{refusal.found} (encrypted: {', '.join(files)})")
    return refused_plan(host, [refusal]).as_dict()


def role_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a host's variables that begin like a role's."""
    prefixes = tuple(f"{role}_" for role in ROLE_VARIABLES)
    return {name: value for name, value in values.items() if name.startswith(prefixes)}


def setting_lines(
    host: str,
    variables: Mapping[str, Any],
    names: Iterable[str],
    role_values: Mapping[str, Any],
    *,
    planned: bool,
) -> list[str]:
    """One line for each reason against a host's settings by themselves, without a model or facts.

    The arguments are those of :func:`plan_from_variables`. Values of the plan's settings count only where a
    plan is made (``planned``): a wrong one must not keep a fleet from going back, or from removal.
    """
    if not planned:
        unread = DECLARED.keys() - {"metal_accept_refusals"}
        variables = {name: value for name, value in variables.items() if name not in unread}
    values, problems = _hashed_values(variables)
    settings, wrong = Settings.read(host, values)
    settings = replace(settings, unknown_role_variables=find_unknown(names, ROLE_VARIABLES))
    refusals = (*problems, *wrong, *role_problems(role_values), *setting_refusals(settings, None))
    return [one.line(host) for one in dict.fromkeys(refusals)]


def gateway_from_variables(
    host: str,
    variables: Mapping[str, Any],
    raw_facts: Mapping[str, Any] | None,
    options: Mapping[str, Any],
    plans: Mapping[str, Mapping[str, Any]],
    before: Sequence[Mapping[str, Any]] = (),
    role_values: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the plan of a gateway host as a dictionary; its settings need no model.

    Raises:
        UserError: a ``metal_*`` variable or an overlay is wrong; one line.
    """
    settings = Settings.from_variables(host, variables)
    facts = parse_facts(raw_facts)
    read = {name: Plan.of_record(one) for name, one in plans.items()}
    made = gateway_plan(settings, facts, Options.read(options), read, before, catalog_for(settings))
    problems = role_problems(role_values or {})
    return replace(made, refusals=(*problems, *made.refusals)).as_dict()


def refusal_lines(plan: Mapping[str, Any]) -> list[str]:
    """Return one line for each refusal in a plan's dictionary."""
    lines = (Refusal(**refusal).line(str(plan["host"])) for refusal in plan["refusals"])
    # Parts of it come from a host: no line break and no terminal control may pass.
    return [" ".join(printable(line).split()) for line in lines]


def catalog_for(settings: Settings) -> Catalog:
    """Return the catalogue with the settings' overlays; read again only if one of the files changed."""
    if not settings.catalog_overlay:
        return packaged_catalog()
    stamps = []
    for path in settings.catalog_overlay:
        try:
            state = Path(path).stat()
        except OSError as error:
            raise UserError(
                f"found metal_catalog_overlay {path}: {error.strerror}, expected a readable YAML "
                "file; fix the path"
            ) from None
        stamps.append((path, state.st_mtime_ns, state.st_size))
    return _catalog(tuple(stamps))


@lru_cache(maxsize=8)
def _catalog(stamps: tuple[tuple[str, int, int], ...]) -> Catalog:
    return load_catalog([read_overlay(Path(path)) for path, _, _ in stamps])


def with_hashes(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables with every wheel of ``metal_engine_extra_packages`` as a path with its sha256."""
    values = dict(variables)
    wheels = values.get("metal_engine_extra_packages")
    if wheels is None:
        return values
    items = [wheels] if isinstance(wheels, (str, Mapping)) else wheels
    if not isinstance(items, (list, tuple)):
        return values  # Settings reports what is wrong with it
    values["metal_engine_extra_packages"] = [_hashed(item) for item in items]
    return values


def _hashed(item: Any) -> Any:
    if not isinstance(item, str):
        return item
    path = Path(item)
    try:
        state = path.stat()
        return ExtraPackage(path=item, sha256=_sha256(item, state.st_mtime_ns, state.st_size))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "no file of that name"
        raise UserError(
            f"found metal_engine_extra_packages {one_line(item, 200)}: {why}, expected a wheel on "
            "the controller; fix the path"
        ) from None


@lru_cache(maxsize=64)
def _sha256(path: str, _modified: int, _size: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

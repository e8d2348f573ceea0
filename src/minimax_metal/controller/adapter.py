"""The small I/O around the plan: overlay files are read, wheels are hashed, then ``plan`` decides."""

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
    """The plan of one host as a dictionary, from its Ansible variables and raw facts (none: unreachable).

    ``names`` are the names of all variables of the host; those that begin like a role's must be among that
    role's settings. ``role_values`` are values of such variables.
    Raises nothing: files of the user's that can't be read are a reason against the host as any other.
    """
    return plan_host(host, variables, raw_facts, names, role_values).as_dict()


def plan_host(
    host: str,
    variables: Mapping[str, Any],
    raw_facts: Mapping[str, Any] | None,
    names: Iterable[str] = (),
    role_values: Mapping[str, Any] | None = None,
) -> Plan:
    """As ``plan_from_variables``, but the plan itself."""
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
        # The facts are judged by settings that stand; what settings alone tell is said at once.
        # Without a file, which may be an overlay with the model, nothing is known of models.
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
    return Refusal("file", str(error), "files that can be read", "fix the path or the file")


def raw_facts_of(
    probe: Mapping[str, Any], collected: Mapping[str, Any], host: str = "", user: str = ""
) -> dict[str, Any]:
    """The raw facts of a host, from the results of the two tasks that read it.

    Args:
        probe: of a shell's look at Python, sudo and the uid.
        collected: of the facts module; skipped where the probe did not find what it needs.
        host: what is typed to reach it.
        user: who logs in; empty where nobody said.
    """
    if isinstance(collected.get("facts"), Mapping) and not collected.get("failed"):
        return dict(collected["facts"])
    shell = str(probe.get("stdout") or "")
    away = {"reachable": False, "host": host, "user": user}
    # Of a probe that failed, the task after it was not asked: what was registered last is the failure.
    failed = collected if collected.get("failed") or not probe else probe
    if collected.get("unreachable"):
        return {**away, "answer": dict(collected)}
    if probe.get("unreachable") or "python3=" not in shell:
        return {**away, "answer": {**probe, **failed}}
    if collected.get("skipped"):
        return {"reachable": True, "probe": shell}
    return {**away, "answer": dict(collected)}


def unread_plan(answer: Mapping[str, Any], host: str, inventories: Sequence[str] = ()) -> dict[str, Any]:
    """The plan of a host whose variables Ansible could not read, as it said in ``answer``.

    ``inventories`` are looked at for the files that hold encrypted variables, where that is the cause.
    """
    refusal = trouble_of(answer, host).refusal()
    files = encrypted_files(inventories) if refusal.code == "vault-password" else []
    if files:
        refusal = replace(refusal, found=f"{refusal.found} (encrypted: {', '.join(files)})")
    return refused_plan(host, [refusal]).as_dict()


def role_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a host's variables that begin like one of a role's."""
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
    """The plan of a gateway's host as a dictionary; its settings need name no model.

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
    """One line for each reason in a plan's dictionary."""
    lines = (Refusal(**refusal).line(str(plan["host"])) for refusal in plan["refusals"])
    # Some of it is what a host said: no line breaks a line, and none carries what a terminal acts on.
    return [" ".join(printable(line).split()) for line in lines]


def catalog_for(settings: Settings) -> Catalog:
    """The catalogue with the settings' overlays; read anew only when one of the files changed."""
    if not settings.catalog_overlay:
        return packaged_catalog()
    stamps = []
    for path in settings.catalog_overlay:
        try:
            state = Path(path).stat()
        except OSError as error:
            raise UserError(
                f"found metal_catalog_overlay {path}: {error.strerror}, expected a readable YAML file; "
                "put the path right"
            ) from None
        stamps.append((path, state.st_mtime_ns, state.st_size))
    return _catalog(tuple(stamps))


@lru_cache(maxsize=8)
def _catalog(stamps: tuple[tuple[str, int, int], ...]) -> Catalog:
    return load_catalog([read_overlay(Path(path)) for path, _, _ in stamps])


def with_hashes(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables with every wheel of ``metal_engine_extra_packages`` as a path with its sha256."""
    values = dict(variables)
    wheels = values.get("metal_engine_extra_packages")
    if wheels is None:
        return values
    items = [wheels] if isinstance(wheels, (str, Mapping)) else wheels
    if not isinstance(items, (list, tuple)):
        return values  # Settings says what is wrong with it
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
        why = error.strerror if isinstance(error, OSError) else "no file has such a name"
        raise UserError(
            f"found metal_engine_extra_packages {one_line(item, 200)}: {why}, expected a wheel on the "
            "controller; put the path right"
        ) from None


@lru_cache(maxsize=64)
def _sha256(path: str, _modified: int, _size: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

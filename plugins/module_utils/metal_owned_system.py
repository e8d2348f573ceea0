"""Packages, units, users and Python environments of a role's list: how they are, for module metal_owned.

Nothing is changed here: apt, systemd and the user database have modules of Ansible's own.
"""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import grp
import os
import pwd
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# A copy of src/minimax_metal/common/program.py.
from ansible_collections.minimax.metal.plugins.module_utils.metal_program import run

SECONDS = 60
AT_WORK = ("active", "activating", "reloading")
BOOTS = ("enabled", "alias", "static", "indirect", "generated")
UNIT_PROPERTIES = (
    "Id,LoadState,ActiveState,UnitFileState,NeedDaemonReload,"
    "InactiveExitTimestampMonotonic,StateChangeTimestampMonotonic"
)
RECORD_BYTES = 16 << 20
"""Of one list of a package's files; PyTorch's has 2 MB."""


class HangError(OSError):
    """A program of the host did not answer."""


def asked(words: Sequence[str]) -> str:
    """Return what a program prints; nothing where there is no such program.

    Raises:
        HangError: it did not answer in time.
    """
    answer = run(words, seconds=SECONDS, environment={**os.environ, "LC_ALL": "C.UTF-8"})
    if answer.timed_out:
        raise HangError(
            110,
            f"{Path(words[0]).name} did not answer within {SECONDS} s; expected an answer within seconds; "
            "look at the host (ps, dmesg), then run again",
        )
    return answer.out


# Units ----------------------------------------------------------------------------------------------------


def blocks(text: str) -> dict[str, dict[str, str]]:
    """Return what ``systemctl show`` says of each unit, by its Id."""
    found = {}
    for block in text.split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if values.get("Id"):
            found[values["Id"]] = values
    return found


def started(
    values: Mapping[str, str], now: float, monotonic: float, since: str = "InactiveExit"
) -> float | None:
    """Return when a unit that runs was started, in seconds of today's clock; None where it does not run.

    With "StateChange" it is when it was started or reloaded. systemd's monotonic time is used: a clock that
    was set after the start does not move it.
    """
    when = values.get(f"{since}TimestampMonotonic", "")
    if values.get("ActiveState") not in AT_WORK or not when.isdecimal() or not int(when):
        return None
    return now - (monotonic - int(when) / 1e6)


def written(path: str, now: float) -> float | None:
    """Return when a file was written; None where there is none, or its time is yet to come."""
    try:
        when = os.lstat(path).st_mtime
    except OSError:
        return None
    return when if when <= now else None


def newer(
    paths: Iterable[str], start: float | None, now: float, changed: Collection[str]
) -> tuple[str, str] | None:
    """Return the file that a unit, which runs since ``start``, read before it was written, and why."""
    if start is None:
        return None
    for path in paths:
        if path in changed:
            return path, f"{path} changed"
        when = written(path, now)
        if when is not None and when > start:
            return path, f"{path} was written {when - start:.0f} s after its start"
    return None


def unit_work(
    unit: Mapping[str, Any], values: Mapping[str, str], changed: Collection[str], now: float, monotonic: float
) -> dict[str, Any] | None:
    """Return what is to be done with one unit: ``name``, ``why``, and where needed ``enabled`` and ``state``,
    and ``newer``, the file that was written after its start.

    Args:
        unit: ``name``; ``enabled`` and ``running`` where they are the role's to say; whether it has to be
            ``ready``, and is started where it is only on its way; the files that make it ``restarts`` and
            ``reloads``.
        values: what systemd says of it.
        changed: paths whose content was written, or removed, by this call.
        now: today's clock, in seconds.
        monotonic: systemd's clock, in seconds.
    """
    work: dict[str, Any] = {"name": unit["name"]}
    why = []
    runs = values.get("ActiveState") in AT_WORK
    enabled = unit.get("enabled")
    if enabled is not None and (values.get("UnitFileState") in BOOTS) != enabled:
        work["enabled"] = enabled
        why.append("does not start at boot" if enabled else "starts at boot")
    restart = newer(unit.get("restarts", ()), started(values, now, monotonic), now, changed)
    reload = newer(unit.get("reloads", ()), started(values, now, monotonic, "StateChange"), now, changed)
    if unit.get("running") is False:
        if runs:
            work["state"] = "stopped"
            why.append("runs")
    elif restart:
        work["state"] = "restarted"
        work["newer"] = restart[0]
        why.append(restart[1])
    elif unit.get("running") and not runs:
        work["state"] = "started"
        why.append("does not run")
    elif unit.get("ready") and values.get("ActiveState") != "active":
        work["state"] = "started"
        why.append("is not ready")
    elif reload:
        work["state"] = "reloaded"
        why.append(reload[1])
    return {**work, "why": ", ".join(why)} if why else None


def units_work(
    units: Sequence[Mapping[str, Any]], changed: Collection[str], check: bool
) -> tuple[list[dict[str, Any]], bool]:
    """Return what is to be done with units, and whether systemd has to read its files again.

    In check mode a unit that systemd does not know yet is left out: its file is reported as it is.
    """
    if not units:
        return [], False
    names = [str(unit["name"]) for unit in units]
    found = blocks(asked(["systemctl", "show", f"--property={UNIT_PROPERTIES}", *names]))
    now, monotonic = time.time(), time.clock_gettime(time.CLOCK_MONOTONIC)
    work = []
    for unit in units:
        values = found.get(str(unit["name"]), {})
        if check and values.get("LoadState", "not-found") == "not-found":
            continue
        if one := unit_work(unit, values, changed, now, monotonic):
            work.append(one)
    return work, any(values.get("NeedDaemonReload") == "yes" for values in found.values())


# Packages and users ---------------------------------------------------------------------------------------


def missing_packages(packages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the packages of the distribution that are not whole on the host.

    Args:
        packages: ``name`` of each, and ``unless``, paths any of which stands for it.
    """
    names = [str(one["name"]) for one in packages if not any(map(os.path.exists, one["unless"]))]
    if not names:
        return []
    lines = asked(["dpkg-query", "-W", "-f", "${Package}\t${db:Status-Abbrev}\n", *sorted(set(names))])
    there = {
        name for name, _, state in (line.partition("\t") for line in lines.splitlines()) if state[1:2] == "i"
    }
    return [name for name in names if name not in there]


def known_packages(names: Sequence[str]) -> bool:
    """Return whether apt has a candidate for every package, without writing apt's index.

    A bare image brings no package lists, yet a fresh time stamp on them.
    """
    if not names:
        return True
    caches = ["-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache="]
    said = asked(["apt-cache", *caches, "policy", *names])
    return len(re.findall(r"^ +Candidate: +[^(\s]", said, re.MULTILINE)) >= len(set(names))


def users_to_make(users: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the users that are missing, or have another group, directory or shell."""
    return [dict(user) for user in users if _user_now(str(user["name"])) != _user_wanted(user)]


def _user_wanted(user: Mapping[str, Any]) -> tuple[str, str, str]:
    return str(user["name"]), str(user["home"]), str(user["shell"])


def _user_now(name: str) -> tuple[str, str, str] | None:
    with suppress(KeyError):
        found = pwd.getpwnam(name)
        return grp.getgrgid(found.pw_gid).gr_name, found.pw_dir, found.pw_shell
    return None


# Python environments --------------------------------------------------------------------------------------


def normalized(name: str) -> str:
    """Return a project's name as it is compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def projects_to_install(environment: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return which wanted projects an environment ``lacks``, and which it has only parts of (``damaged``).

    A project is whole when its list of files is there, with the wanted version, and every package, module and
    program that it names at the top is there too. An installer takes a damaged one for installed.

    Args:
        environment: its ``path``, and ``projects``: the wanted version of each by its normalized name.
    """
    root = Path(str(environment["path"]))
    wanted = dict(environment["projects"])
    there: dict[str, bool] = {}
    # A removed interpreter leaves its link behind.
    for packages in root.glob("lib/python3*/site-packages") if (root / "bin" / "python").exists() else ():
        for information in packages.glob("*.dist-info"):
            name, _, version = information.name.removesuffix(".dist-info").partition("-")
            name = normalized(name)
            if wanted.get(name) == version:
                there[name] = whole(packages, information / "RECORD")
    found = {
        "lacks": sorted(set(wanted) - set(there)),
        "damaged": sorted(name for name, is_whole in there.items() if not is_whole),
    }
    return found if any(found.values()) else {}


def whole(packages: Path, record: Path) -> bool:
    """Return whether what a list of installed files (RECORD) names at the top is there."""
    try:
        with record.open("rb") as stream:
            text = stream.read(RECORD_BYTES).decode("utf-8", "replace")
    except OSError:
        return False
    names = set()
    for line in text.splitlines():
        path = line.rsplit(",", 2)[0].strip('"')
        # A program lies outside; all else below a package or a module.
        names.add(path if path.startswith("../") else path.partition("/")[0])
    return all((packages / name).exists() for name in names if name and not name.startswith("/"))

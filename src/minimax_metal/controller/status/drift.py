"""How a host's release differs from what the inventory decides today: pure.

The plan is made again from the inventory's variables and from what the recorded plan says of the host: its
GPUs and platform do not change by themselves, and so no host is read for it. What differs then was changed in
the inventory, in the catalogue or in the project since the release was verified.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from minimax_metal.common.errors import UserError
from minimax_metal.controller.adapter import catalog_for, with_hashes
from minimax_metal.host.status.drift import at, named
from minimax_metal.plan.core import plan
from minimax_metal.plan.facts import HostFacts, SmiGpu
from minimax_metal.plan.model import Plan
from minimax_metal.plan.settings import Settings, SettingsError

COMPARED: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("model", ("model", "served_name")),
    ("format", ("model", "format")),
    ("revision", ("model", "revision")),
    ("weights", ("model", "path")),
    ("engine", ("engine", "release")),
    ("engine packages", ("engine", "digest")),
    ("tensor parallel", ("parallelism", "tp")),
    ("expert parallel", ("parallelism", "ep")),
    ("replicas", ("parallelism", "replicas")),
    ("driver branch", ("driver", "branch")),
    ("CUDA", ("cuda", "version")),
    ("TLS of the fleet", ("tls", "directory")),
)
"""What is compared before the units are: what people call it, and where it is in a plan."""
SERVICE: Final[tuple[tuple[str, str], ...]] = (
    ("port", "port"),
    ("launch command", "argv"),
    ("environment", "environment"),
    ("start timeout", "start_timeout_seconds"),
    ("stop timeout", "stop_timeout_seconds"),
    ("credentials", "credentials"),
)


def facts_of(applied: Mapping[str, Any], here: Mapping[str, Any]) -> HostFacts:
    """Return the facts a recorded plan was made from, as far as decisions depend on them.

    Args:
        applied: parts of the recorded plan (:data:`minimax_metal.host.status.look.APPLIED`).
        here: what the host said of itself today.
    """
    platform, gpus = applied.get("platform") or {}, applied.get("gpus") or {}
    driver = str(here.get("driver") or f"{(applied.get('driver') or {}).get('branch', '0')}.0")
    return HostFacts(
        reachable=True,
        distribution=platform.get("distribution"),
        version=platform.get("version"),
        codename=platform.get("codename"),
        architecture=platform.get("architecture"),
        python=platform.get("python"),
        smi_present=True,
        smi_gpus=tuple(
            SmiGpu(
                index=index,
                name=str(gpus.get("name")),
                uuid="",
                memory_bytes=gpus.get("memory_bytes"),
                driver=driver,
                compute_capability=gpus.get("compute_capability"),
            )
            for index in gpus.get("indices") or ()
        ),
        nvswitches=1 if gpus.get("nvswitch") else 0,
        loaded_driver=driver,
        # A driver of packages: one of an installer was refused, or accepted in the inventory.
        packages={"nvidia-driver": driver},
        cpu_count=here.get("cpu_count"),
        memory_total_bytes=here.get("memory_total_bytes"),
        is_root=True,
    )


def planned(host: str, variables: Mapping[str, Any], facts: HostFacts) -> Plan:
    """Return what the inventory decides for a host with those facts.

    Raises:
        SettingsError, UserError: the inventory is not to be understood; the text says why.
    """
    settings = Settings.from_variables(host, with_hashes(variables))
    return plan(settings, facts, catalog_for(settings))


def drift_of(host: str, variables: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return how a host's release differs from the inventory, one short text each; nothing: it does not."""
    applied = here.get("applied") or {}
    if not applied:
        return []
    try:
        wanted = planned(host, variables, facts_of(applied, here)).as_dict()
    except SettingsError as error:
        return [refusal.line(host) for refusal in error.refusals]
    except UserError as error:
        return [str(error)]
    if not wanted["fits"]:
        reasons = [refusal["code"] for refusal in wanted["refusals"]]
        return [f"the inventory is refused now: {', '.join(reasons)}; metal plan says why"]
    return differences(applied, wanted)


def differences(applied: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return how two plans differ in what is applied: ``engine 0.5.22 -> 0.5.23``."""
    found = []
    for name, keys in COMPARED:
        old, new = at(applied, keys), at(wanted, keys)
        if old != new:
            found.append(f"{name} {_short(old)} -> {_short(new)}")
    old_services = {one["unit"]: one for one in applied.get("services") or []}
    new_services = {one["unit"]: one for one in wanted.get("services") or []}
    found += [f"instance {named(unit)} goes" for unit in sorted(set(old_services) - set(new_services))]
    found += [f"instance {named(unit)} comes" for unit in sorted(set(new_services) - set(old_services))]
    for unit in sorted(set(old_services) & set(new_services)):
        for name, key in SERVICE:
            old, new = old_services[unit].get(key), new_services[unit].get(key)
            if _plain(old) != _plain(new):
                found.append(f"{name} of {named(unit)}{_words(old, new)}")
    old_wall, new_wall = applied.get("firewall"), wanted.get("firewall")
    if bool(old_wall) != bool(new_wall):
        found.append(f"firewall {_short(bool(old_wall))} -> {_short(bool(new_wall))}")
    elif isinstance(old_wall, Mapping) and isinstance(new_wall, Mapping):
        for name, key in (("networks", "ipv4"), ("networks", "ipv6"), ("ports", "ports")):
            old, new = _plain(old_wall.get(key)) or [], _plain(new_wall.get(key)) or []
            if old != new:
                found.append(f"{name} of the firewall{_words(old, new)}")
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    text = "none" if value is None else str(value)
    return text if len(text) <= 48 else f"…{text[-47:]}"


def _words(old: Any, new: Any) -> str:
    """Return what differs between two values: of lists and mappings their parts only."""
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        gone, come = _only(old, new), _only(new, old)
        return ": " + " ".join([f"-[{' '.join(gone)}]"] * bool(gone) + [f"+[{' '.join(come)}]"] * bool(come))
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        return f": {', '.join(names)}"
    return f" {_short(old)} -> {_short(new)}"


def _only(these: Iterable[Any], those: Sequence[Any]) -> list[str]:
    return [_short(one) for one in these if one not in those]

"""How a host's release differs from today's plan of the inventory: pure.

The plan is made again from the inventory's variables and from the recorded plan's description of the host:
its GPUs and platform do not change by themselves, so no host is read for it. Differences come from changes to
the inventory, the catalogue or the project since the release was verified.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from minimax_metal.common.errors import UserError
from minimax_metal.controller.adapter import catalog_for, with_hashes
from minimax_metal.host.status.drift import named
from minimax_metal.plan.core import plan
from minimax_metal.plan.facts import HostFacts, SmiGpu
from minimax_metal.plan.model import Plan
from minimax_metal.plan.settings import Settings, SettingsError

COMPARED: Final[tuple[tuple[str, str, str], ...]] = (
    ("model", "model", "served_name"),
    ("format", "model", "format"),
    ("revision", "model", "revision"),
    ("weights", "model", "path"),
    ("engine", "engine", "release"),
    ("engine packages", "engine", "digest"),
    ("tensor parallel", "parallelism", "tp"),
    ("expert parallel", "parallelism", "ep"),
    ("replicas", "parallelism", "replicas"),
    ("driver branch", "driver", "branch"),
    ("CUDA", "cuda", "version"),
    ("TLS of the fleet", "tls", "directory"),
)
"""What is compared before the units: the displayed name, and the part and field of a plan."""
SERVICE: Final[tuple[tuple[str, str], ...]] = (
    ("port", "port"),
    ("launch command", "argv"),
    ("environment", "environment"),
    ("start timeout", "start_timeout_seconds"),
    ("stop timeout", "stop_timeout_seconds"),
    ("credentials", "credentials"),
)


def facts_of(applied: Plan, here: Mapping[str, Any]) -> HostFacts:
    """Return the facts that a recorded plan was made from, as far as decisions depend on them.

    Args:
        applied: parts of the recorded plan (:data:`minimax_metal.host.status.look.APPLIED`).
        here: the host's own status today.
    """
    platform, gpus = applied.platform, applied.gpus
    driver = str(here.get("driver") or f"{applied.driver.branch if applied.driver else 0}.0")
    return HostFacts(
        reachable=True,
        distribution=(platform.distribution or None) if platform else None,
        version=(platform.version or None) if platform else None,
        codename=(platform.codename or None) if platform else None,
        architecture=(platform.architecture or None) if platform else None,
        python=(platform.python or None) if platform else None,
        smi_present=True,
        smi_gpus=tuple(
            SmiGpu(
                index=index,
                name=gpus.name,
                uuid="",
                memory_bytes=gpus.memory_bytes or None,
                driver=driver,
                compute_capability=gpus.compute_capability or None,
            )
            for index in gpus.indices
        )
        if gpus
        else (),
        nvswitches=1 if gpus and gpus.nvswitch else 0,
        loaded_driver=driver,
        # A driver from packages: one from an installer was refused, or accepted in the inventory.
        packages={"nvidia-driver": driver},
        cpu_count=here.get("cpu_count"),
        memory_total_bytes=here.get("memory_total_bytes"),
        is_root=True,
    )


def planned(host: str, variables: Mapping[str, Any], facts: HostFacts) -> Plan:
    """Return the inventory's plan for a host with those facts.

    Raises:
        SettingsError, UserError: the inventory is invalid; the text gives the reason.
    """
    settings = Settings.from_variables(host, with_hashes(variables))
    return plan(settings, facts, catalog_for(settings))


def drift_of(host: str, variables: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return how a host's release differs from the inventory, one short text each; empty if it does not."""
    if not here.get("applied"):
        return []
    applied = Plan.of_record(here["applied"])
    try:
        wanted = planned(host, variables, facts_of(applied, here))
    except SettingsError as error:
        return [refusal.line(host) for refusal in error.refusals]
    except UserError as error:
        return [str(error)]
    if not wanted.fits:
        reasons = [refusal.code for refusal in wanted.refusals]
        return [f"the inventory is refused now: {', '.join(reasons)}; metal plan shows why"]
    return differences(applied, wanted)


def differences(applied: Plan, wanted: Plan) -> list[str]:
    """Return how two plans differ in what is applied: ``engine 0.5.22 -> 0.5.23``."""
    found = []
    for name, part, field in COMPARED:
        # A record that does not say it has an empty value there.
        old, new = (getattr(getattr(one, part), field, None) or None for one in (applied, wanted))
        if old != new:
            found.append(f"{name} {_short(old)} -> {_short(new)}")
    old_services, new_services = ({one.unit: one for one in made.services} for made in (applied, wanted))
    found += [
        f"instance {named(unit)} will be removed" for unit in sorted(set(old_services) - set(new_services))
    ]
    found += [
        f"instance {named(unit)} will be added" for unit in sorted(set(new_services) - set(old_services))
    ]
    for unit in sorted(set(old_services) & set(new_services)):
        for name, field in SERVICE:
            old, new = getattr(old_services[unit], field), getattr(new_services[unit], field)
            if old != new:
                found.append(f"{name} of {named(unit)}{_words(old, new)}")
    old_wall, new_wall = applied.firewall, wanted.firewall
    if (old_wall is None) != (new_wall is None):
        found.append(f"firewall {_short(old_wall is not None)} -> {_short(new_wall is not None)}")
    elif old_wall is not None and new_wall is not None:
        for name, field in (("networks", "ipv4"), ("networks", "ipv6"), ("ports", "ports")):
            old, new = getattr(old_wall, field), getattr(new_wall, field)
            if old != new:
                found.append(f"{name} of the firewall{_words(old, new)}")
    return found


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    text = "none" if value is None else str(value)
    return text if len(text) <= 48 else f"…{text[-47:]}"


def _words(old: Any, new: Any) -> str:
    """Return the differences between two values: for lists and mappings their parts only."""
    if isinstance(old, tuple) and isinstance(new, tuple):
        gone, come = _only(old, new), _only(new, old)
        return ": " + " ".join([f"-[{' '.join(gone)}]"] * bool(gone) + [f"+[{' '.join(come)}]"] * bool(come))
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        return f": {', '.join(names)}"
    return f" {_short(old)} -> {_short(new)}"


def _only(these: Iterable[Any], those: Sequence[Any]) -> list[str]:
    return [_short(one) for one in these if one not in those]

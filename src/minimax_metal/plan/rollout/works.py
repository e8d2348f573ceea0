"""What a rollout does to one host: the plan against what the host runs and records. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from minimax_metal.common.text import one_line
from minimax_metal.plan.model import Plan
from minimax_metal.plan.rollout.stage import CHANGE, OUT_OF_POOL, Stage
from minimax_metal.plan.rollout.verdict import standing


@dataclass(frozen=True)
class Work:
    """What one host needs.

    Attributes:
        host: its name in the inventory.
        kind: ``none`` (the host is as planned), ``verify`` (the plan is applied, checked and recorded while
            the engine runs), ``switch`` (the engine stops and starts).
        reasons: why, in a few words each.
        serving: replicas that are ready now.
        planned: replicas the plan has.
        pools: names that it serves now and will serve.
        interrupted: an earlier run began with it and did not finish.
        standing: where an earlier run left it, in words; empty if it ended well.
        start_seconds: how long its engine's last start took; None if unknown.
        start_limit: how long a start may take, in seconds.
        stop_limit: how long requests in flight may take at a stop, in seconds.
        workers: URLs that gateways may know it by while it changes.
        compared_by: model and GPUs; replicas are compared with those of hosts that have the same.
        stages: the stages of its change, in order.
    """

    host: str
    kind: str
    reasons: tuple[str, ...] = ()
    serving: int = 0
    planned: int = 1
    pools: tuple[str, ...] = ()
    interrupted: bool = False
    standing: str = ""
    start_seconds: float | None = None
    start_limit: int = 0
    stop_limit: int = 0
    workers: tuple[str, ...] = ()
    compared_by: str = ""
    stages: tuple[str, ...] = ()

    @property
    def cost(self) -> int:
        """Replicas that go out of service while it is changed."""
        return self.serving if self.kind == "switch" else 0

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Work:
        """Return what ``as_dict`` was made of."""
        values = {name: data[name] for name in cls.__dataclass_fields__}
        lists = ("reasons", "pools", "workers", "stages")
        return cls(**values | {name: tuple(values[name]) for name in lists})


def tidy(facts: Any) -> dict[str, Any]:
    """Return the answer of ``metal_fleet_facts`` with every part in the type that decisions expect.

    The host wrote it: a part of another type counts as missing, so that one host can't break the run.
    """
    facts = facts if isinstance(facts, Mapping) else {}
    found: dict[str, Any] = dict(facts)
    units = facts.get("units")
    found["units"] = {
        str(name): {
            "active": unit.get("active") is True,
            "state": one_line(str(unit.get("state") or "inactive"), 40),
            "stale": unit.get("stale") is True,
            "start_seconds": unit["start_seconds"]
            if isinstance(unit.get("start_seconds"), int | float) and 0 < unit["start_seconds"] < 1e6
            else None,
        }
        for name, unit in (units.items() if isinstance(units, Mapping) else ())
        if isinstance(unit, Mapping)
    }
    for key in ("journal", "record"):
        found[key] = dict(facts[key]) if isinstance(facts.get(key), Mapping) else None
    if found["journal"] is not None:
        # What is decided by is text there, or nothing; anything else is not this program's journal.
        found["journal"] = {
            str(key): value
            if value is None or isinstance(value, str | int | float)
            else one_line(str(value), 300)
            for key, value in found["journal"].items()
        }
    if found["record"] is not None:
        for key in ("units", "workers"):
            names = found["record"].get(key)
            found["record"][key] = [str(one) for one in names] if isinstance(names, list) else []
    for key in ("differs", "newer"):
        names = facts.get(key)
        found[key] = [one_line(str(one), 300) for one in names] if isinstance(names, list) else []
    return found


def serving_of(facts: Mapping[str, Any], gateway: bool) -> int:
    """Return how many replicas of a host serve: units that are ready, and none of a host that is kept out
    of the pool.

    Args:
        facts: what ``metal_fleet_facts`` collected.
        gateway: whether clients come through a gateway.
    """
    facts = tidy(facts)
    journal = facts.get("journal") or {}
    stopped_there = journal.get("ended") is None and journal.get("stage") in OUT_OF_POOL
    if gateway and (stopped_there or journal.get("result") == "failed"):
        return 0
    return sum(1 for unit in (facts.get("units") or {}).values() if unit["active"])


def work_of(
    host: str,
    digest: str,
    plan: Plan,
    facts: Mapping[str, Any],
    driver: str = "",
    gateway: bool = False,
    soak: bool = False,
) -> Work:
    """Return what a host needs, of what is on it and what was decided.

    Args:
        host: its name.
        digest: of the plan, as a release record has it.
        plan: what was decided.
        facts: what ``metal_fleet_facts`` collected.
        driver: what is to be done about the NVIDIA driver, in words; empty when nothing is.
        gateway: whether clients come through a gateway.
        soak: whether a host that gets another release is watched among clients' requests.
    """
    facts = tidy(facts)
    units: Mapping[str, Mapping[str, Any]] = facts.get("units") or {}
    wanted = [service.unit for service in plan.services]
    running = [name for name, unit in units.items() if unit["active"]]
    journal = facts.get("journal") or {}
    interrupted = bool(journal) and journal.get("ended") is None
    restart = [f"{driver}"] if driver else []
    restart += [f"{name} is not in the plan" for name in sorted(set(units) - set(wanted))]
    restart += [f"{path} differs" for path in facts.get("differs") or [] if _bears_on_process(path)]
    restart += [
        f"{path} was written after the engine's start"
        for path in facts.get("newer") or []
        if _bears_on_process(path) and path not in (facts.get("differs") or [])
    ]
    restart += [f"{name} changed since systemd loaded it" for name in running if units[name]["stale"]]
    restart += [
        f"{name} is {units[name]['state'] if name in units else 'missing'}"
        for name in wanted
        if name not in running
    ]
    record = facts.get("record") or {}
    others = [f"{path} differs" for path in facts.get("differs") or [] if not _bears_on_process(path)]
    if record.get("digest") != digest:
        others.append(
            f"release {facts.get('current')} is in force, the plan is {digest}"
            if record
            else "no release is recorded"
        )
    if interrupted:
        others.append(f"run {journal.get('run')} stopped at its stage {journal.get('stage')}")
    elif journal.get("result") == "failed":
        others.append(f"run {journal.get('run')} left it out of service")
    starts = [unit["start_seconds"] for unit in units.values() if unit.get("start_seconds")]
    models = [record.get("model"), plan.model.served_name if plan.model else None]
    kind = "switch" if restart else "verify" if others else "none"
    return Work(
        host=host,
        kind=kind,
        reasons=(*restart, *others),
        serving=serving_of(facts, gateway),
        planned=len(plan.services),
        pools=tuple(dict.fromkeys(str(model) for model in models if model)),
        interrupted=interrupted,
        standing=standing(host, journal),
        start_seconds=max(starts, default=None),
        start_limit=max((one.start_timeout_seconds for one in plan.services), default=0),
        stop_limit=max((one.stop_timeout_seconds for one in plan.services), default=0),
        workers=tuple(gateway_workers(facts, plan)),
        compared_by=compared_by(plan),
        stages=tuple(stage.value for stage in stages_of(kind, soak=soak)),
    )


def stages_of(kind: str, *, soak: bool = False, back: bool = False) -> tuple[Stage, ...]:
    """Return what a host goes through.

    Args:
        kind: as :class:`Work` has it.
        soak: whether a host whose engine stops is watched afterwards.
        back: whether it goes back to a release that it keeps: out of the pool first, whatever runs there,
            and not watched, since what it is compared with is that very release.
    """
    stops = kind == "switch"
    needs = {Stage.DRAIN: stops or back, Stage.STOP: stops, Stage.SOAK: stops and soak and not back}
    return tuple(stage for stage in CHANGE if kind != "none" and needs.get(stage, True))


def compared_by(plan: Plan) -> str:
    """Return what a replica is compared by with those of the batch before: its model on its GPUs."""
    model = plan.model.served_name if plan.model else None
    gpus = f"{plan.gpus.count} {plan.gpus.model}" if plan.gpus else None
    return f"{model} on {gpus}"


def outsider(host: str, facts: Mapping[str, Any] | None, gateway: bool = False) -> Work:
    """Return a host of the group that this run leaves alone; without facts it was not reached and serves
    nothing."""
    if not facts:
        return Work(host=host, kind="none", planned=0)
    facts = tidy(facts)
    units = facts.get("units") or {}
    record = facts.get("record") or {}
    return Work(
        host=host,
        kind="none",
        serving=serving_of(facts, gateway),
        planned=len(record.get("units") or units),
        pools=(str(record["model"]),) if record.get("model") else (),
        standing=standing(host, facts.get("journal") or {}),
    )


def gateway_workers(facts: Mapping[str, Any], plan: Plan) -> list[str]:
    """Return the URLs by which gateways may know a host while it is changed.

    What the recorded release serves comes first: a gateway learns of another port, address or count of
    replicas when the host is put back into its pool, not before.

    Args:
        facts: what ``metal_fleet_facts`` collected.
        plan: what was decided.
    """
    recorded = (tidy(facts).get("record") or {}).get("workers") or []
    planned = [service.worker_url for service in plan.services]
    return [str(url) for url in dict.fromkeys([*recorded, *planned]) if url]


def _bears_on_process(path: str) -> bool:
    """Whether a file is read by an engine's process at its start."""
    return path.startswith(("/etc/sglang/", "/etc/sglang-tls/")) or "/sglang@" in path

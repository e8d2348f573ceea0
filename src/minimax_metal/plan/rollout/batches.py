"""In which batches a rollout changes hosts, and whether the fleet can spare them. Pure.

A **pool** is what clients see as one model: hosts that serve one name, and hosts that change from one name to
another in this run belong to the same pool. Capacity is counted in replicas (units that are ready), over
all hosts of the group, those outside of ``--limit`` too, and the floor holds in every pool.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from minimax_metal.plan.rollout.works import Work
from minimax_metal.plan.settings.playbook import PlaybookSettings

DEFAULT_BATCHES: Final = PlaybookSettings.rollout_batches
"""A canary, a quarter, the rest; smaller if the floor does not allow that size."""
DEFAULT_MIN_READY: Final = PlaybookSettings.rollout_min_ready


@dataclass(frozen=True)
class Decision:
    """The whole rollout.

    Attributes:
        batches: hosts of each batch, in order.
        unchanged: hosts that nothing is done to.
        lines: what is to be said before anything is changed.
        refusals: why it can't be done, one line each; none when it can.
        floors: replicas that stay in service at least, by pool.
    """

    batches: tuple[tuple[str, ...], ...]
    unchanged: tuple[str, ...]
    lines: tuple[str, ...]
    refusals: tuple[str, ...]
    floors: Mapping[str, int]


def batch_sizes(wish: Sequence[Any], count: int) -> list[int]:
    """Return the sizes of the batches for ``count`` hosts: numbers and shares as Ansible's ``serial`` has
    them.

    Raises:
        ValueError: an entry is neither a number of hosts nor a share.
    """
    sizes: list[int] = []
    for entry in wish:
        text = str(entry).strip()
        if re.fullmatch(r"[1-9]\d*", text):
            sizes.append(int(text))
        elif (match := re.fullmatch(r"(\d+(?:\.\d+)?)%", text)) and 0 < float(match[1]) <= 100:
            sizes.append(max(1, int(count * float(match[1]) / 100)))
        else:
            raise ValueError(
                f"found {text!r} in metal_rollout_batches, expected numbers of hosts and shares such as 25%"
            )
    if not sizes:
        raise ValueError("found an empty metal_rollout_batches, expected such as [1, 25%, 100%]")
    while sum(sizes) < count:
        sizes.append(sizes[-1])
    return sizes


def floor_of(wish: Any, replicas: int) -> int:
    """Return how many of a pool's replicas stay in service: a number, or a share that is rounded down.

    Raises:
        ValueError: it is neither.
    """
    text = str(wish).strip()
    if re.fullmatch(r"\d+", text):
        return int(text)
    if (match := re.fullmatch(r"(\d+(?:\.\d+)?)%", text)) and float(match[1]) <= 100:
        return int(replicas * float(match[1]) / 100)
    raise ValueError(
        f"found metal_rollout_min_ready {text}, expected a number of replicas or a share such as 50%"
    )


def pools_of(works: Iterable[Work]) -> dict[str, str]:
    """Return the pool of each host; two names that one host connects are one pool."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    works = list(works)
    for work in works:
        for name in work.pools:
            leader.setdefault(name, name)
            leader[find(name)] = find(work.pools[0])
    return {work.host: find(work.pools[0]) if work.pools else "" for work in works}


@dataclass
class Capacity:
    """Replicas in service, by pool, and the floors."""

    pools: Mapping[str, str]
    ready: dict[str, int]
    floors: dict[str, int]

    @classmethod
    def of(cls, works: Sequence[Work], min_ready: Any) -> Capacity:
        """Count. Raises ValueError as `floor_of`."""
        pools = pools_of(works)
        ready: dict[str, int] = {}
        planned: dict[str, int] = {}
        for work in works:
            pool = pools[work.host]
            ready[pool] = ready.get(pool, 0) + work.serving
            planned[pool] = planned.get(pool, 0) + max(work.planned, work.serving)
        return cls(pools, ready, {pool: floor_of(min_ready, planned[pool]) for pool in planned})

    def short(self, batch: Iterable[Work]) -> list[tuple[str, int]]:
        """Return the pools that a batch would take below their floor, with the replicas left."""
        left = dict(self.ready)
        costs = False
        for work in batch:
            left[self.pools[work.host]] -= work.cost
            costs = costs or work.cost > 0
        return [
            (pool, left[pool])
            for pool in left
            if costs and left[pool] < self.floors[pool] and left[pool] < self.ready[pool]
        ]

    def done(self, batch: Iterable[Work]) -> None:
        """Count a batch as changed and back in service."""
        for work in batch:
            self.ready[self.pools[work.host]] += work.planned - work.serving


def decide(
    works: Sequence[Work],
    outsiders: Sequence[Work] = (),
    batches: Sequence[Any] | None = None,
    min_ready: Any = None,
    gateway: bool = False,
) -> Decision:
    """Decide the rollout of the hosts of this run.

    Hosts of an interrupted run go first, then those that serve nothing now, then the others as the
    inventory has them. The default batches shrink to what the floor allows; batches that were asked for are
    refused instead.
    """
    changing = [work for work in works if work.kind != "none"]
    changing.sort(key=lambda work: (not work.interrupted, work.serving > 0))
    unchanged = tuple(work.host for work in works if work.kind == "none")
    lines = [work.standing for work in [*works, *outsiders] if work.standing]
    try:
        capacity = Capacity.of([*works, *outsiders], DEFAULT_MIN_READY if min_ready is None else min_ready)
        sizes = batch_sizes(DEFAULT_BATCHES if batches is None else batches, len(changing))
    except ValueError as error:
        return Decision((), unchanged, tuple(lines), (str(error),), {})
    floors = dict(capacity.floors)
    refusals: list[str] = []
    plan: list[tuple[str, ...]] = []
    left = list(changing)
    while left:
        size = min(sizes[min(len(plan), len(sizes) - 1)], len(left))
        batch = left[:size]
        while batches is None and len(batch) > 1 and capacity.short(batch):
            batch.pop()
        for pool, remaining in capacity.short(batch):
            refusals.append(
                f"{', '.join(work.host for work in batch)}: found {capacity.ready[pool]} replicas of "
                f"{pool or 'the fleet'} in service, {remaining} while this batch is changed; "
                f"expected {floors[pool]} or more "
                f"(metal_rollout_min_ready); {_advice(batch, capacity, batches is not None)}"
            )
        if refusals:
            break
        plan.append(tuple(work.host for work in batch))
        capacity.done(batch)
        left = left[len(batch) :]
    lines += _said(works, plan, unchanged, gateway)
    return Decision(tuple(plan), unchanged, tuple(lines), tuple(refusals), floors)


def _advice(batch: Sequence[Work], capacity: Capacity, asked: bool) -> str:
    if asked and len(batch) > 1 and not capacity.short(batch[:1]):
        return "make metal_rollout_batches smaller"
    return "bring more replicas into service first, or lower metal_rollout_min_ready"


def _said(
    works: Sequence[Work], plan: Sequence[Sequence[str]], unchanged: Sequence[str], gateway: bool
) -> list[str]:
    by_name = {work.host: work for work in works}
    lines = []
    for number, batch in enumerate(plan, 1):
        for host in batch:
            work = by_name[host]
            verb = "stops and starts" if work.kind == "switch" else "is checked and recorded, nothing stops"
            lines.append(f"batch {number} of {len(plan)}: {host} {verb}: {'; '.join(work.reasons)}")
            if work.cost and not gateway:
                took = (
                    f"about {work.start_seconds:.0f} s, as long as its last start took"
                    if work.start_seconds
                    else f"up to {work.start_limit} s"
                )
                lines.append(
                    f"{host}: no gateway in front of it (group gateway_hosts): it does not answer from its "
                    f"stop until it is ready, {took}; requests in flight may finish first, "
                    f"for up to {work.stop_limit} s"
                )
    if unchanged:
        lines.append(f"nothing changes on {', '.join(unchanged)}")
    return lines


def no_room(works: Sequence[Work], batch: Sequence[str], min_ready: Any) -> list[str]:
    """Return why a batch can't be drained with what is in service now; empty if it can."""
    capacity = Capacity.of(works, DEFAULT_MIN_READY if min_ready is None else min_ready)
    going = [work for work in works if work.host in batch and work.kind == "switch"]
    return [
        f"{', '.join(batch)}: found {capacity.ready[pool]} replicas of {pool or 'the fleet'} in service "
        f"now, {left} without this batch; expected {capacity.floors[pool]} or more (metal_rollout_min_ready)"
        for pool, left in capacity.short(going)
    ]

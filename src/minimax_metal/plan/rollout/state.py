"""A rollout from its first batch to its outcome: one frozen state, and what each step makes of it. Pure.

    state = begin(works, outsiders, wishes)
    for batch in state.batches:
        state = before_batch(state, batch, ready, outsiders)
        ...                                         # the hosts of state.batch are changed
        state = after_batch(state, outcomes, counted)
    for hosts in state.way_back:
        ...                                         # they go back
        state = after_return(state, hosts, outcomes)

``state.stop`` says why no further host is touched, ``state.verdict`` what became of each. A step after a stop
leaves the state as it is, so whoever plays it need not ask.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from minimax_metal.plan.rollout.batches import decide, no_room
from minimax_metal.plan.rollout.verdict import Outcome, verdict
from minimax_metal.plan.rollout.works import Work

Counts = Mapping[str, float]
"""What replicas counted while they were watched, by name."""


@dataclass(frozen=True)
class Wishes:
    """What the operator asks of a rollout.

    Attributes:
        batches: sizes, as Ansible's ``serial`` has them; None for the default.
        min_ready: replicas that stay in service, a number or a share; None for the default.
        gateway: whether clients come through a gateway.
        revert: whether hosts that have the release go back when a later one fails.
    """

    batches: tuple[Any, ...] | None = None
    min_ready: Any = None
    gateway: bool = False
    revert: bool = False


@dataclass(frozen=True)
class Rollout:
    """Where a rollout is.

    Attributes:
        works: what each host of the run needs.
        wishes: what was asked.
        batches: hosts of each batch, in order.
        lines: what is to be said before anything is changed.
        refusals: why it can't begin, one line each; none when it can.
        batch: hosts that may be changed now; none once the rollout has stopped.
        begun: hosts that were begun with.
        results: what became of them; a host that was begun with and has none was lost.
        counted: what the last batch with a replica of a kind counted, by ``Work.compared_by``.
        stop: why it stopped; empty while it goes on.
        asked: whether somebody asked it to stop.
    """

    works: tuple[Work, ...]
    wishes: Wishes
    batches: tuple[tuple[str, ...], ...] = ()
    lines: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    batch: tuple[str, ...] = ()
    begun: tuple[str, ...] = ()
    results: Mapping[str, Outcome] = field(default_factory=dict)
    counted: Mapping[str, Counts] = field(default_factory=dict)
    stop: str = ""
    asked: bool = False

    @property
    def way_back(self) -> tuple[tuple[str, ...], ...]:
        """Hosts that have the new release and go back, batch by batch, the last first."""
        if not self.wishes.revert or not self.stop or self.asked:
            return ()
        switched = {work.host for work in self.works if work.kind == "switch"} & {
            host for host, outcome in self.results.items() if outcome.result == "done"
        }
        batches = (tuple(host for host in batch if host in switched) for batch in reversed(self.batches))
        return tuple(batch for batch in batches if batch)

    @property
    def verdict(self) -> tuple[str, ...]:
        """One line for each host that did not get its release; nothing when all is well."""
        return tuple(verdict(self.batches, self.begun, self.results, self.stop))

    def failing(self, hosts: Sequence[str]) -> tuple[str, ...]:
        """Return which of the hosts that are left say that the rollout failed; none where it did not."""
        bad = tuple(host for host in hosts if host in self.results and self.results[host].result != "done")
        return bad or tuple(hosts[:1]) if self.verdict else ()

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data, with what follows from it."""
        return asdict(self) | {"way_back": self.way_back, "verdict": self.verdict}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Rollout:
        """Return what ``as_dict`` was made of."""
        wishes = Wishes(**data["wishes"])
        return cls(
            works=tuple(Work.from_dict(one) for one in data["works"]),
            wishes=replace(wishes, batches=None if wishes.batches is None else tuple(wishes.batches)),
            batches=tuple(tuple(batch) for batch in data["batches"]),
            lines=tuple(data["lines"]),
            refusals=tuple(data["refusals"]),
            batch=tuple(data["batch"]),
            begun=tuple(data["begun"]),
            results={host: Outcome(**one) for host, one in data["results"].items()},
            # Ansible's own containers can't be copied: a state is made of plain ones.
            counted={kind: dict(counts) for kind, counts in data["counted"].items()},
            stop=data["stop"],
            asked=data["asked"],
        )


def begin(works: Sequence[Work], outsiders: Sequence[Work], wishes: Wishes) -> Rollout:
    """Decide the batches.

    Args:
        works: what each host of the run needs.
        outsiders: hosts of the group that the run leaves alone.
        wishes: what was asked.
    """
    decision = decide(works, outsiders, wishes.batches, wishes.min_ready, wishes.gateway)
    return Rollout(
        works=tuple(works),
        wishes=wishes,
        batches=decision.batches,
        lines=decision.lines,
        refusals=decision.refusals,
    )


def before_batch(
    state: Rollout,
    batch: Iterable[str],
    ready: Mapping[str, int],
    outsiders: Sequence[Work] = (),
    asked: bool = False,
) -> Rollout:
    """Begin with a batch, or stop before it.

    Args:
        state: where the rollout is.
        batch: the hosts of the batch.
        ready: replicas in service at this moment, by host; a host that gave no answer is not in it and
            counts as ``outsider`` has such a one.
        outsiders: hosts of the group that the run leaves alone, as they are now.
        asked: whether somebody asked the rollout to stop here.
    """
    batch = tuple(batch)
    if state.stop:
        return replace(state, batch=())
    if asked:
        return replace(state, batch=(), stop="stopped before the next batch, as asked", asked=True)
    now = [
        replace(work, serving=ready[work.host])
        if work.host in ready
        else replace(work, serving=0, planned=0, kind="none")
        for work in state.works
    ]
    reasons = no_room([*now, *outsiders], batch, state.wishes.min_ready)
    if reasons:
        return replace(state, batch=(), stop="; ".join(reasons))
    return replace(state, batch=batch, begun=(*state.begun, *batch))


def after_batch(
    state: Rollout, outcomes: Mapping[str, Outcome], counted: Mapping[str, Counts] | None = None
) -> Rollout:
    """End the batch; the rollout stops where a host of it did not get its release.

    Args:
        state: where the rollout is.
        outcomes: what became of the hosts of the batch; one that is missing was lost.
        counted: what the replicas of a host counted while they were watched, by host.
    """
    results = {host: outcomes[host] for host in state.batch if host in outcomes}
    lost = [host for host in state.batch if host not in results]
    bad = lost + [host for host, outcome in results.items() if outcome.result != "done"]
    return replace(
        state,
        batch=(),
        results={**state.results, **results},
        counted={**state.counted, **_sums(state, counted or {})},
        stop=state.stop or (f"{', '.join(bad)} did not get its release" if bad else ""),
    )


def after_return(state: Rollout, hosts: Iterable[str], outcomes: Mapping[str, Outcome]) -> Rollout:
    """Take in what became of hosts that went back; one that is missing was lost.

    Args:
        state: where the rollout is.
        hosts: hosts of one batch of ``way_back``.
        outcomes: what became of them.
    """
    hosts = tuple(hosts)
    others = {host: outcome for host, outcome in state.results.items() if host not in hosts}
    return replace(state, results=others | {host: outcomes[host] for host in hosts if host in outcomes})


def _sums(state: Rollout, counted: Mapping[str, Counts]) -> dict[str, Counts]:
    sums: dict[str, dict[str, float]] = {}
    for work in state.works:
        if work.host in state.batch and work.host in counted:
            total = sums.setdefault(work.compared_by, {})
            for name, value in counted[work.host].items():
                total[name] = total.get(name, 0.0) + value
    return dict(sums)

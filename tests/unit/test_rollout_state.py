"""A rollout from start to end: the effect of each step on its state."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pytest

from minimax_metal.plan.rollout.stage import CHANGE, Stage
from minimax_metal.plan.rollout.state import (
    Rollout,
    Wishes,
    after_batch,
    after_return,
    before_batch,
    begin,
)
from minimax_metal.plan.rollout.verdict import Outcome
from minimax_metal.plan.rollout.works import Work, outsider, stages_of

DONE = Outcome("done")
NO_TOKEN = Outcome("returned", "Check the endpoint: no token")
HOSTS = ("a", "b", "c", "d")
STOPPED = "stopped before the next batch, as asked"


def work(host: str, kind: str = "switch", compared_by: str = "m on 8 H20") -> Work:
    return Work(host, kind, serving=1, pools=("m",), compared_by=compared_by)


def fleet(wishes: Wishes | None = None, hosts: Sequence[str] = HOSTS) -> Rollout:
    return begin([work(host) for host in hosts], [], wishes or Wishes(batches=(1, 1, 2), min_ready=1))


def carried(state: Rollout) -> Rollout:
    """The state as Ansible passes it from task to task: as plain data, lists for tuples."""
    return Rollout.from_dict(json.loads(json.dumps(state.as_dict())))


def play(
    state: Rollout,
    outcomes: Mapping[str, Outcome | None],
    ready: Mapping[int, Mapping[str, int]] | None = None,
    asked: int | None = None,
) -> tuple[Rollout, list[str]]:
    """Run a rollout to its end; return its result, and the changed hosts in order.

    A host whose outcome is None is lost. ``ready`` sets other states than that all serve, by the number of
    the batch; before batch ``asked`` a stop is requested.
    """
    changed: list[str] = []
    for number, batch in enumerate(state.batches):
        now = {one.host: 1 for one in state.works} | dict((ready or {}).get(number, {}))
        state = carried(before_batch(state, batch, now, asked=number == asked))
        changed += state.batch
        became = {host: one for host in state.batch if (one := outcomes.get(host, DONE)) is not None}
        state = carried(after_batch(state, became))
        assert state.batch == ()
    return state, changed


def test_a_good_release_reaches_every_host_in_the_order_of_the_batches() -> None:
    state, changed = play(fleet(), {})
    assert state.batches == (("a",), ("b",), ("c", "d"))
    assert changed == list(HOSTS)
    assert {host: one.result for host, one in state.results.items()} == dict.fromkeys(HOSTS, "done")
    assert (state.stop, state.verdict, state.way_back, state.failing(HOSTS)) == ("", (), (), ())


def test_a_bad_batch_is_the_last_one() -> None:
    state, changed = play(fleet(), {"b": NO_TOKEN})
    assert changed == ["a", "b"]
    assert state.stop == "b did not get its release"
    assert state.verdict == (
        "b: rolled back to its previous release, serving: Check the endpoint: no token",
        "not touched: c, d",
        "on the new release: a",
    )
    # Stop is the default: what has the release keeps it.
    assert state.way_back == ()
    assert state.failing(HOSTS) == ("b",)


def test_the_hosts_of_one_batch_are_named_together() -> None:
    failed = Outcome("failed", "no GPU")
    state, _ = play(fleet(), {"c": failed, "d": None})
    assert state.stop == "d, c did not get its release"
    assert state.verdict[0] == "c: is out of service: no GPU"
    assert state.verdict[1].startswith("d: lost during its change (no answer)")
    assert state.verdict[2:] == ("on the new release: a, b",)
    assert state.failing(("a", "b", "c")) == ("c",)


def test_a_lost_host_stops_the_run_and_one_that_is_left_says_so() -> None:
    state, changed = play(fleet(), {"a": None})
    assert changed == ["a"]
    assert state.stop == "a did not get its release"
    assert state.failing(("b", "c", "d")) == ("b",)
    assert state.failing(()) == ()


def test_hosts_go_back_in_reverse_and_only_those_that_have_the_release() -> None:
    wishes = Wishes(batches=(2, 1, 1), min_ready=1, revert=True)
    works = [work("a"), work("b", "verify"), work("c"), work("d")]
    state, _ = play(begin(works, [], wishes), {"d": NO_TOKEN})
    # b's engine never stopped: it has nothing to go back from.
    assert state.way_back == (("c",), ("a",))
    batches = state.way_back
    state = carried(after_return(state, batches[0], {"c": Outcome("reverted", state.stop)}))
    assert state.way_back == (("a",),)
    state = carried(after_return(state, batches[1], {"a": Outcome("failed", "no GPU")}))
    assert state.way_back == ()
    assert state.verdict == (
        "a: is out of service: no GPU",
        "c: rolled back to its previous release (metal_rollout_on_failure: revert)",
        "d: rolled back to its previous release, serving: Check the endpoint: no token",
        "on the new release: b",
    )
    assert state.failing(HOSTS) == ("a", "c", "d")


def test_a_host_that_is_lost_on_the_way_back_is_named() -> None:
    state, _ = play(fleet(Wishes(batches=(1, 3), min_ready=0, revert=True)), {"d": NO_TOKEN})
    assert state.way_back == (("b", "c"), ("a",))
    state = after_return(state, ("b", "c"), {"c": Outcome("reverted")})
    assert state.verdict[0].startswith("b: lost during its change")


def test_a_stop_that_somebody_asks_for_takes_nobody_back() -> None:
    state, changed = play(fleet(Wishes(batches=(1, 1, 2), min_ready=1, revert=True)), {}, asked=1)
    assert changed == ["a"]
    assert (state.stop, state.asked, state.way_back) == (STOPPED, True, ())
    assert state.verdict == (f"stopped: {STOPPED}", "not touched: b, c, d", "on the new release: a")
    assert state.failing(HOSTS) == ("a",)


def test_a_bad_batch_is_the_reason_also_when_somebody_asks_afterwards() -> None:
    state, _ = play(fleet(), {"a": NO_TOKEN}, asked=1)
    assert (state.stop, state.asked) == ("a did not get its release", False)


def test_what_is_in_service_counts_before_every_batch() -> None:
    wishes = Wishes(batches=(1, 1, 2), min_ready=2)
    assert play(fleet(wishes), {}, {2: {}})[1] == list(HOSTS)
    state, changed = play(fleet(wishes), {}, {1: {"a": 0, "d": 0}})
    assert changed == ["a"]
    assert state.stop.startswith("b: found 2 replicas of m in service now, 1 without this batch; expected 2")


def test_a_host_without_an_answer_does_not_serve_and_costs_nothing() -> None:
    state = fleet(Wishes(batches=(1, 1, 2), min_ready=2))
    gone = before_batch(state, ("a",), {"b": 1, "c": 1, "d": 1})
    assert (gone.batch, gone.stop) == (("a",), "")
    # Three are left, and two of them are to stay.
    assert before_batch(state, ("c", "d"), {"b": 1, "c": 1, "d": 1}).stop.startswith("c, d: found 3 replicas")


def test_hosts_outside_of_the_run_count_as_they_are_now() -> None:
    state = begin([work("a")], [work("x", "none")], Wishes(min_ready=1))
    assert before_batch(state, ("a",), {"a": 1}, [work("x", "none")]).batch == ("a",)
    assert before_batch(state, ("a",), {"a": 1}, [outsider("x", None)]).batch == ()


def test_a_rollout_that_is_refused_has_no_batch() -> None:
    state = fleet(Wishes(batches=("100%",), min_ready=1))
    assert state.batches == ()
    assert "make metal_rollout_batches smaller" in state.refusals[0]
    assert carried(state) == state


def test_what_replicas_counted_is_that_of_the_last_batch_of_their_kind() -> None:
    works = [work("a"), work("b"), work("c", compared_by="m on 4 H20"), work("d")]
    state = begin(works, [], Wishes(batches=(2, 1, 1), min_ready=0))
    for batch, counted in (
        (("a", "b"), {"a": {"answers": 3.0}, "b": {"answers": 4.0}}),
        (("c",), {"c": {"answers": 9.0}}),
        (("d",), {}),
    ):
        state = before_batch(state, batch, dict.fromkeys(HOSTS, 1))
        state = carried(after_batch(state, dict.fromkeys(batch, DONE), counted))
    assert state.counted == {"m on 8 H20": {"answers": 7.0}, "m on 4 H20": {"answers": 9.0}}


@pytest.mark.parametrize(
    ("kind", "soak", "back", "stages"),
    [
        ("switch", True, False, CHANGE),
        ("switch", False, False, tuple(stage for stage in CHANGE if stage is not Stage.SOAK)),
        ("verify", True, False, (Stage.SERVE, Stage.CHECK, Stage.UNDRAIN, Stage.RECORD)),
        ("switch", True, True, tuple(stage for stage in CHANGE if stage is not Stage.SOAK)),
        ("verify", True, True, (Stage.DRAIN, Stage.SERVE, Stage.CHECK, Stage.UNDRAIN, Stage.RECORD)),
        ("none", True, False, ()),
    ],
)
def test_what_a_host_goes_through(kind: str, soak: bool, back: bool, stages: tuple[Stage, ...]) -> None:
    assert stages_of(kind, soak=soak, back=back) == stages

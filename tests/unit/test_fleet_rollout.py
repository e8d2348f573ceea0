"""What a rollout does with which host, in which order, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from minimax_metal.plan.model import Plan
from minimax_metal.plan.rollout.batches import Capacity, batch_sizes, decide, floor_of, no_room, pools_of
from minimax_metal.plan.rollout.verdict import standing
from minimax_metal.plan.rollout.works import Work, gateway_workers, outsider, serving_of, work_of

UNIT = "sglang@minimax-m2.5.service"
PLAN = Plan.of_record(
    {
        "model": {"served_name": "MiniMaxAI/MiniMax-M2.5"},
        "services": [{"unit": UNIT, "start_timeout_seconds": 1800, "stop_timeout_seconds": 600}],
    }
)
DIGEST = "aaaaaaaaaaaa"


def unit(active: bool = True, **more: Any) -> dict[str, Any]:
    return {
        "active": active,
        "state": "active" if active else "inactive",
        "stale": False,
        "start_seconds": 212.4 if active else None,
    } | more


def facts(**more: Any) -> dict[str, Any]:
    return {
        "journal": None,
        "current": f"0001-{DIGEST}",
        "record": {"digest": DIGEST, "model": "MiniMaxAI/MiniMax-M2.5", "units": [UNIT]},
        "units": {UNIT: unit()},
        "differs": [],
        "newer": [],
    } | more


def serving(host: str, kind: str = "switch", pools: tuple[str, ...] = ("m",), **more: Any) -> Work:
    return Work(host=host, kind=kind, serving=more.pop("serving", 1), pools=pools, **more)


def fleet(count: int) -> list[Work]:
    return [serving(f"gpu{number:02}") for number in range(1, count + 1)]


def test_a_host_that_is_what_the_plan_says_needs_nothing() -> None:
    assert work_of("gpu01", DIGEST, PLAN, facts()).kind == "none"


@pytest.mark.parametrize(
    ("found", "driver", "reason"),
    [
        ({"differs": [f"/etc/systemd/system/{UNIT}"]}, "", "differs"),
        ({"differs": ["/etc/sglang/minimax-m2.5/engine.yaml"]}, "", "engine.yaml differs"),
        ({"differs": ["/etc/sglang-tls/tls.key"]}, "", "tls.key differs"),
        ({"newer": [f"/etc/systemd/system/{UNIT}"]}, "", "written after the engine's start"),
        ({"units": {UNIT: unit(stale=True)}}, "", "changed since systemd loaded it"),
        ({"units": {UNIT: unit(active=False)}}, "", f"{UNIT} is inactive"),
        ({"units": {}}, "", "is missing"),
        (
            {"units": {UNIT: unit(), "sglang@old.service": unit()}},
            "",
            "sglang@old.service is not in the plan",
        ),
        ({}, "driver 590 is installed", "driver 590"),
    ],
)
def test_whatever_the_running_process_does_not_have_stops_it(
    found: dict[str, Any], driver: str, reason: str
) -> None:
    work = work_of("gpu01", DIGEST, PLAN, facts(**found), driver)
    assert work.kind == "switch"
    assert reason in "; ".join(work.reasons)


@pytest.mark.parametrize(
    ("digest", "found"),
    [
        ("bbbbbbbbbbbb", {}),
        (DIGEST, {"record": None, "current": None}),
        (DIGEST, {"differs": ["/etc/systemd/system/sglang.target"]}),
        (DIGEST, {"journal": {"run": "r", "stage": "undrain", "ended": None}}),
        (DIGEST, {"journal": {"run": "r", "stage": "rollback", "ended": "t", "result": "failed"}}),
    ],
)
def test_what_the_process_does_not_read_stops_nothing(digest: str, found: dict[str, Any]) -> None:
    work = work_of("gpu01", digest, PLAN, facts(**found))
    assert (work.kind, work.cost) == ("verify", 0)


def test_behind_a_gateway_a_host_that_was_left_out_of_the_pool_does_not_serve() -> None:
    for journal in (
        {"run": "r", "stage": "post_check", "ended": None},
        {"run": "r", "stage": "rollback", "ended": "t", "result": "failed"},
    ):
        assert work_of("a", DIGEST, PLAN, facts(journal=journal), gateway=True).serving == 0
        assert work_of("a", DIGEST, PLAN, facts(journal=journal)).serving == 1
    soaking = {"run": "r", "stage": "soak", "ended": None}
    assert work_of("a", DIGEST, PLAN, facts(journal=soaking), gateway=True).serving == 1


def test_batches_are_a_canary_a_quarter_and_the_rest() -> None:
    decision = decide(fleet(16), min_ready=1)
    assert [len(batch) for batch in decision.batches] == [1, 4, 11]
    assert sum(decision.batches, ()) == tuple(f"gpu{number:02}" for number in range(1, 17))


def test_default_batches_shrink_to_what_the_floor_allows() -> None:
    # Half of 16 stay: no batch of more than 8.
    assert [len(batch) for batch in decide(fleet(16)).batches] == [1, 4, 8, 3]
    assert [len(batch) for batch in decide(fleet(4), min_ready=3).batches] == [1, 1, 1, 1]


def test_batches_that_were_asked_for_are_refused_instead() -> None:
    decision = decide(fleet(4), batches=["100%"], min_ready=1)
    assert decision.batches == ()
    (refusal,) = decision.refusals
    assert refusal.startswith("gpu01, gpu02, gpu03, gpu04: found 4 replicas of m in service, 0 while")
    assert "make metal_rollout_batches smaller" in refusal


def test_the_advice_is_one_that_helps() -> None:
    smaller = "; make metal_rollout_batches smaller"
    more = "; bring more replicas into service first, or lower metal_rollout_min_ready"
    for hosts, batches, floor, advice in (
        (4, [2], 3, smaller),
        (4, [2], 4, more),  # not one host can be spared
        (2, [1], 2, more),  # no batch is smaller
        (2, None, 2, more),
    ):
        (refusal,) = decide(fleet(hosts), batches=batches, min_ready=floor).refusals
        assert refusal.endswith(advice)


def test_a_floor_that_no_host_can_be_spared_for_is_refused() -> None:
    (refusal,) = decide(fleet(2), min_ready=2).refusals
    assert refusal.startswith(
        "gpu01: found 2 replicas of m in service, 1 while this batch is changed; expected 2"
    )
    assert "lower metal_rollout_min_ready" in refusal


def test_hosts_outside_of_the_run_count() -> None:
    others = [serving("gpu02", "none"), serving("gpu03", "none", serving=0)]
    assert decide(fleet(1), others, min_ready=1).refusals == ()
    assert decide(fleet(1), others, min_ready=2).refusals != ()
    # Half of three is one: gpu02.
    assert decide(fleet(1), others).refusals == ()


def test_hosts_that_serve_nothing_cost_nothing_and_go_first() -> None:
    works = [serving("a"), serving("b", serving=0), serving("c", interrupted=True, serving=0)]
    decision = decide(works, min_ready=1)
    assert decision.batches[0] == ("c",)
    assert sum(decision.batches, ())[1] == "b"
    assert decide([serving("b", serving=0)], min_ready=1).refusals == ()


def test_a_host_that_was_repaired_can_stand_in_for_the_next_one() -> None:
    works = [serving("a"), serving("b", serving=0), serving("c")]
    assert decide(works, min_ready=2).batches == (("b",), ("a",), ("c",))
    # And four hosts that go from two replicas each to one have fewer after each batch.
    fewer = [serving(name, serving=2) for name in "abcd"]
    assert decide(fewer, min_ready=5).refusals[0].startswith("c: found 6 replicas of m in service, 4 while")


def test_each_host_of_each_batch_is_told_what_happens_to_it() -> None:
    works = [
        serving("a", reasons=("x differs", "y differs")),
        serving("b", "verify", reasons=("never checked",)),
        serving("c", "none"),
        serving("d", "none"),
    ]
    assert decide(works, min_ready=0, gateway=True).lines == (
        "batch 1 of 2: a stops and starts: x differs; y differs",
        "batch 2 of 2: b is checked and recorded, nothing stops: never checked",
        "nothing changes on c, d",
    )


def test_a_wish_that_is_refused_plans_nothing() -> None:
    refused = decide([*fleet(1), serving("x", "none")], batches=["0"])
    assert (refused.batches, refused.unchanged, refused.lines, refused.floors) == ((), ("x",), (), {})


def test_a_model_is_not_kept_up_by_replicas_of_another() -> None:
    works = [*fleet(2), serving("x1", "none", ("other",)), serving("x2", "none", ("other",))]
    assert decide(works, min_ready=2).refusals != ()


def test_a_change_of_model_joins_the_old_and_the_new_name() -> None:
    works = [serving(f"a{number}", pools=("old", "new")) for number in range(4)]
    others = [serving("out", "none", ("old",)), serving("in", "none", ("new",)), serving("x", "none", ("x",))]
    pools = pools_of([*works, *others])
    (pool,) = {pools[name] for name in ("a0", "a1", "a2", "a3", "out", "in")}
    assert pool in {"old", "new"}
    assert pools["x"] == "x"
    # Without a host that changes from one to the other they are two.
    assert pools_of(others) == {"out": "old", "in": "new", "x": "x"}
    assert [len(batch) for batch in decide(works).batches] == [1, 1, 2]


def test_unchanged_hosts_are_left_alone_and_named() -> None:
    decision = decide([serving("a", "none"), serving("b")], min_ready=1)
    assert decision.batches == (("b",),)
    assert decision.unchanged == ("a",)
    assert "nothing changes on a" in decision.lines


def test_a_host_that_need_not_stop_costs_nothing() -> None:
    assert decide([serving("a", "verify")], min_ready=1).refusals == ()


def test_a_single_host_without_a_gateway_is_told_its_downtime() -> None:
    work = work_of("gpu01", "bbbbbbbbbbbb", PLAN, facts(differs=[f"/etc/systemd/system/{UNIT}"]))
    lines = decide([work]).lines
    assert any("about 212 s" in line and "up to 600 s" in line for line in lines)
    assert not any("no gateway in front of it" in line for line in decide([work], gateway=True).lines)
    fresh = replace(work, start_seconds=None)
    assert any("up to 1800 s" in line for line in decide([fresh]).lines)


def test_where_an_interrupted_run_stopped_is_said_first() -> None:
    journal = {
        "run": "R1", "kind": "rollout", "started": "T", "stage": "stop", "ended": None,
        "from_release": "0001-x", "to_release": "y",
    }  # fmt: skip
    work = work_of("gpu02", DIGEST, PLAN, facts(journal=journal))
    assert decide([work]).lines[0] == "gpu02: rollout R1, begun T, stopped at stage stop from 0001-x to y"


@pytest.mark.parametrize("wish", [["0"], ["-1"], ["x"], ["0%"], ["101%"], [""], []])
def test_batches_of_no_size_are_refused(wish: list[str]) -> None:
    with pytest.raises(ValueError, match="metal_rollout_batches"):
        batch_sizes(wish, 4)
    assert "metal_rollout_batches" in decide(fleet(2), batches=wish).refusals[0]


def test_the_last_size_repeats() -> None:
    assert batch_sizes([1, "50%"], 8) == [1, 4, 4]
    assert batch_sizes(["10%"], 4) == [1, 1, 1, 1]


def test_floors() -> None:
    assert (floor_of("50%", 3), floor_of(2, 3), floor_of("50%", 1), floor_of("0", 4)) == (1, 2, 0, 0)
    assert (floor_of("100%", 4), batch_sizes(["0.5%"], 4)) == (4, [1, 1, 1, 1])
    with pytest.raises(ValueError, match="metal_rollout_min_ready"):
        floor_of("101%", 4)
    assert decide(fleet(4)).floors == {"m": 2}
    with pytest.raises(ValueError, match="metal_rollout_min_ready half"):
        floor_of("half", 4)


def test_a_share_is_of_what_serves_where_that_is_more_than_is_planned() -> None:
    """Four hosts go from two replicas each to one: half of the eight that clients have now is four."""
    works = [serving(name, serving=2) for name in "abcd"]
    assert Capacity.of(works, "50%").floors == {"m": 4}
    # And of what is planned where that is more: three of four hosts are down.
    works = [serving("a"), *(serving(name, serving=0) for name in "bcd")]
    assert Capacity.of(works, "50%").floors == {"m": 2}


def test_before_each_batch_what_is_in_service_now_counts() -> None:
    works = [serving("a"), serving("b", serving=0), serving("c")]
    assert no_room(works, ["a"], 1) == []
    (line,) = no_room(works, ["a"], 2)
    assert line.startswith("a: found 2 replicas of m in service now, 1 without this batch; expected 2")
    # Half stays where nothing else is asked for.
    assert no_room(fleet(4), ["gpu01", "gpu02"], None) == []
    assert no_room(fleet(4), ["gpu01", "gpu02", "gpu03"], None) != []
    (nameless,) = no_room([serving("a", pools=("",))], ["a"], 1)
    assert "found 1 replicas of the fleet in service now" in nameless


def test_a_host_that_can_not_be_reached_serves_nothing() -> None:
    assert outsider("gone", None).serving == 0
    assert outsider("there", facts()).serving == 1
    assert Capacity.of([outsider("there", facts())], "50%").floors == {"MiniMaxAI/MiniMax-M2.5": 0}


def test_work_survives_ansible() -> None:
    work = work_of("gpu01", "bbbbbbbbbbbb", PLAN, facts())
    data = {
        name: list(value) if isinstance(value, tuple) else value for name, value in work.as_dict().items()
    }
    assert Work.from_dict(data) == work


def test_gateways_drain_what_the_recorded_release_serves() -> None:
    """Another port, TLS or count: before, URLs were drained that no gateway knew yet."""
    plan = Plan.of_record({"services": [{"unit": UNIT, "worker_url": "https://gpu01:9000"}]})
    facts = {"record": {"workers": ["http://gpu01:8000", "http://gpu01:8001"]}}
    assert gateway_workers(facts, plan) == ["http://gpu01:8000", "http://gpu01:8001", "https://gpu01:9000"]
    assert gateway_workers({"record": None}, plan) == ["https://gpu01:9000"]
    assert gateway_workers({"record": {"workers": ["https://gpu01:9000"]}}, plan) == ["https://gpu01:9000"]


ODD: list[Any] = [None, 7, "x", [], {"units": 3}, {"units": {"sglang@a.service": None}}, {"journal": "x"},
                  {"record": [1]}, {"record": {"units": 3, "workers": {}}}, {"differs": 5, "newer": {"a": 1}},
                  {"units": {"u": {"active": "yes", "start_seconds": "long"}}}]  # fmt: skip


@pytest.mark.parametrize("facts", ODD, ids=repr)
def test_what_one_host_answers_decides_nothing_for_others(facts: Any) -> None:
    """Before, an answer of another shape was a traceback that ended the rollout of all."""
    good = fleet(1)[0]
    odd = work_of("gpu02", "digest", Plan.of_record({}), facts)
    assert decide([good, odd, outsider("gpu03", facts)], []).refusals is not None
    assert serving_of(facts, gateway=True) == 0


def test_no_escape_of_a_host_stands_in_what_a_rollout_says() -> None:
    journal = {"run": "\x1b[2Jr", "ended": "now", "result": "failed", "message": "a\nb\x9b"}
    assert standing("gpu01", journal) == "gpu01: rollout r failed from no release to None: a b"

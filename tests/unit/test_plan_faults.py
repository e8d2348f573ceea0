"""Known faults of the catalogue: which plans meet them, and that an overlay's are checked."""

from __future__ import annotations

import pytest

from minimax_metal.catalog import load_catalog
from minimax_metal.errors import UserError
from tests.unit.plan_helpers import decide


def faults(plan):
    return {one.code for one in plan.warnings if one.code.startswith("fault-")}


@pytest.mark.parametrize(
    ("gpu", "count", "variables", "expected"),
    [
        # sgl-project/sglang issue 20820: fa3 is what the engine takes on Hopper by itself.
        ("H100", 8, {"kv_cache_dtype": "fp8_e4m3"}, {"fault-m2-fp8-kv-fa3"}),
        (
            "H20",
            4,
            {"kv_cache_dtype": "fp8_e4m3", "engine_extra_args": ["--attention-backend=fa3"]},
            {"fault-m2-fp8-kv-fa3"},
        ),
        (
            "H100",
            8,
            {"kv_cache_dtype": "fp8_e4m3", "engine_extra_args": ["--attention-backend", "triton"]},
            set(),
        ),
        ("H100", 8, {"kv_cache_dtype": "fp8_e4m3", "engine_release": "0.5.4.post1"}, set()),
        ("H100", 8, {"kv_cache_dtype": "fp8_e5m2"}, set()),
        ("B200", 8, {"kv_cache_dtype": "fp8_e4m3"}, set()),
        # sgl-project/sglang issues 18875 and 13471.
        ("A100", 8, {}, {"fault-m2-fp8-ampere"}),
        # sgl-project/sglang issue 23265.
        ("H100", 8, {"tp_size": 8, "ep_size": 1}, {"fault-m2-fp8-tp8-without-ep"}),
        ("H100", 8, {"engine_extra_args": ["--moe-a2a-backend", "deepep"]}, {"fault-m2-deepep"}),
    ],
)
def test_a_plan_says_which_known_faults_it_meets(gpu, count, variables, expected):
    assert faults(decide(gpu, count, model="MiniMax-M2.5", **variables)) == expected


def test_the_usual_plans_on_hopper_meet_none():
    for model in ("MiniMax-M2", "MiniMax-M2.1", "MiniMax-M2.5", "MiniMax-M2.7", "MiniMax-M3"):
        for gpu in ("H20", "H100", "H200"):
            assert not faults(decide(gpu, 8, model=model))


OWN = {
    "what": "it fails",
    "where": {"gpus": ["H100"]},
    "severity": "refusal",
    "confidence": "R",
    "source": "a thread",
    "instead": "use another GPU",
}


def test_a_refusal_of_an_overlay_is_lifted_by_its_code():
    catalog = load_catalog([{"faults": {"mine": OWN}}])
    plan = decide("H100", 8, catalog=catalog, model="MiniMax-M2.5")
    assert [one.code for one in plan.refusals] == ["fault-mine"]
    assert "a thread" in plan.refusals[0].found
    lifted = decide("H100", 8, catalog=catalog, model="MiniMax-M2.5", accept_refusals=["fault-mine"])
    assert lifted.fits
    assert not decide("H200", 8, catalog=catalog, model="MiniMax-M2.5").refusals


@pytest.mark.parametrize(
    "wrong", [{"severity": "bad"}, {"where": {"gpu": ["H100"]}}, {"source": ""}, {"where": {"tp": ["x"]}}]
)
def test_a_fault_that_is_written_wrongly_is_one_line(wrong):
    with pytest.raises(UserError) as error:
        load_catalog([{"faults": {"mine": OWN | wrong}}])
    assert "faults.mine" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [("H100", False), ("B200", True)],  # sgl-project/sglang issue 20820 is of Hopper
)
def test_what_is_known_to_break_is_not_recommended(gpu, expected):
    plan = decide(gpu, 8, model="MiniMax-M2.5", mem_fraction_static=0.4 if gpu == "H100" else 0.17)
    said = next(one.message for one in plan.warnings if one.code == "short-sequence")
    assert ("fp8_e4m3" in said) is expected

"""Known errors in the catalogue: which plans they affect, and the validation of an overlay's."""

from __future__ import annotations

from typing import Any

import pytest

from minimax_metal.catalog import load_catalog, packaged_catalog
from minimax_metal.common.errors import UserError
from minimax_metal.plan import Plan
from tests.unit.plan_helpers import decide, there


def faults(plan: Plan) -> set[str]:
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
def test_a_plan_says_which_known_faults_it_meets(
    gpu: str, count: int, variables: dict[str, Any], expected: set[str]
) -> None:
    assert faults(decide(gpu, count, model="MiniMax-M2.5", **variables)) == expected


def test_the_usual_plans_on_hopper_meet_none() -> None:
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


def test_a_refusal_of_an_overlay_is_lifted_by_its_code() -> None:
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
def test_a_fault_that_is_written_wrongly_is_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError) as error:
        load_catalog([{"faults": {"mine": OWN | wrong}}])
    assert "faults.mine" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [("H100", False), ("B200", True)],  # sgl-project/sglang issue 20820 is of Hopper
)
def test_what_is_known_to_break_is_not_recommended(gpu: str, expected: bool) -> None:
    plan = decide(gpu, 8, model="MiniMax-M2.5", mem_fraction_static=0.4 if gpu == "H100" else 0.17)
    said = next(one.message for one in plan.warnings if one.code == "short-sequence")
    assert ("fp8_e4m3" in said) is expected


@pytest.mark.parametrize(
    ("model", "gpu", "variables", "expected"),
    [
        # sgl-project/sglang issue 18870: 0.5.10.post1 takes Triton kernels by itself
        (
            "M2.5",
            "RTX PRO 6000",
            {"model_format": "fp8", "engine_release": "0.5.4.post1"},
            {"fault-m2-fp8-sm120"},
        ),
        ("M2.5", "RTX PRO 6000", {"model_format": "fp8"}, set()),
        # local-inference-lab/rtx6kpro models/minimax-m25.md
        ("M2.5", "RTX PRO 6000", {"model_format": "nvfp4"}, {"fault-m2-nvfp4-sm120"}),
        ("M2.7", "RTX PRO 5000", {"model_format": "nvfp4"}, {"fault-m2-nvfp4-sm120"}),
        (
            "M2.5",
            "RTX PRO 6000",
            {
                "model_format": "nvfp4",
                "engine_extra_args": ["--moe-runner-backend", "flashinfer_cutlass"],
            },
            set(),
        ),
        ("M2.5", "B200", {"model_format": "nvfp4"}, set()),
        # issue 18785
        (
            "M2.5",
            "H200",
            {"engine_extra_args": ["--enable-hierarchical-cache"]},
            {"fault-m2-hierarchical-cache"},
        ),
        # issue 23071
        (
            "M2.7",
            "H200",
            {"engine_extra_args": ["--stream-interval", "4"]},
            {"fault-m2-streamed-calls-mixed"},
        ),
        (
            "M2.5",
            "H200",
            {"engine_extra_args": ["--speculative-algorithm", "EAGLE3"]},
            {"fault-m2-speculative-calls-mixed"},
        ),
        ("M3", "H200", {"engine_extra_args": ["--stream-interval", "4"]}, set()),
        # arg_groups/model_overrides/minimax_m3.py
        (
            "M3",
            "H200",
            {"engine_extra_args": ["--moe-runner-backend", "deep_gemm"]},
            {"fault-m3-bf16-deep-gemm"},
        ),
        (
            "M3",
            "B300",
            {"engine_extra_args": ["--speculative-algorithm", "EAGLE3"]},
            {"fault-m3-msa-speculative"},
        ),
        (
            "M3",
            "B300",
            {"engine_extra_args": ["--speculative-algorithm=EAGLE3", "--disable-cuda-graph"]},
            set(),
        ),
    ],
)
def test_known_faults_of_gpus_and_flags(
    model: str, gpu: str, variables: dict[str, Any], expected: set[str]
) -> None:
    assert faults(decide(gpu, 8, model=model, **variables)) == expected


@pytest.mark.parametrize(
    ("model", "gpu", "variables", "code"),
    [
        ("M3.1", "B200", {"kv_cache_dtype": "bfloat16"}, "fault-m31-kv-dtype-blackwell"),
        ("M3.1", "H20", {"engine_extra_args": ["--page-size", "64"]}, "fault-m31-page-size"),
        (
            "M2.5",
            "H200",
            {
                "engine_extra_args": ["--dp-size", "4", "--enable-dp-attention"],
                "engine_release": "0.5.10.post1",
            },
            "fault-m2-dp-attention",
        ),
    ],
)
def test_what_ends_the_engine_is_refused_with_its_source(
    model: str, gpu: str, variables: dict[str, Any], code: str
) -> None:
    (refusal,) = [one for one in decide(gpu, 8, model=model, **variables).refusals if one.code == code]
    assert "minimax" in refusal.found
    assert not [one for one in decide(gpu, 8, model=model).refusals if one.code == code]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"profile": "guide"}, 2),
        ({"tool_call_parser": "minimax-m2"}, 1),
        ({"reasoning_parser": "minimax"}, 1),
        ({}, 0),
    ],
)
def test_the_parsers_of_m2_are_known_not_to_read_m3(variables: dict[str, Any], expected: int) -> None:
    plan = decide("H200", 8, model="M3", **variables)
    assert sum(one.code == "guide-parsers" for one in plan.warnings) == expected
    # On a host that it does not fit, too.
    plan = decide("H20", 4, model="M3", **variables)
    assert sum(one.code == "guide-parsers" for one in plan.warnings) == expected


def test_a_format_that_a_fault_forbids_is_not_chosen_but_taken_where_it_is_asked_for() -> None:
    where = {"formats": ["mxfp8"], "capabilities": ["10.0"]}
    catalog = load_catalog([{"faults": {"mine": OWN | {"where": where}}}])
    before, after = (decide("B200", 8, model="M3", catalog=one) for one in (None, catalog))
    assert there(before.model).format == "mxfp8"
    assert there(after.model).format != "mxfp8"
    assert after.fits
    asked = decide("B200", 8, model="M3", model_format="mxfp8", catalog=catalog)
    assert [one.code for one in asked.refusals] == ["fault-mine"]
    assert there(asked.model).format == "mxfp8"
    # Flags count as well: what only a flag breaks is chosen without the flag.
    flagged = OWN | {"where": where | {"arguments": {"--page-size": ["any"]}}}
    catalog = load_catalog([{"faults": {"mine": flagged}}])
    assert there(decide("B200", 8, model="M3", catalog=catalog).model).format == "mxfp8"
    with_flag = decide("B200", 8, model="M3", catalog=catalog, engine_extra_args=["--page-size", "64"])
    assert there(with_flag.model).format != "mxfp8"


def test_no_model_is_recommended_that_a_fault_forbids() -> None:
    first = decide("H20", 4, model="M3").refusals[0].remedy
    assert "MiniMax-M3.1-Flash fits this host" in first
    catalog = load_catalog([{"faults": {"mine": OWN | {"where": {"models": ["MiniMax-M3.1-Flash"]}}}}])
    other = decide("H20", 4, model="M3", catalog=catalog).refusals[0].remedy
    assert "M3.1" not in other
    assert "fits this host" in other
    # What is refused by a fault is sent to what fits.
    here = decide("H20", 4, model="M3.1", catalog=catalog)
    assert any(one.code == "fault-mine" and "fits this host" in one.remedy for one in here.refusals)


@pytest.mark.parametrize("name", packaged_catalog().faults)
def test_every_fault_has_a_source_and_a_remedy(name: str) -> None:
    fault = packaged_catalog().faults[name]
    assert any(word in fault.source for word in ("issue", "SGLang", "guide", "models/"))
    assert fault.instead
    place = fault.where
    assert set(place.models) <= set(packaged_catalog().models)
    assert set(place.gpus) <= set(packaged_catalog().gpus)
    assert place.families or place.models

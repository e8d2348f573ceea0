"""MiniMax-M3.1-Flash: where it runs, its capacity, what is refused and why."""

from __future__ import annotations

import re
from typing import Any

import pytest

from minimax_metal.catalog import packaged_catalog
from tests.unit.plan_helpers import codes, decide, flag, there, warned


@pytest.mark.parametrize(
    "name",
    ["M3.1", "m3.1", "MiniMax-M3.1", "MiniMax-M3.1-Flash", "M3.1-Flash", "MiniMaxAI/MiniMax-M3.1-Flash"],
)
def test_every_usual_spelling_names_it(name: str) -> None:
    result = decide("H20", 4, model=name)
    assert result.model is not None
    assert result.model.name == "MiniMax-M3.1-Flash"
    assert result.model.served_name == "MiniMaxAI/MiniMax-M3.1-Flash"


@pytest.mark.parametrize(("gpu", "count"), [("H20", 4), ("H20", 8), ("H100", 4), ("H100", 8), ("H200", 8)])
def test_hopper_serves_it_with_what_the_engine_chooses_itself(gpu: str, count: int) -> None:
    result = decide(gpu, count, model="M3.1")
    assert result.fits
    assert "gpu-unproven" not in warned(result)
    assert flag(result, "--tool-call-parser") == flag(result, "--reasoning-parser") == "minimax-m3"
    assert result.service is not None
    # Marlin, fa3 and page size 128 are the engine's own choice (arg_groups/model_overrides/minimax_m3.py).
    ours = {"--page-size", "--moe-runner-backend", "--attention-backend", "--quantization"}
    assert not ours & set(result.service.argv)


@pytest.mark.parametrize(("count", "copies"), [(4, 1), (8, 2)])
def test_capacity_counts_index_keys_of_every_layer(count: int, copies: int) -> None:
    result = decide("H100", count, model="M3.1", layout="tp8" if count == 8 else "tp4")
    each = 60 * 2 * 128 * 2 + 60 * 128 * 2  # one KV head of each GPU, and the whole index
    assert result.capacity is not None
    assert result.capacity.kv_bytes_per_token == each * count == 184_320 * copies
    assert result.capacity.max_sequence == there(result.capacity.kv_tokens_per_replica) < 1_048_576


@pytest.mark.parametrize("gpu", ["B200", "B300", "GB200"])
def test_blackwell_is_refused_with_what_it_wants(gpu: str) -> None:
    result = decide(gpu, 4, model="M3.1")
    (refusal,) = [one for one in result.refusals if one.code == "engine-kernels"]
    assert "CUDA 13.4" in refusal.needed
    assert "fmha_sm100" in refusal.needed
    lifted = decide(gpu, 4, model="M3.1", accept_refusals=["engine-kernels"])
    assert lifted.fits
    assert "gpu-unproven" in warned(lifted)


@pytest.mark.parametrize("gpu", ["A100", "L40S", "RTX PRO 6000"])
def test_other_generations_are_refused(gpu: str) -> None:
    assert "format-gpu" in codes(decide(gpu, 8, model="M3.1"))


def test_an_engine_without_it_is_refused() -> None:
    assert codes(decide("H100", 8, model="M3.1", engine_release="0.5.16"))


def test_the_draft_belongs_to_the_checkpoint() -> None:
    (checkpoint,) = packaged_catalog().models["MiniMax-M3.1-Flash"].values()
    assert checkpoint.draft is not None
    assert checkpoint.bytes.value - checkpoint.weight_memory_bytes.value >= checkpoint.draft.bytes.value


@pytest.mark.parametrize(
    ("model", "gpu", "count", "code", "other"),
    [
        ("M3", "H20", 4, "memory", "MiniMax-M3.1-Flash"),
        ("M3", "H100", 8, "memory", "MiniMax-M3.1-Flash"),
        ("M3.1", "B200", 8, "engine-kernels", "MiniMax-M3"),
        ("M3.1", "A100", 8, "format-gpu", "MiniMax-M2.7"),
    ],
)
def test_a_refusal_names_the_model_that_fits(model: str, gpu: str, count: int, code: str, other: str) -> None:
    result = decide(gpu, count, model=model)
    (refusal,) = [one for one in result.refusals if one.code == code]
    assert f"{other} fits this host" in refusal.remedy
    assert decide(gpu, count, model=other).fits


@pytest.mark.parametrize(("model", "gpu", "count"), [("M3", "H20", 8), ("M3", "H200", 4), ("M2.5", "L20", 4)])
def test_a_refusal_names_hosts_that_the_model_fits(model: str, gpu: str, count: int) -> None:
    result = decide(gpu, count, model=model)
    (refusal,) = [one for one in result.refusals if one.code == "memory"]
    said = re.search(rf"{result.model.name} fits ([^;]+)", refusal.remedy) if result.model else None
    assert said is not None
    named = re.findall(r"(\d+) x ([\w-]+)", said[1])
    assert 1 <= len(named) <= 4
    for number, name in named:
        assert decide(name, int(number), model=model).fits


def test_hosts_of_the_same_generation_are_named_first_and_only_ones_that_are_built() -> None:
    (refusal,) = [one for one in decide("H20", 8, model="M3").refusals if one.code == "memory"]
    assert "MiniMax-M3 fits 8 x H20-3e, 8 x H200" in refusal.remedy
    assert "GH200" not in refusal.remedy  # a Grace CPU carries one GPU


def test_no_host_is_named_for_an_engine_that_can_not_serve_the_model() -> None:
    result = decide("H20", 4, model="M3.1", engine_release="0.5.16")
    assert not any("M3.1-Flash fits" in one.remedy for one in result.refusals)


def test_no_model_is_named_where_none_fits() -> None:
    (refusal,) = decide("L40S", 4, model="M2.5").refusals
    assert "fits this host" not in refusal.remedy


def test_what_the_user_set_for_one_model_does_not_spoil_another() -> None:
    result = decide("H20", 4, model="M3", model_format="bf16", mem_fraction_static=0.4)
    assert any("MiniMax-M3.1-Flash fits this host" in one.remedy for one in result.refusals)


def test_an_older_engine_is_not_sent_to_what_it_can_not_serve() -> None:
    result = decide("H20", 4, model="M3", engine_release="0.5.16")
    assert not any("M3.1" in one.remedy for one in result.refusals)


@pytest.mark.parametrize(
    "asked",
    [
        {"speculative_draft": True},
        {"engine_extra_args": ["--speculative-algorithm", "DSPARK"]},
        {"engine_extra_args": ["--speculative-algorithm=DSPARK"]},
    ],
)
def test_the_draft_is_refused_where_the_engine_refuses_it(asked: dict[str, Any]) -> None:
    (refusal,) = decide("H200", 8, model="M3.1", **asked).refusals
    assert refusal.code == "speculative"
    assert "Blackwell" in refusal.needed


def test_the_draft_on_blackwell() -> None:
    asked: dict[str, Any] = {"model": "M3.1", "accept_refusals": ["engine-kernels"]}
    plain, result = decide("B200", 4, **asked), decide("B200", 4, speculative_draft=True, **asked)
    assert result.fits
    assert "speculative-unproven" in warned(result)
    assert flag(result, "--speculative-algorithm") == "DSPARK"
    assert result.service is not None
    assert result.service.environment["SGLANG_RAGGED_VERIFY_MODE"] == "static"
    assert result.capacity is not None
    assert plain.capacity is not None
    assert result.capacity.weights_bytes - plain.capacity.weights_bytes == 2_302_000_000


def test_a_model_without_a_draft_refuses_it() -> None:
    assert codes(decide("H200", 8, model="M2.5", speculative_draft=True)) == {"speculative"}


@pytest.mark.parametrize(
    ("gpu", "asked", "code"),
    [
        ("B200", {"kv_cache_dtype": "bfloat16"}, "fault-m31-kv-dtype-blackwell"),
        ("B200", {"engine_extra_args": ["--kv-cache-dtype=bfloat16"]}, "fault-m31-kv-dtype-blackwell"),
        ("B200", {"speculative_draft": True, "engine_extra_args": ["--pp-size", "2"]}, "speculative"),
        ("B200", {"engine_extra_args": ["--speculative-algorithm", "EAGLE3"]}, "speculative"),
        ("H200", {"engine_extra_args": ["--speculative-algorithm=EAGLE3"]}, "speculative"),
        ("H200", {"engine_extra_args": ["--speculative-algorithm", "DFLASH"]}, "speculative"),
        ("H200", {"engine_extra_args": ["--page-size", "64"]}, "fault-m31-page-size"),
    ],
)
def test_what_the_engine_refuses_at_its_start_is_refused_here(
    gpu: str, asked: dict[str, Any], code: str
) -> None:
    # tests/contract/test_m31_arguments.py holds the same against the engine's own rules.
    assert codes(decide(gpu, 8, model="M3.1", accept_refusals=["engine-kernels"], **asked)) == {code}


@pytest.mark.parametrize("dtype", ["auto", "fp8_e4m3"])
def test_a_packed_cache_takes_no_other_type(dtype: str) -> None:
    assert decide("B200", 8, model="M3.1", kv_cache_dtype=dtype, accept_refusals=["engine-kernels"]).fits


def test_a_type_of_the_cache_by_its_flag_counts_as_its_setting_does() -> None:
    by_flag = decide("H200", 8, model="M3", engine_extra_args=["--kv-cache-dtype", "fp8_e4m3"]).capacity
    by_setting = decide("H200", 8, model="M3", kv_cache_dtype="fp8_e4m3").capacity
    assert by_flag == by_setting

"""KV capacity: values computed by hand from the engine's formula, and the messages if it is short."""

from __future__ import annotations

from typing import Any

import pytest

from minimax_metal.catalog import load_catalog, packaged_catalog
from minimax_metal.plan import Plan, Settings, plan
from minimax_metal.plan.kv_cache import bytes_per_token
from minimax_metal.plan.what_if import what_if_facts

CATALOG = packaged_catalog()
M2, M3 = CATALOG.models["MiniMax-M2.5"]["fp8"], CATALOG.models["MiniMax-M3"]["bf16"]


def decide(gpu: str, count: int, **settings: Any) -> Plan:
    wanted = Settings.from_variables("what-if", {f"metal_{key}": value for key, value in settings.items()})
    return plan(wanted, what_if_facts(gpu, count, CATALOG.platforms["debian12"], CATALOG), CATALOG)


@pytest.mark.parametrize(
    ("model", "tp", "dtype", "capability", "expected"),
    [
        (M2, 1, "auto", "9.0", 62 * 2 * 8 * 128 * 2),
        (M2, 8, "bfloat16", "9.0", 253952),
        (M2, 16, "auto", "9.0", 2 * 253952),
        (M2, 4, "fp8_e5m2", "8.9", 126976),
        (M3, 4, "auto", "9.0", 181248),
        (M3, 8, "bfloat16", "10.0", 362496),
        (M3, 8, "fp8_e4m3", "9.0", 181248),
        (M3, 16, "fp8_e4m3", "10.3", 362496),
        # Two KV heads on each rank, the index keys on both.
        (M3, 2, "auto", "9.0", 2 * (60 * 2 * 2 * 128 * 2 + 57 * 128 * 2)),
        (M3, 1, "auto", "9.0", 60 * 2 * 4 * 128 * 2 + 57 * 128 * 2),
        # Elsewhere the index keys stay in bfloat16.
        (M3, 4, "fp8_e4m3", "12.0", 4 * (60 * 2 * 128 + 57 * 128 * 2)),
    ],
)
def test_bytes_of_a_token_on_all_gpus(
    model: Any, tp: int, dtype: str, capability: str, expected: int
) -> None:
    assert bytes_per_token(model, tp, dtype, capability) == expected


def test_an_older_engine_keeps_index_keys_in_the_models_own_type() -> None:
    # model_executor/pool_configurator.py of SGLang 0.5.16: indexer_dtype_size is that of model_dtype.
    old = decide("H200", 8, model="M3", kv_cache_dtype="fp8_e4m3", engine_release="0.5.16").capacity
    assert old is not None
    assert old.kv_bytes_per_token == 8 * (60 * 2 * 128 + 57 * 128 * 2)
    plain = decide("H200", 8, model="M3", engine_release="0.5.16").capacity
    assert plain is not None
    assert plain.kv_bytes_per_token == 362496


def test_a_packed_pool_takes_half_a_byte_a_number_and_the_scales() -> None:
    entry = {"packed_kv_generations": ["10.0"], "sparse_layers": 60}
    catalog = load_catalog([{"models": {"MiniMax-M3": {"formats": {"bf16": entry}}}}])
    one = catalog.models["MiniMax-M3"]["bf16"]
    assert bytes_per_token(one, 4, "auto", "10.0") == 4 * 12960
    assert bytes_per_token(one, 4, "auto", "9.0") == 184320


def test_a_figure_of_the_users_own_goes_before_the_formula() -> None:
    catalog = load_catalog([{"models": {"MiniMax-M3": {"formats": {"bf16": {"kv_bytes_per_token": 1000}}}}}])
    assert bytes_per_token(catalog.models["MiniMax-M3"]["bf16"], 8, "fp8_e4m3", "9.0") == 1000


@pytest.mark.parametrize(
    ("gpu", "count", "settings", "thousands"),
    [
        ("H200", 8, {}, 137),
        ("H200", 8, {"kv_cache_dtype": "fp8_e4m3"}, 273),
        ("H200", 8, {"mem_fraction_static": 0.85}, 469),
        ("B200", 8, {"model_format": "mxfp8"}, 1530),
    ],
)
def test_capacity_of_m3(gpu: str, count: int, settings: dict[str, Any], thousands: int) -> None:
    capacity = decide(gpu, count, model="M3", **settings).capacity
    assert capacity is not None
    assert capacity.kv_tokens == pytest.approx(thousands * 1000, rel=0.005)
    assert capacity.kv_tokens is not None
    assert capacity.kv_tokens % 128 == 0  # whole pages
    assert capacity.max_sequence <= capacity.kv_tokens


def test_a_short_cache_says_what_holds_more() -> None:
    made = decide("H200", 8, model="M3")
    said = next(one.message for one in made.warnings if one.code == "short-sequence")
    assert "136576 tokens" in said
    assert "metal_kv_cache_dtype: fp8_e4m3 holds 273152" in said
    assert "metal_mem_fraction_static: 0.85 holds 469248" in said
    assert "GPUs with more memory hold more" in said
    assert "each additional host holds the same again" in said
    assert "metal_model_format" not in said  # no other format of M3 runs on Hopper
    narrow = decide("H200", 8, model="M3", kv_cache_dtype="fp8_e4m3", mem_fraction_static=0.8)
    said = next((one.message for one in narrow.warnings if one.code == "short-sequence"), "")
    assert "fp8_e4m3" not in said


def test_a_short_cache_names_the_formats_that_hold_more_with_figures() -> None:
    made = decide("B200", 8, model="M3", model_format="bf16", mem_fraction_static=0.65)
    said = next(one.message for one in made.warnings if one.code == "short-sequence")
    for other in ("mxfp8", "nvfp4"):
        holds = decide("B200", 8, model="M3", model_format=other, mem_fraction_static=0.65).capacity
        assert holds is not None
        assert f"metal_model_format: {other} holds {holds.kv_tokens}" in said


def test_what_holds_more_counts_the_draft_too() -> None:
    asked = {"model": "M3.1", "speculative_draft": True, "accept_refusals": ["engine-kernels"]}
    made = decide("B200", 4, mem_fraction_static=0.36, **asked)
    said = next(one.message for one in made.warnings if one.code == "short-sequence")
    wide = decide("B200", 4, mem_fraction_static=0.85, **asked).capacity
    assert wide is not None
    assert f"metal_mem_fraction_static: 0.85 holds {wide.kv_tokens}," in said


@pytest.mark.parametrize(
    "words",
    [
        ["--max-total-tokens", "8192"],
        ["--max-total-tokens=8192"],
        ["--max-total-tokens", "9", "--max-total-tokens", "8192"],
    ],
)
def test_a_bound_of_the_users_own_is_no_less_true(words: list[str]) -> None:
    capacity = decide("H20", 4, model="M2.5", engine_extra_args=words).capacity
    assert capacity is not None
    assert (capacity.kv_tokens, capacity.max_sequence) == (8192, 8192)


def test_a_shorter_context_bounds_a_sequence_and_not_the_cache() -> None:
    plain = decide("H20", 4, model="M2.5").capacity
    short = decide("H20", 4, model="M2.5", engine_extra_args=["--context-length", "32768"]).capacity
    longer = decide("H20", 4, model="M2.5", engine_extra_args=["--context-length", "99999999"]).capacity
    assert plain is not None
    assert short is not None
    assert longer is not None
    assert (short.kv_tokens, short.max_sequence) == (plain.kv_tokens, 32768)
    assert longer.max_sequence == plain.max_sequence


@pytest.mark.parametrize("word", ["", "many", "-5", "0", "9" * 30, "9" * 5_000, "٣"])
def test_a_bound_that_is_none_changes_nothing(word: str) -> None:
    plain = decide("H20", 4, model="M2.5").capacity
    capacity = decide("H20", 4, model="M2.5", engine_extra_args=[f"--max-total-tokens={word}"]).capacity
    assert plain is not None
    assert capacity is not None
    assert capacity.kv_tokens == plain.kv_tokens


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"engine_extra_args": ["--pp-size", "2"]}, ["--pp-size"]),
        (
            {"engine_extra_args": ["--attn-dp-size=4", "--enable-dp-attention"]},
            ["--attn-dp-size", "--enable-dp-attention"],
        ),
        ({"engine_extra_args": ["--speculative-algorithm", "EAGLE3"]}, ["--speculative-algorithm"]),
    ],
)
def test_what_the_capacity_does_not_count_is_said(settings: dict[str, Any], named: list[str]) -> None:
    said = [
        one.message
        for one in decide("H20", 4, model="M2.5", **settings).warnings
        if one.code == "kv-not-counted"
    ]
    assert len(said) == 1
    assert all(name in said[0] for name in named)
    assert not [one for one in decide("H20", 4, model="M2.5").warnings if one.code == "kv-not-counted"]


def test_the_drafts_own_cache_is_not_counted() -> None:
    made = decide("B200", 4, model="M3.1", speculative_draft=True, accept_refusals=["engine-kernels"])
    said = next(one.message for one in made.warnings if one.code == "kv-not-counted")
    assert "metal_speculative_draft" in said

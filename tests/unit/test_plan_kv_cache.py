"""KV capacity: figures computed by hand from the engine's formula, and what is said when it is short."""

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
    assert capacity.kv_tokens % 128 == 0  # whole pages
    assert capacity.max_sequence <= capacity.kv_tokens


def test_a_short_cache_says_what_holds_more() -> None:
    made = decide("H200", 8, model="M3")
    said = next(one.message for one in made.warnings if one.code == "short-sequence")
    assert "136576 tokens" in said
    assert "metal_kv_cache_dtype: fp8_e4m3 holds 273152" in said
    assert "metal_mem_fraction_static: 0.85 holds 469248" in said
    narrow = decide("H200", 8, model="M3", kv_cache_dtype="fp8_e4m3", mem_fraction_static=0.8)
    said = next((one.message for one in narrow.warnings if one.code == "short-sequence"), "")
    assert "fp8_e4m3" not in said

"""Properties of every plan, for any request."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from minimax_metal.catalog import packaged_catalog
from minimax_metal.plan import Plan, Settings, parse_facts, plan
from tests.unit.plan_helpers import MIB, raw_host, there

CATALOG = packaged_catalog()
FORMATS = sorted({name for formats in CATALOG.models.values() for name in formats})

variables = st.fixed_dictionaries(
    {"metal_model": st.sampled_from([*CATALOG.models, "MiniMax-M9"])},
    optional={
        "metal_model_format": st.sampled_from([*FORMATS, "int4"]),
        "metal_mem_fraction_static": st.one_of(st.floats(-1, 2), st.just(float("nan"))),
        "metal_tp_size": st.integers(-1, 17),
        "metal_ep_size": st.integers(-1, 17),
        "metal_layout": st.sampled_from(["tp8", "tp4", "2xtp4", "x"]),
        "metal_kv_cache_dtype": st.sampled_from(["auto", "bfloat16", "fp8_e4m3", "fp4"]),
        "metal_profile": st.sampled_from(["default", "fast", "guide", "x"]),
        "metal_port": st.integers(-1, 70000),
        "metal_engine_release": st.sampled_from([*CATALOG.engines, "9.9"]),
        "metal_driver_branch": st.sampled_from(["535", "570", "580", "590", "620", "x"]),
        "metal_cuda_compat": st.booleans(),
        "metal_open_modules": st.booleans(),
        "metal_metrics": st.booleans(),
        "metal_max_running_requests": st.integers(-1, 5000),
        "metal_tokens_per_request": st.integers(-1, 10**6),
        "metal_engine_extra_args": st.lists(
            st.sampled_from(["--tp", "4", "--device", "cpu", "--enable-metrics", "--api-key=x", "--"]),
            max_size=4,
        ),
        "metal_accept_refusals": st.lists(
            st.sampled_from(["gpu-count", "memory", "parallelism", "gpu-unknown", "duplicate-flag"]),
            max_size=3,
        ),
    },
)
plausible = st.fixed_dictionaries(
    {"metal_model": st.sampled_from(list(CATALOG.models))},
    optional={
        "metal_mem_fraction_static": st.floats(0.7, 0.95),
        "metal_kv_cache_dtype": st.sampled_from(["auto", "bfloat16", "fp8_e4m3"]),
        "metal_layout": st.sampled_from(["tp8", "2xtp4"]),
        "metal_metrics": st.booleans(),
        "metal_max_running_requests": st.integers(1, 5000),
        "metal_tokens_per_request": st.integers(1, 10**6),
        "metal_engine_extra_args": st.just(["--device", "cpu", "--enable-metrics"]),
    },
)
good_hosts = st.builds(
    raw_host,
    gpu=st.sampled_from(["H20", "H200", "H100"]),
    count=st.just(8),
    platform=st.sampled_from(["debian12", "debian13", "ubuntu2204", "ubuntu2404"]),
    driver=st.sampled_from([None, "595.71.05"]),
)
hosts = st.builds(
    raw_host,
    gpu=st.sampled_from(list(CATALOG.gpus)),
    count=st.integers(0, 17),
    platform=st.sampled_from(["debian12", "debian13", "ubuntu2204", "ubuntu2404"]),
    driver=st.sampled_from([None, "580.126.20", "535.161.08", "590.48.01", "640.10.01"]),
    memory_mib=st.one_of(st.none(), st.integers(1, 300_000)),
)


def decide(named: dict[str, Any], raw: dict[str, Any] | None) -> Plan:
    return plan(Settings.from_variables("gpu01", named), parse_facts(raw), CATALOG)


@given(plausible, good_hosts)
@settings(max_examples=100, deadline=None)
def test_what_fits_keeps_its_promises(named: dict[str, Any], raw: dict[str, Any]) -> None:
    result = decide(named, raw)
    promises(named, result)
    assert result.fits or {one.code for one in result.refusals} == {"memory"}


@given(variables, hosts)
@settings(max_examples=200, deadline=None)
def test_every_plan_keeps_its_promises(named: dict[str, Any], raw: dict[str, Any]) -> None:
    promises(named, decide(named, raw))


def promises(named: dict[str, Any], result: Plan) -> None:
    # A refusal always has a reason, and says what to do.
    assert result.fits == (not result.refusals)
    for refusal in (*result.refusals, *result.accepted):
        assert all((refusal.code, refusal.found, refusal.needed, refusal.remedy))
        assert "\n" not in refusal.line("gpu01")
    assert {one.code for one in result.accepted} <= set(named.get("metal_accept_refusals", ()))
    # Plain data, always the same keys.
    assert json.loads(json.dumps(result.as_dict(), allow_nan=False)) == result.as_dict()
    json.dumps(result.summary(), allow_nan=False)
    # Never more tokens than the memory allows.
    capacity, spread = result.capacity, result.parallelism
    if result.fits and capacity and spread and not result.accepted:
        assert capacity.static_bytes <= capacity.total_bytes
        if capacity.kv_tokens is not None:
            used = capacity.weights_bytes * spread.replicas + capacity.kv_tokens * there(
                capacity.kv_bytes_per_token
            )
            assert used <= capacity.static_bytes
            assert capacity.max_sequence <= there(capacity.kv_tokens_per_replica)
        assert spread.tp * spread.replicas <= there(result.gpus).count
        assert spread.tp % spread.ep == 0
    if result.fits:
        assert result.services
        assert len({one.port for one in result.services}) == len(result.services)
        for service in result.services:
            flags = Counter(word.split("=")[0] for word in service.argv if word.startswith("--"))
            if not {"duplicate-flag", "end-of-options"} & {one.code for one in result.accepted}:
                assert max(flags.values()) == 1
            assert "--api-key" not in flags
            assert all(isinstance(word, str) and word for word in service.argv)
            assert 1 <= service.port <= 65535


@given(
    st.sampled_from(list(CATALOG.models)),
    st.sampled_from(["H20", "H200", "B200"]),
    st.sampled_from([4, 8]),
    st.integers(1, 290_000),
    st.integers(1, 50_000),
)
@settings(max_examples=60, deadline=None)
def test_more_memory_never_means_less(model: str, gpu: str, count: int, mib: int, more: int) -> None:
    for form in CATALOG.models[model]:
        named = {"metal_model": model, "metal_model_format": form}
        small = decide(named, raw_host(gpu, count, driver="595.71.05", memory_mib=mib))
        large = decide(named, raw_host(gpu, count, driver="595.71.05", memory_mib=mib + more))
        assert large.fits >= small.fits
        tokens = there(small.capacity).kv_tokens
        if tokens is not None:
            assert there(there(large.capacity).kv_tokens) >= tokens
            assert there(large.limits).weight >= there(small.limits).weight
        assert there(large.gpus).memory_bytes - there(small.gpus).memory_bytes == more * MIB


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
KEYS = list(raw_host())


@given(
    st.dictionaries(
        st.sampled_from(
            [*KEYS, "stored_weights", "probe", "engine_environments", "port_owners", "gpu_users"]
        ),
        json_like,
    )
)
@settings(max_examples=150, deadline=None)
def test_no_facts_however_odd_raise(odd: dict[str, Any]) -> None:
    for raw in (odd, raw_host() | odd):
        result = decide({"metal_model": "MiniMax-M2.5"}, raw)
        assert result.fits or result.refusals

"""The plan's decisions for a fast start: kernels, precompilation, page cache, loader threads."""

from __future__ import annotations

import json
from typing import Any

import pytest

from minimax_metal.catalog import load_catalog
from minimax_metal.plan import Plan, Settings, parse_facts, plan
from tests.unit.plan_helpers import codes, decide, flag, raw_host


def host(gpu: str = "H200", count: int = 8, facts: dict[str, Any] | None = None, **variables: Any) -> Plan:
    named = {f"metal_{name}": value for name, value in ({"model": "MiniMax-M2.5"} | variables).items()}
    return plan(Settings.from_variables("gpu01", named), parse_facts(raw_host(gpu, count, **(facts or {}))))


def test_kernels_are_kept_by_release_gpu_and_driver_branch() -> None:
    result = host()
    assert result.kernel_cache is not None
    assert result.kernel_cache.key == "0.5.23-h200-580"
    assert result.services[0].environment["SGLANG_CACHE_DIR"] == "/var/cache/sglang/0.5.23-h200-580"
    others = [host("H20"), host(engine_release="0.5.16"), host(driver_branch="590")]
    assert len({one.kernel_cache.key for one in (result, *others) if one.kernel_cache}) == 4


def test_the_place_is_the_same_before_and_after_the_driver_is_there() -> None:
    assert host(facts={"driver": "580.95.05"}).kernel_cache == host().kernel_cache


def test_deep_gemm_is_compiled_ahead_for_what_uses_it() -> None:
    result = host()
    precompile = result.precompile
    assert precompile is not None
    assert precompile.argv[1:3] == ("-m", "sglang.compile_deep_gemm")
    words = list(precompile.argv)
    # It serves while it compiles: to itself only, without the key, the certificate and the figures.
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert not {"--config", "--enable-metrics"} & set(words)
    assert precompile.marker.startswith("/var/cache/sglang/0.5.23-h200-580/precompiled-")
    # The engine's own environment, but in a cache and as a user of its own: it can't write to the engine's.
    assert precompile.cache == "/var/cache/sglang-precompile/0.5.23-h200-580"
    assert precompile.user == "sglang-precompile" != result.services[0].user
    engine = result.services[0].environment
    assert {name for name in engine if engine[name] != precompile.environment[name]} == {
        "HOME", "SGLANG_CACHE_DIR", "SGLANG_DG_CACHE_DIR", "XDG_CACHE_HOME"
    }  # fmt: skip
    assert precompile.environment["SGLANG_DG_CACHE_DIR"] == f"{precompile.cache}/deep_gemm"


def test_another_command_is_compiled_for_again_and_the_same_one_is_not() -> None:
    same, again, other = (one.precompile for one in (host(), host(), host(mem_fraction_static=0.8)))
    assert same is not None
    assert other is not None
    assert same == again
    assert same.marker != other.marker


WITHOUT = load_catalog([{"engines": {"0.5.23": {"deep_gemm_precompile": False}}}])


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (host(precompile=False), "switched off"),
        (host("B300", model="MiniMax-M3", model_format="bf16"), "a format without FP8 blocks"),
        (decide("A100", 8, model="M2.5", accept_refusals=["format-gpu"]), "a GPU that DeepGEMM is not for"),
        (decide("H200", 8, model="M2.5", catalog=WITHOUT), "a release without it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_deep_gemm_is_left_alone_otherwise(result: Plan, why: str) -> None:
    assert result.services, why
    assert result.precompile is None, why


def test_ranks_share_the_cpus_among_their_loader_threads() -> None:
    def threads(result: Plan) -> int:
        number: int = json.loads(flag(result, "--model-loader-extra-config"))["num_threads"]
        return number

    assert threads(host()) == 96 // 8
    assert threads(host(facts={"cpu_count": 224})) == 16
    assert threads(host(facts={"cpu_count": 2})) == 1
    assert threads(host(layout="2xtp4")) == 96 // 8
    assert threads(host(loader_threads=3)) == 3
    assert any(one.what == "loader threads" for one in host().differences)


def test_the_engine_keeps_its_own_where_told_or_where_nothing_is_known() -> None:
    for result in (host(loader_threads=0), host(profile="guide"), decide("H200", 8, model="M2.5")):
        assert "--model-loader-extra-config" not in result.services[0].argv
    assert "limit" in codes(host(loader_threads=-1))
    assert "limit" in codes(host(loader_threads=1000))


def test_weights_are_read_ahead_where_they_leave_half_the_memory() -> None:
    result = host()
    assert result.model is not None
    assert result.page_cache is not None
    assert result.page_cache.path == result.model.path
    assert host(facts={"memory_total_bytes": 256 * 10**9}).page_cache is None
    assert host(facts={"memory_total_bytes": 256 * 10**9}, warm_weights=True).page_cache is not None
    assert host(warm_weights=False).page_cache is None
    assert decide("H200", 8, model="M2.5").page_cache is None


def test_each_rank_goes_where_its_gpu_is() -> None:
    assert host().services[0].environment["SGLANG_AUTO_NUMA_BIND"] == "1"
    assert "SGLANG_AUTO_NUMA_BIND" not in host(profile="guide").services[0].environment


def test_kernels_for_blackwell_that_nobody_brings_are_warned_of_once() -> None:
    def warned(gpu: str, **settings: Any) -> list[str]:
        plan = decide(gpu, 8, model="M3", model_format="bf16", **settings)
        return [one.message for one in plan.warnings if one.code == "flashinfer-cubins"]

    for gpu in ("B200", "B300"):
        (message,) = warned(gpu, layout="tp8")
        assert "flashinfer-cubin" in message
        assert "metal_engine_extra_packages" in message
    wheel = {"path": "/wheels/flashinfer_cubin-0.7.2-py3-none-any.whl", "sha256": "0" * 64}
    assert not warned("B200", engine_extra_packages=[wheel])
    assert not warned("B200", engine_extra_environment={"FLASHINFER_NO_DOWNLOAD": ""})
    assert warned("B200", engine_extra_environment={"FLASHINFER_NO_DOWNLOAD": "1"})
    assert not warned("B200", engine_release="0.5.10.post1")
    assert not warned("H200")

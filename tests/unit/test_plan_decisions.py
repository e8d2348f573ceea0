"""The guides' tables and commands, reproduced; every alternative; many wrong inputs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.catalog import load_catalog
from minimax_metal.controller.adapter import raw_facts_of, unread_plan
from minimax_metal.plan import Settings, parse_facts, plan
from minimax_metal.plan.fit import spread_problems
from minimax_metal.plan.serve import secret_names
from tests.unit.plan_helpers import codes, decide, facts, flag, raw_host, there, warned

GUIDE = {
    4: "python -m sglang.launch_server --model-path {id} --tp-size 4 --tool-call-parser minimax-m2 "
    "--reasoning-parser minimax-append-think --host 0.0.0.0 --trust-remote-code --port 8000 "
    "--mem-fraction-static 0.85",
    8: "python -m sglang.launch_server --model-path {id} --tp-size 8 --ep-size 8 "
    "--tool-call-parser minimax-m2 --trust-remote-code --host 0.0.0.0 "
    "--reasoning-parser minimax-append-think --port 8000 --mem-fraction-static 0.85",
}


def host_plan(raw: dict[str, Any] | None, **variables: Any) -> Any:
    named = {f"metal_{name}": value for name, value in variables.items()}
    return plan(Settings.from_variables("gpu01", named), parse_facts(raw))


# --- the guides ------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["MiniMax-M2", "MiniMax-M2.1", "MiniMax-M2.5"])
def test_the_guides_table_of_capacities(model: str) -> None:
    small, large = decide("H20 96GB", 4, model=model), decide("H200", 8, model=model)
    assert small.capacity is not None and large.capacity is not None  # noqa: PT018
    assert round(there(small.capacity.kv_tokens) / 1e6, 1) == 0.4
    assert round(there(large.capacity.kv_tokens) / 1e6) == 3
    assert small.capacity.max_sequence == large.capacity.max_sequence == 196_608


def test_capacity_is_the_guides_formula() -> None:
    result = decide("H20", 4, model="M2.5")
    assert result.capacity is not None
    by_hand = int((4 * 97871 * 2**20 * 0.85 - 220 * 2**30) / (2 * 62 * 8 * 128 * 2))
    assert abs(there(result.capacity.kv_tokens) - by_hand) <= 1


@pytest.mark.parametrize("count", [4, 8])
@pytest.mark.parametrize("model", ["MiniMax-M2", "MiniMax-M2.1", "MiniMax-M2.5"])
def test_the_guide_profile_is_the_guides_command_word_for_word(model: str, count: int) -> None:
    result = decide("H200", count, model=model, profile="guide")
    assert result.service is not None
    assert " ".join(result.service.argv) == GUIDE[count].format(id=f"MiniMaxAI/{model}")


@pytest.mark.parametrize("count", [4, 8])
def test_the_m3_guide_word_for_word_with_what_it_costs(count: int) -> None:
    result = decide("B300", count, model="MiniMax-M3", model_format="bf16", profile="guide")
    assert result.service is not None
    assert " ".join(result.service.argv) == GUIDE[count].format(id="MiniMaxAI/MiniMax-M3")
    assert "guide-parsers" in warned(result)


def test_on_a_real_host_the_guide_profile_serves_verified_weights() -> None:
    result = host_plan(raw_host("H200", 8), model="MiniMax-M3", profile="guide")
    assert result.fits
    assert flag(result, "--model-path").startswith("/srv/models/MiniMaxAI/MiniMax-M3/")
    assert flag(result, "--tool-call-parser") == "minimax-m2"
    assert result.service is not None
    assert result.service.argv[1:3] == ("-m", "sglang.launch_server")
    assert flag(result, "--mem-fraction-static") == "0.85"
    assert [one.what for one in result.differences] == ["--model-path", "--config"]


def test_the_start_command_is_the_releases_own() -> None:
    for release, words in (
        ("0.5.23", ["bin/sglang", "serve"]),
        ("0.5.10.post1", ["bin/sglang", "serve"]),
        ("0.5.4.post1", ["bin/python", "-m", "sglang.launch_server"]),
    ):
        result = decide("H200", 8, model="M2.5", engine_release=release)
        assert result.service is not None
        assert [word.split("/", 4)[-1] for word in result.service.argv[: len(words)]] == words
        assert ("entrypoint" in [one.what for one in result.differences]) == (words[-1] == "serve")
    old = decide("H200", 8, model="M2.5", engine_release="0.5.4.post1", engine_entrypoint="sglang serve")
    assert "entrypoint" in codes(old)


def test_what_was_decided_can_be_set_instead() -> None:
    usual = decide("H200", 8, model="M2.5")
    assert there(usual.cuda).version == "13.0"
    assert there(usual.driver).fabric_manager
    assert there(usual.model).trust_remote_code
    mine = decide("H200", 8, model="M2.5", cuda_toolkit="13.1", fabric_manager=False, trust_remote_code=False)
    assert mine.fits
    assert there(mine.cuda).home == "/usr/local/cuda-13.1"
    assert not [name for name in there(mine.driver).packages if "fabric" in name]
    assert "--trust-remote-code" not in there(mine.service).argv
    assert "cuda-toolkit" in codes(decide("H200", 8, model="M2.5", cuda_toolkit="12.9"))


def test_m3_takes_the_share_of_memory_that_was_seen_to_work() -> None:
    assert flag(decide("H200", 8, model="M3"), "--mem-fraction-static") == "0.75"
    assert flag(decide("H200", 8, model="M3", profile="guide"), "--mem-fraction-static") == "0.85"
    assert flag(decide("H200", 8, model="M3", mem_fraction_static=0.8), "--mem-fraction-static") == "0.8"


def test_the_default_profile_uses_m3s_own_parsers_and_says_so() -> None:
    result = decide("H200", 8, model="M3")
    assert flag(result, "--tool-call-parser") == flag(result, "--reasoning-parser") == "minimax-m3"
    assert {"--tool-call-parser", "--reasoning-parser"} <= {one.what for one in result.differences}
    assert all(one.reason for one in result.differences)


def test_the_default_profile_shows_metrics_unless_told_otherwise() -> None:
    assert "--enable-metrics" in there(decide("H20", 4, model="M2.5").service).argv
    assert "--enable-metrics" not in there(decide("H20", 4, model="M2.5", metrics=False).service).argv
    assert "--enable-metrics" not in host_plan(raw_host("H20", 4), model="M2.5", profile="guide").service.argv
    twice = decide("H20", 4, model="M2.5", engine_extra_args=["--enable-metrics"])
    assert twice.fits
    assert there(twice.service).argv.count("--enable-metrics") == 1


# --- formats and GPUs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "gpu", "count", "expected"),
    [
        ("M2.5", "H20", 4, "fp8"),
        ("M2.5", "H200", 8, "fp8"),
        ("M2.5", "B200", 8, "fp8"),
        ("M3", "H200", 8, "bf16"),
        ("M3", "B200", 8, "mxfp8"),
        ("M3", "B200", 4, "mxfp8"),
        ("M3", "GB300", 4, "mxfp8"),
        ("M3", "GB200", 4, "mxfp8"),
    ],
)
def test_the_format_that_fits_best_is_taken_and_said(model: str, gpu: str, count: int, expected: str) -> None:
    result = decide(gpu, count, model=model)
    assert result.fits
    assert result.model is not None
    assert result.model.format == expected
    assert "format-chosen" in warned(result)
    assert "format-chosen" not in warned(decide(gpu, count, model=model, model_format=expected))


@pytest.mark.parametrize(
    ("model", "model_format", "gpu", "count", "expected"),
    [
        ("M3", "bf16", "H20", 4, {"memory"}),
        ("M3", "bf16", "H100", 8, {"memory"}),
        ("M3", "mxfp8", "H200", 8, {"format-gpu"}),
        ("M3", None, "H20 96GB", 8, {"memory"}),
        ("M3", "bf16", "H20-3e", 8, set()),
        ("M2.5", "fp8", "L40S", 4, {"memory"}),
        ("M2.5", "fp8", "L40S", 8, set()),
        ("M2.5", "fp8", "A100", 4, set()),
        ("M2.5", "fp8", "A100 40GB", 4, {"memory"}),
        ("M2.5", "fp8", "A100 40GB", 8, set()),
        ("M2.5", "nvfp4", "H200", 8, {"format-gpu"}),
        ("M2.5", "fp8", "RTX PRO 6000", 4, set()),
        ("M2.5", "fp8", "H100", 4, set()),
    ],
)
def test_what_runs_where(
    model: str, model_format: str | None, gpu: str, count: int, expected: set[str]
) -> None:
    assert codes(decide(gpu, count, model=model, model_format=model_format)) == expected


@pytest.mark.parametrize(
    ("gpu", "model", "code"),
    [
        ("A100", "M2.5", "gpu-unproven"),
        ("RTX PRO 6000", "M2.5", "gpu-unproven"),
        ("H200", "M3", "short-sequence"),
    ],
)
def test_thin_evidence_is_a_warning(gpu: str, model: str, code: str) -> None:
    result = decide(gpu, 8, model=model)
    assert result.fits
    assert code in warned(result)


def test_mxfp8_takes_what_was_reported_to_work_on_each_gpu() -> None:
    assert flag(decide("B200", 8, model="M3", model_format="mxfp8"), "--mem-fraction-static") == "0.65"
    assert flag(decide("B300", 4, model="M3", model_format="mxfp8"), "--mem-fraction-static") == "0.75"
    assert flag(decide("B200", 8, model="M3", model_format="mxfp8"), "--chunked-prefill-size") == "8192"


def test_eight_gpus_show_both_layouts_and_take_one() -> None:
    result = decide("H200", 8, model="M2.5")
    assert [(one.name, one.replicas, one.tp, one.ep) for one in result.layouts] == [
        ("tp8", 1, 8, 8),
        ("2xtp4", 2, 4, 1),
    ]
    assert all(one.fits and one.kv_tokens for one in result.layouts)
    two = decide("H200", 8, model="M2.5", layout="2xtp4")
    assert two.capacity is not None
    assert two.capacity.kv_tokens == result.layouts[1].kv_tokens
    assert [one.instance for one in two.services] == ["minimax-m2.5-1", "minimax-m2.5-2"]
    assert [one.port for one in two.services] == [8000, 8001]
    visible = [one.environment["CUDA_VISIBLE_DEVICES"] for one in two.services]
    assert visible == ["0,1,2,3", "4,5,6,7"]
    assert [one.gpu_indices for one in two.services] == [(0, 1, 2, 3), (4, 5, 6, 7)]


def test_a_mixed_fleet_gets_unequal_weights() -> None:
    small, large = decide("H20", 4, model="M2.5"), decide("H200", 8, model="M2.5")
    assert small.limits is not None and large.limits is not None  # noqa: PT018
    assert small.limits.max_running_requests == there(there(small.capacity).kv_tokens) // 8192
    assert small.limits.weight < large.limits.weight
    fewer = there(decide("H20", 4, model="M2.5", tokens_per_request=65536).limits)
    assert fewer.max_running_requests == 6
    set_by_hand = decide("H20", 4, model="M2.5", max_running_requests=10, max_queued_requests=3)
    assert flag(set_by_hand, "--max-running-requests") == "10"
    assert flag(set_by_hand, "--max-queued-requests") == "3"


def test_fp8_kv_cache_holds_twice_as_much() -> None:
    plain, half = decide("H20", 4, model="M2.5"), decide("H20", 4, model="M2.5", kv_cache_dtype="fp8_e4m3")
    twice = 2 * there(there(plain.capacity).kv_tokens)
    assert there(half.capacity).kv_tokens == pytest.approx(twice, rel=1e-5)
    assert flag(half, "--kv-cache-dtype") == "fp8_e4m3"


def test_kv_heads_are_kept_twice_when_there_are_more_ranks() -> None:
    overlay = {"models": {"MiniMax-M3": {"formats": {"bf16": {"kv_bytes_per_token": 1000}}}}}
    result = decide("H200", 8, model="M3", catalog=load_catalog([overlay]))
    assert there(result.capacity).kv_bytes_per_token == 2000


@pytest.mark.parametrize(
    ("tp", "ep", "wrong"),
    [
        (4, 1, False),
        (8, 8, False),
        (8, 1, True),
        (8, 4, False),
        (8, 2, False),
        (4, 4, False),
        (4, 3, True),
        (6, 1, True),
    ],
)
def test_the_shape_of_the_model_decides_the_spread(tp: int, ep: int, wrong: bool) -> None:
    from minimax_metal.catalog import packaged_catalog

    one = packaged_catalog().models["MiniMax-M2.5"]["fp8"]
    assert bool(spread_problems(one, tp, ep)) is wrong


# --- engine, driver, platform ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("platform", "python", "managed", "branch", "cuda"),
    [
        ("debian12", "3.11", False, "580", "13.0"),
        ("debian13", "3.13", False, "595", "13.1"),
        ("ubuntu2204", "3.12", True, "580", "13.0"),
        ("ubuntu2404", "3.12", False, "580", "13.0"),
    ],
)
def test_each_platform_gets_what_its_repositories_hold(
    platform: str, python: str, managed: bool, branch: str, cuda: str
) -> None:
    result = decide("H200", 8, model="M2.5", platform=platform)
    assert result.fits
    assert (there(result.engine).python, there(result.engine).managed_python) == (python, managed)
    for part in (there(result.engine), there(result.host_tools)):
        assert part.python == python
        assert part.uv_environment["UV_PYTHON_DOWNLOADS"] == ("automatic" if managed else "never")
    assert (there(result.driver).branch, there(result.cuda).version) == (branch, cuda)
    assert there(result.cuda).home in there(result.service).environment["PATH"]
    assert there(result.driver).pinning_package == f"nvidia-driver-pinning-{branch}"
    assert f"nvidia-fabricmanager={branch}.*" in there(result.driver).packages
    assert "nvidia-fabricmanager" in there(result.driver).held
    assert "nvidia-fabricmanager.service" in there(result.driver).services


def test_four_gpus_need_no_fabric_manager() -> None:
    result = decide("H200", 4, model="M2.5")
    assert not there(result.driver).fabric_manager
    assert not any(
        "fabricmanager" in one for one in (*there(result.driver).packages, *there(result.driver).services)
    )


def test_nvlink5_and_nvl72_bring_their_own_daemons() -> None:
    b200 = there(decide("B200", 8, model="M2.5").driver)
    assert {"nvlsm", "libnvsdm=580.*"} <= set(b200.packages)
    assert "nvidia-imex.service" in there(decide("GB200", 4, model="M2.5").driver).services


def test_nvswitches_are_what_the_pci_bus_shows() -> None:
    switch = {"address": "0000:c0:00.0", "vendor": "0x10de", "device": "0x22a3", "class": "0x068000"}
    raw = raw_host("H200", 8)
    assert not host_plan(raw, model="M2.5").gpus.nvswitch
    raw["pci_devices"].append(switch)
    assert host_plan(raw, model="M2.5").driver.fabric_manager


def test_a_good_driver_that_runs_is_kept() -> None:
    for version, branch in (("580.126.20", "580"), ("595.71.05", "595")):
        result = host_plan(raw_host("H20", 4, driver=version), model="M2.5")
        assert result.fits
        assert result.driver.branch == branch
        assert "driver-change" not in warned(result)


def test_an_old_driver_is_replaced_and_that_is_said() -> None:
    result = host_plan(raw_host("H20", 4, driver="550.163.01"), model="M2.5")
    assert result.fits
    assert result.driver.branch == "580"
    assert "driver-change" in warned(result)


def test_cuda_compat_is_a_named_way_out_and_recorded() -> None:
    raw = raw_host("H20", 4, driver="570.172.08")
    refused = host_plan(raw, model="M2.5", driver_branch="570")
    assert codes(refused) == {"driver-too-old"}
    result = host_plan(raw, model="M2.5", driver_branch="570", cuda_compat=True)
    assert result.fits
    assert "cuda-compat" in warned(result)
    assert "cuda-compat-13-0" in result.cuda.packages
    assert result.service.environment["LD_LIBRARY_PATH"] == "/usr/local/cuda-13.0/compat"
    assert codes(host_plan(raw, model="M2.5", driver_branch="560", cuda_compat=True)) == {"driver-too-old"}


def test_the_environment_is_named_by_what_goes_into_it() -> None:
    def environment(**variables: Any) -> str:
        return there(decide("H20", 4, model="M2.5", **variables).engine).environment

    one = environment()
    assert one == environment()
    assert one.startswith("/opt/sglang/0.5.23-")
    wheel = {"path": "/a/x.whl", "sha256": "a" * 64}
    assert environment(engine_extra_packages=[wheel]) != one
    assert environment(engine_extra_packages=[wheel]) == environment(
        engine_extra_packages=[{**wheel, "path": "/b/x.whl"}]
    )
    assert environment(engine_python="3.12") != one


def test_the_engine_can_be_started_by_its_own_command_where_it_has_one() -> None:
    result = decide("H20", 4, model="M2.5", engine_entrypoint="sglang serve")
    assert there(result.service).argv[0].endswith("/bin/sglang")
    assert there(result.service).argv[1] == "serve"
    old = decide("H20", 4, model="M2.5", engine_entrypoint="sglang serve", engine_release="0.5.4.post1")
    assert "entrypoint" in codes(old)


def test_sources_carry_the_id_and_revision_each_knows() -> None:
    result = decide(
        "H20",
        4,
        model="M2.5",
        weights_source=["hf-mirror", "modelscope", "/mnt/models"],
        modelscope_endpoint="http://hub.example:8080/",
    )
    kinds = [
        (one.kind, one.endpoint, one.repository, one.revision, one.path)
        for one in there(result.weights).sources
    ]
    pinned = "f710177d938eff80b684d42c5aa84b382612f21f"
    assert kinds == [
        ("hf-mirror", "https://hf-mirror.com", "MiniMaxAI/MiniMax-M2.5", pinned, None),
        ("modelscope", "http://hub.example:8080", "MiniMax/MiniMax-M2.5", "master", None),
        ("directory", None, "MiniMaxAI/MiniMax-M2.5", pinned, "/mnt/models"),
    ]
    assert there(result.model).path == f"/srv/models/MiniMaxAI/MiniMax-M2.5/{pinned}"


def test_weights_already_there_need_no_room_twice() -> None:
    raw = raw_host("H20", 4, disks={"/srv/models": {"free_bytes": 10**9, "total_bytes": 10**12}})
    first = host_plan(raw, model="M2.5")
    assert codes(first) == {"disk"}
    for name in (first.model.path, first.model.path + ".partial"):
        raw["stored_weights"] = {name: first.model.bytes}
        assert host_plan(raw, model="M2.5").fits
    raw["stored_weights"] = {first.model.path + ".partial": first.model.bytes // 2}
    assert codes(host_plan(raw, model="M2.5")) == {"disk"}


def test_weights_to_adopt_by_a_link_need_no_room() -> None:
    raw = raw_host("H20", 4, disks={"/srv/models": {"free_bytes": 10**9, "total_bytes": 10**12}})
    size = host_plan(raw, model="M2.5").model.bytes

    def judge(adoptable: dict[str, int] | None, *directories: str) -> tuple[set[str], list[str]]:
        facts = raw if adoptable is None else {**raw, "adoptable": adoptable}
        result = host_plan(facts, model="M2.5", weights_adopt=list(directories))
        return codes(result), [one.message for one in result.warnings if one.code == "disk-adopt"]

    # Enough may be linked: whether it is this model is known when it is verified.
    refused, (warning,) = judge({"/mnt/a": size, "/mnt/b": size}, "/mnt/a", "/mnt/b")
    assert refused == set()
    assert f"{2 * size / 1e9:.0f} GB that can be linked from /mnt/a, /mnt/b" in warning
    # Not known, as from facts collected before the setting: a warning too.
    for unread in (None, {"/mnt/a": 0}):
        refused, (warning,) = judge(unread, "/mnt/a", "/mnt/b")
        assert refused == set()
        assert "could not be searched" in warning
    # Too little, or nothing that a link can reach: refused as without.
    assert judge({"/mnt/a": size // 2}, "/mnt/a") == ({"disk"}, [])
    assert judge({"/mnt/a": 0}, "/mnt/a") == ({"disk"}, [])
    assert judge({"/mnt/a": size}) == ({"disk"}, [])
    with_half = host_plan({**raw, "adoptable": {"/mnt/a": size // 2}}, model="M2.5", weights_adopt=["/mnt/a"])
    assert "GB that can be linked to adopt" in with_half.refusals[0].found


def test_memory_is_what_the_host_measures() -> None:
    less = host_plan(raw_host("H20", 4, driver="580.126.20", memory_mib=90000), model="M2.5")
    assert less.gpus.memory_bytes == 90000 * 2**20
    more = there(decide("H20", 4, model="M2.5").capacity)
    assert there(there(less.capacity).kv_tokens) < there(more.kv_tokens)


def test_the_plan_is_the_same_before_and_after_the_driver() -> None:
    before = host_plan(raw_host("H200", 8), model="M2.5").as_dict()
    after = host_plan(raw_host("H200", 8, driver="580.126.20"), model="M2.5").as_dict()
    assert before == after


# --- the page of wrong inputs ----------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 16])
def test_other_counts_are_refused_with_the_count(count: int) -> None:
    (refusal,) = [one for one in decide("H200", count, model="M2.5").refusals if one.code == "gpu-count"]
    assert str(count) in refusal.found
    assert "4 or 8" in refusal.needed


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model": "MiniMax-M2.6"}, "model-unknown"),
    ({"model": ""}, "model-missing"),
    ({"model": "M2.5", "model_format": "int4"}, "format-unknown"),
    ({"model": "M2.5", "mem_fraction_static": 1.7}, "mem-fraction"),
    ({"model": "M2.5", "mem_fraction_static": -0.5}, "mem-fraction"),
    ({"model": "M2.5", "mem_fraction_static": 0}, "mem-fraction"),
    ({"model": "M2.5", "mem_fraction_static": "nan"}, "mem-fraction"),
    ({"model": "M2.5", "mem_fraction_static": 0.5}, "memory"),
    ({"model": "M2.5", "port": 99999}, "port"),
    ({"model": "M2.5", "port": 0}, "port"),
    ({"model": "M2.5", "tp_size": 4, "ep_size": 3}, "parallelism"),
    ({"model": "M2.5", "tp_size": 0}, "parallelism"),
    ({"model": "M2.5", "tp_size": 16}, "parallelism"),
    ({"model": "M2.5", "layout": "tp8"}, "layout"),
    ({"model": "M2.5", "layout": "tp5"}, "layout"),
    ({"model": "M2.5", "kv_cache_dtype": "int4"}, "kv-dtype"),
    ({"model": "M2.5", "profile": "quick"}, "profile"),
    ({"model": "M2.5", "aim": "cheap"}, "aim"),
    ({"model": "M2.5", "engine_release": "0.6.0"}, "engine-unknown"),
    ({"model": "M2.5", "engine_python": "3.9"}, "engine-python"),
    ({"model": "M2.5", "engine_release": "0.5.4.post1"}, "engine-lock"),
    ({"model": "M3", "engine_release": "0.5.10.post1"}, "engine-old"),
    ({"model": "M2.5", "driver_branch": "550"}, "driver-too-old"),
    ({"model": "M2.5", "driver_branch": "new"}, "driver-too-old"),
    ({"model": "M2.5", "weights_source": "huggingfaces"}, "weights-source"),
    ({"model": "M3", "model_format": "nvfp4", "weights_source": "modelscope"}, "weights-source"),
    ({"model": "M2.5", "tool_call_parser": "minimax"}, "parser-unknown"),
    ({"model": "M2.5", "instance": "a b"}, "instance"),
    ({"model": "M2.5", "start_timeout_seconds": 0}, "timeout"),
    ({"model": "M2.5", "max_running_requests": 0}, "limit"),
    ({"model": "M2.5", "engine_extra_args": ["--tp", "2"]}, "duplicate-flag"),
    ({"model": "M2.5", "engine_extra_args": "--port=9000"}, "duplicate-flag"),
    ({"model": "M2.5", "engine_extra_args": ["--", "--log-requests"]}, "end-of-options"),
    ({"model": "M2.5", "engine_extra_args": ["--api-key", "x"]}, "secret-in-argv"),
    ({"model": "M2.5", "engine_extra_environment": {"HF_TOKEN": "hf_abc"}}, "secret-in-environment"),
    ({"model": "M2.5", "engine_entrypoint": "vllm"}, "entrypoint"),
]


@pytest.mark.parametrize(("variables", "code"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_settings_are_refused_with_a_reason(variables: dict[str, Any], code: str) -> None:
    result = decide("H20", 4, **variables)
    assert code in codes(result)
    assert not result.fits
    for refusal in result.refusals:
        assert refusal.found
        assert refusal.needed
        assert refusal.remedy
        assert "\n" not in refusal.line("gpu01")


def test_near_misses_are_named() -> None:
    (refusal,) = decide("H20", 4, model="MiniMax-M2_5").refusals
    assert "MiniMax-M2.5" in refusal.remedy
    (refusal,) = [one for one in decide("H2O", 4, model="M2.5").refusals if one.code == "gpu-unknown"]
    assert "H20" in refusal.remedy


def test_all_reasons_come_at_once() -> None:
    result = decide("L40S", 5, model="M2.5", port=99999, driver_branch="535", weights_source="nowhere")
    assert {"gpu-count", "memory", "port", "driver-too-old", "weights-source"} <= codes(result)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"pci_devices": []}, "gpu-none"),
        ({"os_release": "ID=fedora\nVERSION_ID=43\n"}, "platform-unknown"),
        ({"os_release": ""}, "platform-unknown"),
        ({"os_release": None}, "platform-unknown"),
        ({"machine": "riscv64"}, "architecture"),
        ({"user_is_root": False}, "not-root"),
        ({"disks": {"/srv/models": {"free_bytes": 10**9, "total_bytes": 10**12}}}, "disk"),
        ({"disks": {"/srv": {"free_bytes": 10**9, "total_bytes": 10**12}}}, "disk"),
        (
            {
                "driver_version_file": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun\n",
                "nvidia_smi": {"present": True, "returncode": 18, "stdout": "version mismatch", "stderr": ""},
            },
            "driver-foreign",
        ),
    ],
)
def test_wrong_hosts_are_refused(change: dict[str, Any], code: str) -> None:
    assert code in codes(host_plan(raw_host("H20", 4, **change), model="M2.5"))


def test_mixed_and_missing_gpus_are_refused() -> None:
    raw = raw_host("H20", 4)
    raw["pci_devices"][0]["device"] = "0x2335"
    assert codes(host_plan(raw, model="M2.5")) == {"gpu-mixed"}
    raw = raw_host("H200", 8, driver="580.126.20")
    raw["nvidia_smi"]["stdout"] = "\n".join(raw["nvidia_smi"]["stdout"].splitlines()[:7])
    assert {"gpu-missing", "gpu-count"} <= codes(host_plan(raw, model="M2.5"))


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (None, "unreachable"),
        ({"reachable": False}, "unreachable"),
        ({"reachable": True, "probe": "python3= sudo=/usr/bin/sudo uid=1000"}, "python-missing"),
        ({"reachable": True, "probe": "python3=/usr/bin/python3 sudo= uid=1000"}, "sudo-missing"),
    ],
)
def test_hosts_that_cannot_be_read_say_one_thing(raw: dict[str, Any] | None, code: str) -> None:
    assert codes(host_plan(raw, model="M2.5")) == {code}


@pytest.mark.parametrize(
    "raw",
    [
        {"reachable": True, "python": "3.11"},
        {
            "reachable": True,
            "python": "3.11",
            "pci_devices": "x",
            "nvidia_smi": 3,
            "disks": [],
            "packages": None,
        },
        {
            "reachable": True,
            "python": "3.11",
            "nvidia_smi": {"present": True, "returncode": 0, "stdout": "a,b\n,,,"},
        },
        {"reachable": True, "python": "3.11", "disks": {"/srv/models": None}, "listening_ports": ["x"]},
    ],
)
def test_odd_facts_are_refusals_never_exceptions(raw: dict[str, Any]) -> None:
    assert not host_plan(raw, model="M2.5").fits


def test_a_broken_nvidia_smi_falls_back_to_the_pci_bus() -> None:
    raw = raw_host("H20", 4)
    raw["nvidia_smi"] = {
        "present": True,
        "returncode": 18,
        "stdout": "",
        "stderr": "Failed to initialize NVML",
    }
    result = host_plan(raw, model="M2.5")
    assert result.fits
    assert "nvidia-smi" in warned(result)


def test_what_others_hold_is_refused_and_what_is_ours_is_not() -> None:
    nginx = {"program": "nginx", "unit": "nginx.service"}
    vllm = {"program": "python3", "unit": None}
    ours = {"program": "python", "unit": "sglang@minimax-m2.5.service"}
    taken = host_plan(raw_host("H20", 4, port_owners={"8000": nginx}, gpu_users=[vllm, ours]), model="M2.5")
    assert codes(taken) == {"port-taken", "gpu-busy"}
    assert "nginx (nginx.service)" in taken.refusals[0].found
    running = host_plan(
        raw_host("H20", 4, port_owners={"8000": ours, "22": nginx}, gpu_users=[ours]), model="M2.5"
    )
    assert running.fits
    second = raw_host("H20", 8, port_owners={"8001": nginx})
    assert host_plan(second, model="M2.5").fits
    assert codes(host_plan(second, model="M2.5", layout="2xtp4")) == {"port-taken"}


# --- lifting refusals ------------------------------------------------------------------------------


def test_a_refusal_is_lifted_only_by_its_code_and_kept_on_record() -> None:
    assert codes(decide("H200", 2, model="M2.5")) == {"gpu-count"}
    result = decide("H200", 2, model="M2.5", accept_refusals=["gpu-count"])
    assert result.fits
    assert [one.code for one in result.accepted] == ["gpu-count"]
    assert "accepted-gpu-count" in warned(result)
    assert result.as_dict()["accepted"][0]["code"] == "gpu-count"
    assert (there(result.parallelism).tp, there(result.parallelism).ep) == (2, 1)
    assert codes(decide("H200", 2, model="M2.5", accept_refusals=["memory"])) == {"gpu-count"}


def test_an_unlisted_gpu_can_be_used_as_measured() -> None:
    raw = raw_host("H20", 4, driver="580.126.20")
    raw["nvidia_smi"]["stdout"] = raw["nvidia_smi"]["stdout"].replace("NVIDIA H20", "NVIDIA X99")
    assert codes(host_plan(raw, model="M2.5")) == {"gpu-unknown"}
    result = host_plan(raw, model="M2.5", accept_refusals="gpu-unknown")
    assert result.fits
    assert result.gpus.model == "NVIDIA X99"


def test_a_plan_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        decide("H20", 4, model="M2.5").host = "x"  # type: ignore[misc]  # the point of the test
    assert facts().reachable


def test_a_host_that_answers_with_a_failure_is_refused_by_its_cause() -> None:
    """ansible/awx#2319, ansible/ansible#13077: sudo that asks for a password is not a wrong address."""
    failed = {"failed": True, "msg": "Missing sudo password"}
    probe = {"stdout": "python3=/usr/bin/python3 sudo=/usr/bin/sudo uid=1000\n"}
    raw = raw_facts_of(probe, failed, "192.0.2.1", "ops")
    (refusal,) = host_plan(raw, model="M2.5").refusals
    assert refusal.code == "sudo-password"
    assert "ops ALL=" in refusal.remedy
    gone = raw_facts_of(
        {"unreachable": True, "msg": "ssh: connect to host h port 22: No route to host"}, {}, "h"
    )
    assert codes(host_plan(gone, model="M2.5")) == {"unreachable"}
    # A login that is answered by a sentence, as cloud images do for root.
    told = raw_facts_of(
        {
            "rc": 142,
            "failed": True,
            "stdout": 'Please login as the user "debian" rather than the user "root".',
        },
        {},
    )
    assert codes(host_plan(told, model="M2.5")) == {"ssh-login"}
    assert raw_facts_of(probe, {"facts": {"reachable": True}}) == {"reachable": True}
    assert raw_facts_of(probe, {"skipped": True})["probe"].startswith("python3=")


def test_variables_that_can_not_be_decrypted_refuse_the_host(tmp_path: Path) -> None:
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars" / "vault.yml").write_text("$ANSIBLE_VAULT;1.1;AES256\n3338\n")
    said = "Attempt to use undecryptable variable: Attempting to decrypt but no vault secrets found."
    plan = unread_plan({"msg": said}, "gpu01", [str(tmp_path)])
    assert not plan["fits"]
    assert "group_vars/vault.yml" in plan["refusals"][0]["found"]
    assert "ANSIBLE_VAULT_PASSWORD_FILE" in plan["refusals"][0]["remedy"]


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "aws_secret_access_key",
        "OPENAI_API_KEY",
        "WANDB_APIKEY",
        "DB_PASSWORD",
        "MY_PASS",
        "X_AUTH",
        "SECRETS",
    ],
)
def test_a_variable_that_is_named_like_a_secret_is_one(name: str) -> None:
    assert secret_names({name: "aHR0cHM6Ly9leGFtcGxl"}) == [name]
    # A path to a file with a secret, a switch or a number shows nothing.
    assert secret_names({name: "/etc/sglang/secret"}) == []
    assert secret_names({name: "true"}) == []


def test_a_password_in_a_url_is_a_secret_and_ordinary_variables_are_not() -> None:
    assert secret_names({"HTTPS_PROXY": "http://me:pass@proxy:3128"}) == ["HTTPS_PROXY"]
    ordinary = {
        "HTTPS_PROXY": "http://proxy:3128",
        "SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION": "4096",
        "TOKENIZERS_PARALLELISM": "false",
        "NCCL_TOPO_FILE": "/etc/nccl/topo.xml",
        "NCCL_IB_HCA": "mlx5_0:1,mlx5_1:1",
        "FLASHINFER_NO_DOWNLOAD": "",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "KEYBOARD": "text-of-it",
        "COMPASS": "north",
    }
    assert secret_names(ordinary) == []


def test_a_size_below_one_that_is_lifted_is_as_if_it_were_not_set() -> None:
    # A plan that fits and starts nothing, before.
    result = decide("H200", 8, model="M2.5", tp_size=-1, ep_size=0, accept_refusals=["parallelism"])
    assert result.fits
    assert (result.parallelism, len(result.services)) == (decide("H200", 8, model="M2.5").parallelism, 1)


@pytest.mark.parametrize(
    ("code", "variables"),
    [
        ("parallelism", {"model": "M2.5", "tp_size": 16}),
        ("layout", {"model": "M2.5", "layout": "tp4"}),
        ("model-unknown", {"model": "M9"}),
        ("engine-unknown", {"model": "M2.5", "engine_release": "0.0.1"}),
    ],
)
def test_what_leaves_nothing_to_start_is_not_lifted(code: str, variables: dict[str, Any]) -> None:
    result = decide("H200", 8, **variables, accept_refusals=[code])
    assert codes(result) == {code}
    assert result.accepted == ()

"""``metal_profile: fast``: published recipes, their changes, and the message if there is none."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from minimax_metal.catalog import load_catalog, packaged_catalog
from minimax_metal.cli import main
from minimax_metal.controller.plan_table import show_comparison
from minimax_metal.plan.compare import PROFILES, rows_of
from minimax_metal.plan.model import Plan
from minimax_metal.plan.versions import version_key
from tests.unit.plan_helpers import decide

CATALOG = packaged_catalog()


def value(result: Plan, flag: str) -> str | None:
    assert result.service
    argv = result.service.argv
    return argv[argv.index(flag) + 1] if flag in argv else None


def codes(result: Plan) -> set[str]:
    return {notice.code for notice in result.warnings}


@pytest.mark.parametrize("name", CATALOG.recipes)
def test_every_recipe_is_reached_has_sources_and_is_called_unproven(name: str) -> None:
    recipe = CATALOG.recipes[name]
    assert recipe.source.startswith("sgl-project/sglang ")
    assert all(part.source for part in recipe.args)
    assert all(part.source for part in recipe.environment)
    assert set(recipe.models) <= set(CATALOG.models)
    assert set(recipe.gpus) <= set(CATALOG.gpus)
    model, form, gpu, tp, aim = (
        recipe.models[0], recipe.formats[0], recipe.gpus[0], recipe.tp[0], recipe.aims[0]
    )  # fmt: skip
    if form not in CATALOG.models[model]:
        pytest.skip(f"the catalogue has no {form} of {model} yet")
    result = decide(
        gpu, tp, model=model, model_format=form, profile="fast", aim=aim, accept_refusals=["memory"]
    )
    assert "fast-unproven" in codes(result)
    assert "fast-no-recipe" not in codes(result)
    for part in recipe.args:
        inside = part.since is None or version_key(part.since) <= version_key(CATALOG.default_engine)
        inside &= part.before is None or version_key(CATALOG.default_engine) < version_key(part.before)
        assert (part.words[0] in result.service.argv) == inside  # type: ignore[union-attr]
        assert (
            any(one.what == part.words[0] and part.source in one.reason for one in result.differences)
            == inside
        )


def test_the_cookbooks_flags_for_m27_on_h200_come_by_the_name_the_release_has() -> None:
    new = decide("H200", 8, model="M2.7", profile="fast")
    assert value(new, "--flashinfer-allreduce-fusion-backend") == "auto"
    assert new.services[0].environment["SGLANG_USE_FUSED_PARALLEL_QKNORM"] == "1"
    assert "fast-left-out" not in codes(new)
    middle = decide("H200", 8, model="M2.7", profile="fast", engine_release="0.5.16")
    assert middle.services[0].environment["SGLANG_USE_FUSED_PARALLEL_QKNORM"] == "1"
    assert "fast-left-out" not in codes(middle)
    old = decide("H200", 8, model="M2.7", profile="fast", engine_release="0.5.10.post1")
    assert "--enable-flashinfer-allreduce-fusion" in old.services[0].argv
    assert "SGLANG_USE_FUSED_PARALLEL_QKNORM" not in old.services[0].environment
    assert "fast-left-out" in codes(old)
    assert "--flashinfer-allreduce-fusion-backend" not in old.services[0].argv


def test_without_a_recipe_the_plan_is_the_defaults_and_says_so() -> None:
    fast = decide("H20", 4, model="M2.5", profile="fast")
    assert "fast-no-recipe" in codes(fast)
    default = decide("H20", 4, model="M2.5")
    assert fast.services[0].argv == default.services[0].argv
    assert fast.services[0].environment == default.services[0].environment


def test_an_aim_without_a_recipe_is_no_other_aims() -> None:
    assert "fast-no-recipe" in codes(decide("H200", 8, model="M2.7", profile="fast", aim="latency"))
    # Two replicas of four GPUs each are the cookbook's "balanced".
    two = decide("H200", 8, model="M2.7", profile="fast", aim="latency", layout="2xtp4")
    assert "fast-no-recipe" not in codes(two)
    assert all(value(two, "--flashinfer-allreduce-fusion-backend") for _ in two.services)


def test_a_recipes_share_of_memory_is_part_of_the_fit_unless_the_user_sets_it() -> None:
    changed = load_catalog(
        [{"recipes": {"m2.7-h200-tp4": {"mem_fraction_static": 0.7, "kv_cache_dtype": "fp8_e4m3"}}}]
    )
    result = decide("H200", 4, model="M2.7", profile="fast", catalog=changed)
    default = decide("H200", 4, model="M2.7")
    assert result.capacity
    assert default.capacity
    assert result.capacity.mem_fraction_static == 0.7
    assert value(result, "--mem-fraction-static") == "0.7"
    assert value(result, "--kv-cache-dtype") == "fp8_e4m3"
    assert result.capacity.static_bytes < default.capacity.static_bytes
    own = decide("H200", 4, model="M2.7", profile="fast", mem_fraction_static=0.8, catalog=changed)
    assert value(own, "--mem-fraction-static") == "0.8"


def test_long_contexts_take_the_larger_chunks_in_place_of_the_formats() -> None:
    result = decide("B300", 4, model="M3", model_format="mxfp8", profile="fast", aim="long-context")
    assert value(result, "--chunked-prefill-size") == "16384"
    assert result.services[0].argv.count("--chunked-prefill-size") == 1
    assert (
        decide("B300", 4, model="M3", model_format="mxfp8").services[0].argv.count("--chunked-prefill-size")
        == 1
    )


def test_a_repeated_flag_is_refused_and_the_users_variables_win() -> None:
    result = decide("B300", 4, model="M3", profile="fast", engine_extra_args=["--attention-backend", "fa3"])
    assert [one.code for one in result.refusals] == ["duplicate-flag"]
    own = decide(
        "H200", 8, model="M2.7", profile="fast", engine_release="0.5.16",
        engine_extra_environment={"SGLANG_USE_FUSED_PARALLEL_QKNORM": "0"},
    )  # fmt: skip
    assert own.services[0].environment["SGLANG_USE_FUSED_PARALLEL_QKNORM"] == "0"


def test_profiles_side_by_side_fit_eighty_columns() -> None:
    plans = {name: decide("B300", 4, model="M3", model_format="mxfp8", profile=name) for name in PROFILES}
    out = io.StringIO()
    show_comparison({"gpu01": plans}, Console(file=out, width=80, highlight=False))
    table = out.getvalue().split("warning")[0]
    assert max(len(line) for line in table.splitlines()) <= 80
    for word in (*PROFILES, "KV tokens", "fa4", "fits"):
        assert word in table
    rows = dict(rows_of(plans))
    assert rows["--attention-backend"] == {"default": "-", "fast": "fa4", "guide": "-"}
    assert "--host" not in rows


def test_compare_as_json_and_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--model", "M2.7", "--gpu", "H200", "--count", "8", "--compare"]
    assert main([*words, "--json"]) == 0
    answer: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert list(answer[0]["profiles"]) == list(PROFILES)
    assert answer[0]["profiles"]["fast"]["profile"] == "fast"
    assert main([*words, "--profile", "fast"]) == 2
    assert "--compare" in capsys.readouterr().err

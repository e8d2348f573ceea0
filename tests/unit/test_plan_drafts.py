"""Drafts with their own repositories: where the engine finds them, and that all of them is counted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.catalog import packaged_catalog
from minimax_metal.host.weights.draft import draft_alone
from minimax_metal.host.weights.stock import System, model_paths
from tests.unit.plan_helpers import codes, decide, flag, there, warned

M3: dict[str, Any] = {"model": "MiniMax-M3", "model_format": "mxfp8"}
REVISION = "1234567890123456789012345678901234567890"


@pytest.mark.parametrize(
    ("draft", "gpu", "algorithm", "environment"),
    [
        ("MiniMax-M3-EAGLE3", "H200", "EAGLE3", {}),
        ("inferact/minimax-m3-eagle3-gqa", "B200", "EAGLE3", {}),
        ("nvidia/MiniMax-M3-DSpark", "B200", "DSPARK", {"SGLANG_RAGGED_VERIFY_MODE": "static"}),
    ],
)
def test_a_draft_is_pulled_and_served_at_its_pinned_revision(
    draft: str, gpu: str, algorithm: str, environment: dict[str, str]
) -> None:
    result = decide(gpu, 8, speculative_draft_model=draft, model="MiniMax-M3")
    assert not result.refusals
    (revision,) = {source.revision for source in there(result.draft).sources}
    assert len(revision) == 40
    assert there(result.draft).path.endswith(f"/{revision}")
    assert there(result.draft).instance == "minimax-m3-draft"
    assert flag(result, "--speculative-draft-model-path") == there(result.draft).path
    assert flag(result, "--speculative-algorithm") == algorithm
    assert environment.items() <= result.services[0].environment.items()
    assert "speculative-unproven" in warned(result)


def test_its_bytes_count_on_the_disk_and_in_the_memory() -> None:
    plain = decide("B200", 8, **M3)
    result = decide("B200", 8, speculative_draft_model="MiniMax-M3-DSpark", **M3)
    assert plain.draft is None
    draft = packaged_catalog().drafts["MiniMax-M3-DSpark"]
    # 10.72 GB, and one part in a hundred for the file system's own needs; integers are rounded twice.
    assert (
        abs(there(result.disk).needed_bytes - there(plain.disk).needed_bytes - draft.bytes.value * 101 // 100)
        <= 1
    )
    with_draft, without = there(result.capacity), there(plain.capacity)
    assert with_draft.kv_bytes_per_token == there(without.kv_bytes_per_token) + 24_576
    assert there(with_draft.kv_tokens) < there(without.kv_tokens)


def test_an_unknown_cache_of_its_own_is_said() -> None:
    result = decide("B200", 8, speculative_draft_model="MiniMax-M3-EAGLE3-GQA", **M3)
    (said,) = [one.message for one in result.warnings if one.code == "kv-not-counted"]
    assert "MiniMax-M3-EAGLE3-GQA" in said


@pytest.mark.parametrize(
    ("gpu", "settings", "needed"),
    [
        # Another model than the one it learned from; another GPU; another engine; no revision; no such draft.
        ("H200", {"model": "MiniMax-M2.5", "speculative_draft_model": "MiniMax-M3-EAGLE3"}, "MiniMax-M3"),
        ("H200", {**M3, "speculative_draft_model": "MiniMax-M3-DSpark"}, "10.0 or 10.3"),
        (
            "H200",
            {**M3, "speculative_draft_model": "MiniMax-M3-EAGLE3", "engine_release": "0.5.16"},
            "0.5.23 or newer",
        ),
        (
            "B200",
            {**M3, "speculative_draft_model": "MiniMax-M3-DSpark", "engine_extra_args": ["--pp-size=2"]},
            "no pipeline parallelism",
        ),
        ("H200", {"model": "MiniMax-M2.5", "speculative_draft_model": "MiniMax-M2.5-Eagle3"}, "revision"),
        ("H200", {**M3, "speculative_draft_model": "MiniMax-M3-EAGLE"}, "MiniMax-M3-EAGLE3"),
        (
            "H200",
            {**M3, "speculative_draft_model": "MiniMax-M3-EAGLE3", "weights_source": ("/mnt/m3",)},
            "huggingface",
        ),
    ],
)
def test_what_the_engine_or_nobody_can_take_is_refused(
    gpu: str, settings: dict[str, Any], needed: str
) -> None:
    result = decide(gpu, 8, **settings)
    (refusal,) = [one for one in result.refusals if one.code == "speculative"]
    assert needed in refusal.needed


def test_the_user_may_name_the_revision_that_no_source_proves() -> None:
    result = decide(
        "H200",
        8,
        model="MiniMax-M2.5",
        speculative_draft_model="MiniMax-M2.5-Eagle3",
        speculative_draft_revision=REVISION,
    )
    assert not result.refusals
    assert there(result.draft).revision == REVISION
    assert flag(result, "--speculative-draft-model-path").endswith(f"MiniMax-M2.5-Eagle3/{REVISION}")
    assert {"licence", "kv-not-counted", "fault-m2-speculative-calls-mixed"} <= set(warned(result))
    result = decide(
        "H200",
        8,
        **M3,
        speculative_draft_model="MiniMax-M3-EAGLE3",
        speculative_draft_revision="../main",
    )
    assert "model-revision" in codes(result)


def test_one_draft_at_a_time() -> None:
    result = decide(
        "B200", 4, model="M3.1", speculative_draft=True, speculative_draft_model="MiniMax-M3-DSpark"
    )
    assert any("one draft" in one.needed for one in result.refusals)


def test_every_entry_says_what_it_is_for_and_where_that_stands() -> None:
    catalog = packaged_catalog()
    assert set(catalog.drafts) == {
        "MiniMax-M3-EAGLE3", "MiniMax-M3-EAGLE3-GQA", "MiniMax-M3-DSpark", "MiniMax-M2.5-Eagle3",
    }  # fmt: skip
    for draft in catalog.drafts.values():
        assert set(draft.models) <= set(catalog.models)
        assert draft.licence in catalog.licences
        assert draft.minimum_engine in catalog.engines
        assert draft.revision is None or draft.revision_source


def test_a_drafts_directory_is_in_use(tmp_path: Path) -> None:
    assert list(model_paths(["--model-path", "/srv/m", "--speculative-draft-model-path", "/srv/d"])) == [
        "/srv/m",
        "/srv/d",
    ]
    assert list(model_paths(["--speculative-draft-model-path=/srv/d"])) == ["/srv/d"]
    releases = tmp_path / "releases"
    releases.mkdir()
    (releases / "1.json").write_text('{"plan": {"model": {"path": "/srv/m"}, "draft": {"path": "/srv/d"}}}')
    (releases / "0.json").write_text('{"plan": {"model": {"path": "/srv/o"}}}')
    system = System(units=tmp_path, releases=releases, requests=tmp_path, processes=tmp_path)
    assert {str(path) for path in system.users()} == {"/srv/m", "/srv/d", "/srv/o"}


def test_the_role_pulls_it_with_the_plan_of_a_model() -> None:
    made = decide("B200", 8, speculative_draft_model="MiniMax-M3-DSpark", **M3)
    plan, alone = made.as_dict(), draft_alone(made)
    assert alone["model"]["path"] == plan["draft"]["path"]
    assert alone["weights"]["instance"] == "minimax-m3-draft"
    assert alone["weights"]["sources"] == plan["draft"]["sources"]
    # All that the role's tasks read of the model and its weights is there.
    text = "".join(file.read_text() for file in Path("roles/model_weights").rglob("*.yml"))
    for part in ("model", "weights"):
        assert set(re.findall(rf"metal_plan\.{part}\.(\w+)", text)) <= set(alone[part])


def test_a_lifted_refusal_starts_no_engine_with_a_draft_of_no_revision() -> None:
    draft = "MiniMax-M2.5-Eagle3"
    settings: dict[str, Any] = {
        "model": "MiniMax-M2.5",
        "speculative_draft_model": draft,
        "accept_refusals": ["speculative"],
    }
    result = decide("H200", 8, **settings)
    assert "speculative" in {refusal.code for refusal in result.accepted}
    assert result.draft is None
    assert not any("None" in word or "speculative" in word for word in result.services[0].argv)

"""Whole rollouts, run by Ansible with roles that only log their calls."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.rollout import UNIT, Stage

TAGS = ("--tags", "rollout")
FORWARD = [
    "metal rollout-state begin",
    "metal rollout-state drain", "metal soak figures", "sglang_gateway/drain new",
    "metal rollout-state stop", f"{UNIT} stopped",
    "metal rollout-state sglang_service", "page_cache/main new", "endpoint_firewall/main new",
    "sglang_service/main new",
    "metal rollout-state post_check", "post_check/main new", "metal soak trial",
    "metal rollout-state undrain", "sglang_gateway/undrain new",
    "metal rollout-state soak", "metal soak watch",
    "metal rollout-state release_record", "release_record/main new", "metal releases prune",
    "metal rollout-state done",
]  # fmt: skip
BACK = [
    "metal rollout-state rollback", "metal releases show",
    "metal rollout-state drain", "sglang_gateway/drain old", "metal rollout-state stop", f"{UNIT} stopped",
    "metal rollout-state sglang_service", "page_cache/main old", "endpoint_firewall/main old",
    "sglang_service/main old",
    "metal rollout-state post_check", "post_check/main old",
    "metal rollout-state undrain", "sglang_gateway/undrain old",
    "metal rollout-state release_record", "release_record/main old",
    "metal rollout-state returned",
]  # fmt: skip


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path, hosts=("gpu01", "gpu02"), gateway=True)


def free(stage: Stage) -> bool:
    return not any(stage.lock(host).exists() for host in stage.hosts)


def test_what_happens_to_a_host_from_its_drain_to_its_record(stage: Stage) -> None:
    played = stage.play("playbooks/rollout.yml", *TAGS)
    assert played.returncode == 0, played.output[-4000:]
    assert played.of("gpu01") == FORWARD
    assert played.of("gpu02") == FORWARD
    # A batch begins when the one before has ended.
    assert [line.split()[0] for line in played.log] == ["gpu01"] * len(FORWARD) + ["gpu02"] * len(FORWARD)
    assert free(stage)


def test_a_bad_release_is_taken_back_with_the_plan_of_the_previous_one(stage: Stage) -> None:
    """Also from the host that has it, if asked for. Nothing is watched or pruned on the way back."""
    played = stage.play(
        "playbooks/rollout.yml",
        *TAGS,
        faults=["gpu02 post_check new"],
        variables={"metal_rollout_on_failure": "revert"},
    )
    assert played.returncode == 2
    failed = FORWARD[: FORWARD.index("post_check/main new") + 1]
    assert played.of("gpu02") == failed + BACK
    assert played.of("gpu01") == [*FORWARD, "metal rollout-state begin", *BACK]
    assert (
        "gpu02: rolled back to its previous release, serving: Fail where the test says so: post_check is bad"
        in played.output
    )
    assert "gpu01: rolled back to its previous release (metal_rollout_on_failure: revert)" in played.output
    assert free(stage)


def test_a_rollback_goes_through_the_same_stages_with_the_plan_of_the_release(stage: Stage) -> None:
    played = stage.play("playbooks/rollback.yml", "--limit", "gpu01")
    assert played.returncode == 0, played.output[-4000:]
    skipped = {"metal soak figures", "metal soak watch", "metal rollout-state soak"}
    expected = [line.replace(" new", " old") for line in FORWARD if line not in skipped]
    assert played.of("gpu01") == ["metal releases show", *expected]
    assert played.of("gpu02") == []
    assert free(stage)


def test_check_mode_takes_nobody_out_of_service_and_waits_for_nobody(stage: Stage) -> None:
    stage.held("gpu02", run="other", user="eve")
    played = stage.play("playbooks/rollout.yml", *TAGS, "--check")
    assert played.returncode == 0, played.output[-4000:]
    assert "gpu02: found the fleet locked by eve@desk since" in played.output
    assert played.of("gpu01") == [line for line in FORWARD if "/" in line]
    assert not stage.lock("gpu01").exists()

"""The stages of a rollout: one list for display, records and requests."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from minimax_metal.controller.report.timeline import timeline
from minimax_metal.controller.run.events import Run
from minimax_metal.controller.run.view import hosts_table
from minimax_metal.host.releases import journal
from minimax_metal.plan.rollout.stage import CHANGE, INSEPARABLE, OUT_OF_POOL, Stage, colour_of, label_of
from minimax_metal.plan.rollout.verdict import tags_refusal
from minimax_metal.plan.rollout.works import serving_of

PLAYBOOKS = Path(__file__).parents[2] / "playbooks"
UNITS = {"sglang@a.service": {"active": True}}


def test_every_stage_has_a_label_and_a_colour_of_its_own() -> None:
    assert len({stage.label for stage in Stage}) == len(Stage)
    assert len({stage.colour for stage in Stage}) == len(Stage)
    assert [label_of(stage.value) for stage in Stage] == [stage.label for stage in Stage]
    # Of a run that a later version kept.
    assert (label_of("stretch"), colour_of("stretch")) == ("stretch", "#999999")


@pytest.mark.parametrize("stage", list(Stage))
def test_a_host_that_stopped_between_drain_and_undrain_does_not_serve(stage: Stage) -> None:
    facts = {"units": UNITS, "journal": {"run": "r", "stage": stage.value, "ended": None}}
    out = stage.value in {"drain", "stop", "sglang_service", "post_check", "rollback"}
    assert serving_of(facts, gateway=True) == (0 if out else 1)
    assert serving_of(facts, gateway=False) == 1
    assert (stage in OUT_OF_POOL) == out


def test_a_host_is_in_the_pool_before_and_after_its_change() -> None:
    pool = "".join("o" if stage.out_of_pool else "i" for stage in CHANGE)
    assert pool == "ooooiii"


@pytest.mark.parametrize("stage", [*CHANGE, Stage.ROLLBACK])
def test_the_journal_takes_every_stage_of_a_change_and_no_other(stage: Stage, tmp_path: Path) -> None:
    file = tmp_path / "rollout.json"
    journal.write(journal.begun("r", "rollout", "b", None, None), file)
    assert journal.main(["--file", str(file), "stage", stage.value, "--run", "r"]) == 0
    assert json.loads(file.read_text())["stage"] == stage.value
    with pytest.raises(SystemExit):
        journal.main(["--file", str(file), "stage", "drian", "--run", "r"])


@pytest.mark.parametrize("stage", [*CHANGE, Stage.ROLLBACK])
def test_a_change_is_run_with_all_its_stages_or_none(stage: Stage) -> None:
    refused = stage is not Stage.SOAK
    assert bool(tags_refusal([stage.value], [])) == refused
    assert bool(tags_refusal(["all"], [stage.value])) == refused
    assert (stage in INSEPARABLE) == refused
    assert tags_refusal(["rollout", stage.value], []) == ""


def test_live_view_and_timeline_name_a_stage_by_its_label() -> None:
    run = Run().take_all(
        {"kind": kind, "host": "a", "stage": Stage.SERVE.value, "task": "t", "at": at}
        for kind, at in (("begin", 1.0), ("ok", 100.0))
    )
    table = hosts_table(run, list(run.hosts.values()), run.seen_stages(), 100.0, 120)
    assert [column.header for column in table.columns] == ["host", "serve", ""]
    spans = [
        {"stage": s.stage, "began": s.began, "ended": s.ended, "status": s.status}
        for s in run.hosts["a"].spans
    ]
    picture = timeline([{"host": "a", "verdict": "unchanged", "spans": spans}], 1.0, 99.0)
    assert ">serve</text>" in picture
    assert Stage.SERVE.colour in picture


@pytest.mark.parametrize("stage", CHANGE)
def test_a_stage_lives_in_the_file_of_its_name_and_says_so_in_the_journal(stage: Stage) -> None:
    tasks = yaml.safe_load((PLAYBOOKS / f"stages/{stage.label}.yml").read_text())
    assert tasks[0]["ansible.builtin.import_tasks"] == "../tasks/rollout/journal.yml"
    assert tasks[0]["vars"] == {"__rollout_entry": ["stage", stage.value]}
    host = yaml.safe_load((PLAYBOOKS / "tasks/rollout/host.yml").read_text())
    (include,) = [
        one["ansible.builtin.include_tasks"]
        for one in host
        if one["ansible.builtin.include_tasks"]["file"].endswith(f"/{stage.label}.yml")
    ]
    assert include["apply"]["tags"] == [stage.value]


def test_the_stage_files_are_those_of_a_change_and_no_others() -> None:
    assert {path.stem for path in (PLAYBOOKS / "stages").iterdir()} == {stage.label for stage in CHANGE}


def test_a_plan_is_made_once_and_never_overwritten() -> None:
    """By preflight, or in a rollback by the release; a way back passes roles another one as a parameter."""
    setting = re.compile(r"set_fact:\n +metal_plan:")
    found = {path.name for path in PLAYBOOKS.rglob("*.yml") if setting.search(path.read_text())}
    assert found == {"plan.yml", "choose.yml"}
    roles = [path for path in (PLAYBOOKS.parent / "roles").rglob("*.yml") if setting.search(path.read_text())]
    assert roles == []

"""The texts of a rollout."""

from __future__ import annotations

import re
from pathlib import Path

from minimax_metal.plan.rollout.stage import CHANGE
from minimax_metal.plan.rollout.verdict import (
    Outcome,
    failure_text,
    lock_refusals,
    standings,
    tags_refusal,
    verdict,
)

BATCHES = [["a"], ["b", "c"], ["d"]]


def test_nothing_is_said_when_all_is_well() -> None:
    done = {host: Outcome("done") for host in "abcd"}
    assert verdict(BATCHES, list("abcd"), done) == []


def test_every_host_that_did_not_get_its_release_is_named() -> None:
    results = {
        "a": Outcome("done"),
        "b": Outcome("returned", "Require that every endpoint is ready: no token"),
    }
    lines = verdict(BATCHES, ["a", "b", "c"], results, "b, c did not get its release")
    assert (
        lines[0]
        == "b: rolled back to its previous release, serving: Require that every endpoint is ready: no token"
    )
    assert lines[1].startswith("c: lost during its change")
    assert lines[2:] == ["not touched: d", "on the new release: a"]


def test_a_run_that_stopped_before_a_batch_says_why() -> None:
    lines = verdict(BATCHES, ["a"], {"a": Outcome("done")}, "b: found 2 replicas")
    assert lines == ["stopped: b: found 2 replicas", "not touched: b, c, d", "on the new release: a"]


def test_a_failure_is_one_line_of_what_was_said() -> None:
    assert failure_text("T", {"msg": "non-zero return code", "stderr": "no\n such"}) == "T: no such"
    looped = {
        "msg": "One or more items failed",
        "results": [{"msg": "fine"}, {"failed": True, "msg": ["a", "b"]}],
    }
    assert failure_text("T", looped) == "T: a b"
    assert len(failure_text("T", {"msg": "x" * 9000}, width=100)) == 103
    assert failure_text("T", {}) == "T: no reason given"


def test_a_part_of_a_hosts_change_is_refused() -> None:
    assert tags_refusal(["all"], []) == ""
    assert tags_refusal(["host_tools", "model_weights"], []) == ""
    assert tags_refusal(["rollout"], ["soak"]) == ""
    assert "found the tags drain, stop" in tags_refusal(["stop", "drain"], [])
    assert "found the tags post_check" in tags_refusal(["all"], ["post_check"])


def test_who_holds_the_lock_is_said_once() -> None:
    (line,) = lock_refusals({"a": "ops@desk since noon", "b": "ops@desk since noon", "c": ""})
    assert line.startswith("a, b: found the fleet locked by ops@desk since noon; expected nobody else")
    assert "metal_lock_break=true" in line
    assert lock_refusals({"a": ""}) == []


def test_runs_that_ended_well_leave_nothing_to_say() -> None:
    journal = {"run": "R", "ended": "T", "result": "done"}
    assert standings({"a": {"journal": journal}, "b": {"journal": None}}) == []
    failed = journal | {"result": "failed", "message": "no GPU", "from_release": None, "to_release": "y"}
    assert standings({"a": {"journal": failed}}) == ["a: rollout R failed from no release to y: no GPU"]


def test_no_file_of_tasks_is_taken_for_a_playbook() -> None:
    # An include looks beside the playbook as well: a file of both names would be found there first.
    playbooks = Path(__file__).parents[2] / "playbooks"
    tasks = {path.name for path in (playbooks / "tasks" / "rollout").glob("*.yml")}
    assert tasks
    assert not tasks & {
        path.name for place in (playbooks, playbooks / "tasks") for path in place.glob("*.yml")
    }
    # Stages have the names of verbs: they are included by their directory.
    host = (playbooks / "tasks" / "rollout" / "host.yml").read_text()
    assert re.findall(r"file: (\S+?),", host) == [f"../../stages/{stage.label}.yml" for stage in CHANGE]

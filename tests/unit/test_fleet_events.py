"""A run's state is computed from its records alone, whatever order hosts finish in."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.common.redact import Redactor
from minimax_metal.controller.report.make import data_of, html_of
from minimax_metal.controller.run.events import Run
from minimax_metal.controller.run.history import History
from minimax_metal.controller.run.outcome import Exit, exit_status, sentence
from minimax_metal.controller.run.plain import Plain
from minimax_metal.controller.run.records import Record, record_of
from minimax_metal.controller.run.stages import stage_of
from minimax_metal.controller.run.store import Store
from minimax_metal.controller.run.view import VERDICTS, failure_lines

NOBODY = Redactor()


def record(
    kind: str, host: str | None = None, stage: str | None = None, at: float = 0.0, **more: Any
) -> Record:
    return {"kind": kind, "host": host, "stage": stage, "task": more.pop("task", "A task"), "at": at, **more}


def done(host: str, stage: str, at: float, kind: str = "ok", **more: Any) -> list[Record]:
    return [record("begin", host, stage, at), record(kind, host, stage, at + 1.0, **more)]


@pytest.mark.parametrize(
    ("role", "tags", "path", "stage"),
    [
        ("host_tools", ["host_tools"], "/p/roles/host_tools/tasks/main.yml:3", "host_tools"),
        ("minimax.metal.host_tools", [], None, "host_tools"),
        ("page_cache", [], None, "model_weights"),
        ("sglang_gateway", ["drain"], None, "drain"),
        ("sglang_service", ["rollback", "sglang_service"], None, "rollback"),
        (None, ["always"], "/p/playbooks/tasks/plan.yml:12", "preflight"),
        (None, [], "/p/playbooks/tasks/settings.yml:4", "preflight"),
        (None, ["soak"], "/p/playbooks/rollout.yml:99", "soak"),
        (None, ["always"], "/p/playbooks/rollout.yml:9", None),
        ("somebody_elses", [], "/elsewhere/main.yml:1", None),
    ],
)
def test_a_task_belongs_to_the_stage_that_says_most(
    role: str | None, tags: list[str], path: str | None, stage: str | None
) -> None:
    assert stage_of(role, tags, path) == stage


def test_a_stage_is_changed_when_one_of_its_tasks_changed_something() -> None:
    run = Run().take_all(
        [
            *done("a", "host_tools", 10.0),
            *done("a", "host_tools", 12.0, "changed", result={"dest": "/etc/x"}),
            *done("a", "host_tools", 14.0),
            *done("a", "post_check", 20.0),
        ]
    )
    stages = run.hosts["a"].stages
    assert (stages["host_tools"].status, stages["host_tools"].seconds) == ("changed", 5.0)
    assert stages["post_check"].status == "ok"
    assert [(change.task, change.what) for change in run.changes] == [("A task", "/etc/x")]
    assert run.hosts["a"].verdict == "changed"
    assert run.tasks_done("a") == 4


def test_a_stage_that_is_come_back_to_counts_only_its_own_time() -> None:
    run = Run().take_all(
        [
            *done("a", "model_weights", 0.0),
            *done("a", "nvidia_driver", 1.0),
            record("begin", "a", "model_weights", 100.0),
            record("ok", "a", "model_weights", 130.0),
        ]
    )
    stage = run.hosts["a"].stages["model_weights"]
    assert stage.seconds == 31.0
    assert [span.stage for span in run.hosts["a"].spans] == [
        "model_weights",
        "nvidia_driver",
        "model_weights",
    ]


def test_a_stage_of_which_everything_was_skipped_is_skipped_and_asked_nothing() -> None:
    run = Run().take_all([record("begin", "a", "rollback", 1.0), record("skipped", "a", "rollback", 1.1)])
    assert run.hosts["a"].stages["rollback"].status == "skipped"
    assert run.tasks_done("a") == 0
    assert run.hosts["a"].verdict == "unchanged"


def test_items_are_changes_of_their_own_and_the_loop_is_not_one_more() -> None:
    run = Run().take_all(
        [
            record("begin", "a", "host_tools"),
            record("item", "a", "host_tools", became="changed", result={"label": "one"}),
            record("item", "a", "host_tools", became="changed", result={"label": "two"}),
            record("changed", "a", "host_tools", result={"changed": True, "items": [{"changed": True}]}),
        ]
    )
    assert [change.what for change in run.changes] == ["one", "two"]


def test_a_failed_host_that_went_back_is_reverted_and_its_failure_is_told() -> None:
    run = Run().take_all(
        [
            *done("a", "sglang_service", 1.0, "failed", result={"failed": True, "msg": "no token\nin 300 s"}),
            *done("a", "rollback", 5.0, "changed"),
            record("stats", failures={"a": 1}, dark={}),
        ]
    )
    host = run.hosts["a"]
    assert host.verdict == "reverted"
    assert host.stages["sglang_service"].status == "failed"
    assert run.failures[0].lines == ("no token", "in 300 s")


def test_a_rescued_host_without_a_rollback_has_not_failed() -> None:
    run = Run().take_all(
        [
            *done("a", "nvidia_driver", 1.0, "failed"),
            *done("a", "nvidia_driver", 2.0),
            record("stats", failures={}),
        ]
    )
    assert run.hosts["a"].verdict == "unchanged"
    assert len(run.failures) == 1


def test_of_a_loop_that_failed_the_failed_items_say_why() -> None:
    items = [{"changed": True}, {"failed": True, "msg": "no such package"}]
    run = Run().take_all(
        done(
            "a", "cuda_toolkit", 1.0, "failed", result={"failed": True, "msg": "One or more", "items": items}
        )
    )
    assert run.failures[0].lines == ("no such package",)


def test_a_run_that_ends_in_the_middle_says_which_hosts_were_at_work() -> None:
    run = Run().take_all([*done("a", "stop", 1.0), record("begin", "b", "stop", 2.0), record("end", at=9.0)])
    assert (run.hosts["a"].verdict, run.hosts["b"].verdict) == ("unchanged", "interrupted")
    assert run.hosts["b"].stages["stop"].status == "interrupted"


def test_a_pull_says_how_far_it_is() -> None:
    run = Run().take_all(
        [
            record("begin", "a", "model_weights", 1.0),
            record(
                "line",
                text="  a: weights MiniMax-M2.5: 41.3 % (95.0 of 230.0 GB), 9 min left",
                sort="verbose",
            ),
            record("line", text="  stranger: weights X: 1.0 %", sort="verbose"),
        ]
    )
    progress = run.hosts["a"].progress
    assert progress is not None
    assert (progress.what, progress.name, progress.share) == ("weights", "MiniMax-M2.5", 0.413)
    assert list(run.hosts) == ["a"]


def test_time_left_is_what_came_behind_the_same_step_of_the_earlier_run() -> None:
    earlier = History([("play p", 0.0), ("task t", 10.0), ("task t", 30.0), ("task u", 50.0)], ended=60.0)
    assert earlier.left([("play p", 100.0), ("task t", 105.0)], now=108.0) == 47.0
    # The second batch runs the same task: less is left then.
    assert earlier.left([("play p", 100.0), ("task t", 105.0), ("task t", 120.0)], now=120.0) == 30.0
    # A step that was not in it counts from the last one that was; later than then, nobody knows how much.
    assert earlier.left([("task u", 100.0), ("task new", 103.0)], now=105.0) == 5.0
    assert earlier.left([("task u", 100.0), ("task new", 103.0)], now=200.0) is None
    assert earlier.left([("task new", 1.0)], now=2.0) is None


REFUSED = {"failed": True, "msg": ["a: gpu-none: found no NVIDIA GPU; needed 4; check it"]}
UNREACHABLE = {"failed": True, "msg": ["a: unreachable: found no answer over SSH; needed a host"]}


@pytest.mark.parametrize(
    ("returned", "records", "stopped", "status"),
    [
        (0, done("a", "post_check", 1.0), False, Exit.DONE),
        (2, done("a", "preflight", 1.0, "failed", result=REFUSED), False, Exit.REFUSED),
        (2, done("a", "preflight", 1.0, "failed", result=UNREACHABLE), False, Exit.UNREACHABLE),
        (4, [], False, Exit.REFUSED),
        (1, [], False, Exit.REFUSED),
        (4, done("a", "stop", 1.0, "unreachable"), False, Exit.UNREACHABLE),
        (2, done("a", "post_check", 1.0, "failed"), False, Exit.FAILED),
        (
            2,
            [
                *done("a", "host_tools", 0.0, "changed"),
                *done("b", "preflight", 1.0, "failed", result=REFUSED),
            ],
            False,
            Exit.FAILED,
        ),
        (99, done("a", "stop", 1.0), True, Exit.INTERRUPTED),
        (0, done("a", "stop", 1.0), True, Exit.INTERRUPTED),
        (2, done("a", "post_check", 1.0, "failed"), True, Exit.FAILED),
        (254, done("a", "stop", 1.0), True, Exit.INTERRUPTED),
    ],
)  # fmt: skip
def test_the_exit_status_says_what_became_of_the_run(
    returned: int, records: list[Record], stopped: bool, status: Exit
) -> None:
    run = Run().take_all(records)
    assert exit_status(returned, run, stopped=stopped) is status
    assert sentence(status, run)


def test_an_event_of_the_runner_becomes_a_record() -> None:
    event = {
        "event": "runner_on_ok",
        "created": "2026-11-22T03:00:00.500000+00:00",
        "event_data": {
            "host": "gpu01",
            "task": "Write the unit of each instance",
            "role": "sglang_service",
            "task_path": "/home/anna/minimax-metal/roles/sglang_service/tasks/main.yml:80",
            "tags": ["sglang_service"],
            "task_action": "ansible.builtin.template",
            "res": {"changed": True, "dest": "/etc/systemd/system/x.service"},
        },
    }
    made = record_of(event, NOBODY)
    assert made is not None
    assert (made["kind"], made["host"], made["stage"]) == ("changed", "gpu01", "sglang_service")
    assert made["at"] == 1795316400.5
    assert made["where"] == "sglang_service/tasks/main.yml:80"
    assert record_of({"event": "playbook_on_notify", "event_data": {}}, NOBODY) is None


def test_a_host_that_waits_for_its_batch_is_waiting_and_not_unchanged() -> None:
    run = Run().take_all([*done("a", "host_tools", 0.0), *done("b", "host_tools", 0.0, "changed")])
    run.take(record("begin", "a", "drain", 5.0))
    assert [run.verdict_of(host) for host in run.hosts.values()] == ["running", "waiting"]
    run.take(record("ok", "a", "drain", 6.0))
    run.take(record("stats", failures={}))
    assert [run.verdict_of(host) for host in run.hosts.values()] == ["unchanged", "changed"]


def test_a_run_that_asked_nobody_is_no_success() -> None:
    """metal site with a wrong inventory or group; before: done, no host was asked, status 0."""
    assert exit_status(0, Run(), stopped=False) == 2


def test_a_held_lock_is_a_refusal_and_not_a_failure() -> None:
    said = ["gpu01: found the fleet locked by ann@desk; expected nobody else at work on it"]
    run = Run().take_all(done("a", "sglang_service", 1.0, "failed", result={"failed": True, "msg": said}))
    assert exit_status(2, run, stopped=False) == 2
    # Nothing was said of the lock: a failure.
    run = Run().take_all(done("a", "sglang_service", 1.0, "failed", result={"failed": True, "msg": ["no"]}))
    assert exit_status(2, run, stopped=False) == 1


def refusal(speaker: str, *lines: str, **more: Any) -> list[Record]:
    """A run_once task reports on its first host what is wrong with any; Ansible counts only that one."""
    return [
        *(record_ for host in ("a", "b", "c") for record_ in done(host, "preflight", 0.0)),
        record("begin", speaker, "preflight", 5.0),
        record("failed", speaker, "preflight", 6.0, result={"failed": True, "msg": list(lines)}),
        record("stats", failures={speaker: 1}, dark={}, **more),
    ]


GPU = "found no NVIDIA GPU; needed 4; check it"
VERDICTS_OF_REFUSALS: dict[str, tuple[list[str], list[str], str]] = {
    "another host is refused": (
        [f"b: gpu-none: {GPU}", "b: disk: found 1 GB; needed 2; free some"],
        ["unchanged", "refused", "unchanged"],
        "refused, nothing was changed: 2 unchanged, 1 refused",
    ),
    "the speaker too": (
        [f"a: gpu-none: {GPU}", f"c: gpu-none: {GPU}"],
        ["refused", "unchanged", "refused"],
        "refused, nothing was changed: 2 refused, 1 unchanged",
    ),
    "one away, one refused": (
        ["b: unreachable: found no answer over SSH; needed a host; start it", f"c: gpu-none: {GPU}"],
        ["unchanged", "unreachable", "refused"],
        "refused, nothing was changed: 1 unchanged, 1 unreachable, 1 refused",
    ),
    "one away": (
        ["c: ssh-login: found a login that is refused; needed one; fix it"],
        ["unchanged", "unchanged", "unreachable"],
        "not every host could be reached: 2 unchanged, 1 unreachable",
    ),
    "several in one line": (
        ["b, c: found the fleet locked by ann@desk; expected nobody else at work on it"],
        ["unchanged", "refused", "refused"],
        "refused, nothing was changed: 1 unchanged, 2 refused",
    ),
    "nobody by name": (
        ["found the tags drain, expected all stages of a host's change or none"],
        ["refused", "unchanged", "unchanged"],
        "refused, nothing was changed: 1 refused, 2 unchanged",
    ),
}


@pytest.mark.parametrize("name", VERDICTS_OF_REFUSALS)
def test_a_refused_host_is_shown_as_refused_and_who_says_so_is_not(name: str) -> None:
    lines, verdicts, words = VERDICTS_OF_REFUSALS[name]
    run = Run().take_all(refusal("a", *lines))
    assert [host.verdict for host in run.hosts.values()] == verdicts
    status = exit_status(2, run, stopped=False)
    assert status is (Exit.UNREACHABLE if name == "one away" else Exit.REFUSED)
    assert sentence(status, run) == words
    assert all(verdict in VERDICTS for verdict in verdicts)
    marks = ["failed" if verdict in {"refused", "unreachable"} else "ok" for verdict in verdicts]
    assert [host.stages["preflight"].status for host in run.hosts.values()] == marks


def test_a_refusal_is_shown_under_the_refused_hosts_name(tmp_path: Path) -> None:
    records = refusal("a", f"b: gpu-none: {GPU}", f"c: gpu-none: {GPU}")
    run = Run()
    output = io.StringIO()
    shown = Plain(output)
    for one in records:
        run.take(one)
        shown.update(one, run)
    shown.finish(run)
    assert f"b and 1 more: preflight: REFUSED: A task: b: gpu-none: {GPU}" in output.getvalue()
    assert re.search(r"a: preflight: ok after \d s; unchanged", output.getvalue())
    assert re.search(r"b: preflight: failed after \d s; refused", output.getvalue())
    assert failure_lines(run.failures, 1)[0].plain.startswith("✗ b and 1 more: A task: b: gpu-none: ")
    kept = Store(tmp_path).new("site")
    kept.write("events.jsonl", "".join(json.dumps(one) + "\n" for one in records))
    data = data_of(kept)
    assert [(one["host"], one["kind"]) for one in data["failures"]] == [("b and 1 more", "refused")]
    page = html_of(data)
    assert page.count('<td class="bad">refused</td>') == 2
    assert '<b class="bad">2</b>refused' in page


def test_what_failed_besides_a_refusal_is_not_forgotten() -> None:
    run = Run().take_all(
        [*done("a", "host_tools", 1.0, "failed"), *refusal("a", f"b: gpu-none: {GPU}", f"c: gpu-none: {GPU}")]
    )
    assert [host.verdict for host in run.hosts.values()] == ["failed", "refused", "refused"]
    assert exit_status(2, run, stopped=False) is Exit.FAILED


def test_a_reading_that_was_rescued_refuses_nobody() -> None:
    """An unreadable host is a plan's refusal, reported at the end; a host that was read then has none."""
    run = Run().take_all(
        [*done("a", "preflight", 1.0, "failed"), *done("a", "preflight", 2.0), record("stats", failures={})]
    )
    assert run.hosts["a"].verdict == "unchanged"


def test_an_estimate_is_of_a_run_that_was_asked_the_same(tmp_path: Path) -> None:
    store = Store(tmp_path)
    same = {"verb": "site", "check": False, "limit": None, "tags": [], "inventories": ["/a"]}
    store.new("site").describe(same | {"exit": 0})
    assert store.latest(**same) is not None
    for key, other in {"inventories": ["/b"], "limit": "gpu01", "tags": ["soak"], "check": True}.items():
        assert store.latest(**(same | {key: other})) is None


def test_every_tag_of_a_role_is_a_stage() -> None:
    for name in ("package_sources", "artefact_cache"):
        assert stage_of(name) == name

"""A start's progress, and its failure, from systemd's output."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure

from minimax_metal.host.engine.starts import Start, lines_of, parse_starts
from tests.support.actions import Answering, lines_said
from tests.support.plugins import load_plugin

LOADING = """\
Id=sglang@minimax-m2.5.service
NRestarts=0
StatusText=starting: loading weights, 43 %; engine running for 31 s of at most 20 min, no port yet
ActiveState=activating
SubState=start
"""
READY = """\
Id=sglang@minimax-m2.5.service
NRestarts=0
StatusText=ready: answered http://127.0.0.1:30000/health after 45 s
ActiveState=active
SubState=running
"""
AGAIN = """\
Id=sglang@minimax-m2.5.service
NRestarts=1
StatusText=failed: the engine exited with status 1
ActiveState=activating
SubState=auto-restart
"""
TARGET = "Id=sglang.target\nActiveState=active\nSubState=active\n"


AWAIT = load_plugin("action/metal_service_await")


def test_units_are_read_as_systemd_prints_them() -> None:
    service, target = parse_starts(f"motd\n\n{LOADING}\r\n{TARGET}")
    assert (service.name, service.progress, service.restarts) == ("minimax-m2.5", "loading weights, 43 %", 0)
    assert (target.name, target.progress) == ("sglang.target", "active (active)")
    assert parse_starts("timeout: command not found\n") == ()


def test_only_what_is_new_is_said() -> None:
    starts = parse_starts(LOADING)
    line = {"sglang@minimax-m2.5.service": "engine minimax-m2.5: loading weights, 43 %"}
    assert lines_of(starts, {}) == line
    later = parse_starts(LOADING.replace("alive 31 s", "alive 33 s"))
    assert lines_of(later, line) == {}, "time alone is no progress"


@pytest.mark.parametrize(
    ("before", "now", "over"),
    [
        (None, LOADING, False),
        (None, READY, False),
        (None, AGAIN, True),
        (LOADING, LOADING.replace("NRestarts=0", "NRestarts=1"), True),
        (LOADING, LOADING, False),
        (None, LOADING.replace("activating", "failed"), True),
    ],
)
def test_a_start_that_failed_is_over_though_systemd_tries_again(
    before: str | None, now: str, over: bool
) -> None:
    earlier: Start | None = parse_starts(before)[0] if before else None
    assert parse_starts(now)[0].over(earlier) is over


class Waiting(Answering, AWAIT.ActionModule):  # type: ignore[name-defined, misc]  # loaded by its path
    """The wait for a start."""


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return lines_said(monkeypatch, AWAIT)


def awaited(*answers: Any, patience: int = 0) -> dict[str, Any]:
    waiting = Waiting(answers, units=["sglang@minimax-m2.5.service"], interval=1, patience=patience)
    found: dict[str, Any] = waiting.run(task_vars={"inventory_hostname": "gpu01"})
    return found


def test_a_start_is_awaited_and_shown(said: list[str]) -> None:
    found = awaited((124, LOADING), (124, LOADING), (0, READY))
    assert found == {"changed": False, "ready": True, "states": []}
    assert said == [
        "  gpu01: engine minimax-m2.5: loading weights, 43 %",
        "  gpu01: engine minimax-m2.5: ready: answered http://127.0.0.1:30000/health after 45 s",
    ]


def test_a_failed_start_says_why_at_once(said: list[str]) -> None:
    found = awaited((124, LOADING), (124, AGAIN))
    assert found["ready"] is False
    assert found["states"] == ["failed: the engine exited with status 1"]
    assert said[-1] == "  gpu01: engine minimax-m2.5: failed: the engine exited with status 1"


def test_a_unit_that_systemd_refuses_is_no_start(said: list[str]) -> None:
    found = awaited((5, "Failed to start x.service: Unit x.service not found.\n"))
    assert found["ready"] is False
    assert found["states"] == ["systemctl start sglang@minimax-m2.5.service ended with 5"]
    assert said == []


def test_a_lost_connection_costs_nothing_and_an_endless_one_ends(said: list[str]) -> None:
    lost = AnsibleConnectionFailure("gone")
    assert awaited(lost, (0, READY), patience=60)["ready"] is True
    assert "connection lost, the engine continues" in said[0]
    with pytest.raises(AnsibleActionFail, match="the engine continues on the host: run the play again"):
        awaited(lost)


REFUSED = """\
Id=sglang@minimax-m2.5.service
NRestarts=0
StatusText=failed: cannot start /opt/sglang/x/bin/sglang: no such file; run the playbook again
ActiveState=failed
SubState=failed
Result=start-limit-hit
"""


def test_a_start_that_systemd_refuses_is_not_told_as_the_failure_of_an_older_one(said: list[str]) -> None:
    found = awaited((1, REFUSED))
    assert found["ready"] is False
    (told,) = found["states"]
    assert told.startswith("sglang@minimax-m2.5.service failed too often, so systemd refuses to start it")
    assert "systemctl reset-failed sglang@minimax-m2.5.service" in told
    assert told.endswith("the earlier failure: cannot start /opt/sglang/x/bin/sglang: no such file; run the "
                         "playbook again")  # fmt: skip


def test_a_unit_that_did_not_run_has_no_words_of_its_own(said: list[str]) -> None:
    text = REFUSED.replace("failed\nSub", "inactive\nSub").replace("SubState=failed", "SubState=dead")
    found = awaited((1, text.replace("start-limit-hit", "success")))
    assert found["states"] == ["sglang@minimax-m2.5.service inactive (dead)"]

"""The play's wait for a pull: its display, its reports, and the cost of a lost connection."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure

from tests.support.actions import Answering, lines_said
from tests.support.plugins import load_plugin

AWAIT = load_plugin("action/metal_weights_await")
GOES_ON = "weights MiniMax-M2.5: 43 % of 230 GB, 1.1 GB/s\n"
THERE = 'weights MiniMax-M2.5: verified\n{"fetched": 7, "peers": 5}\n'


class Waiting(Answering, AWAIT.ActionModule):  # type: ignore[name-defined, misc]  # loaded by its path
    """The wait for a pull."""


@pytest.fixture(autouse=True)
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return lines_said(monkeypatch, AWAIT)


def awaited(*answers: Any, **arguments: Any) -> dict[str, Any]:
    given = {"request": "/etc/a request.json", "interval": 1, "patience": 0} | arguments
    waiting = Waiting(answers, **given)
    found: dict[str, Any] = waiting.run(task_vars={"inventory_hostname": "gpu01"})
    assert all("'/etc/a request.json'" in command for command in waiting.commands)
    return found


def test_a_pull_is_awaited_and_counted(said: list[str]) -> None:
    found = awaited((6, GOES_ON), (6, GOES_ON), (0, THERE))
    assert found["came"] == {"fetched": 7, "peers": 5}
    assert said == [f"  gpu01: {GOES_ON.strip()}", "  gpu01: weights MiniMax-M2.5: verified"]


def test_what_was_there_before_is_not_counted_again() -> None:
    assert awaited((0, THERE), pulled=False)["came"] == {}


def test_a_lost_connection_costs_nothing_and_an_endless_one_ends(said: list[str]) -> None:
    lost = AnsibleConnectionFailure("gone")
    assert awaited(lost, (0, THERE), patience=60)["line"] == "weights MiniMax-M2.5: verified"
    assert said[0] == "  gpu01: connection lost, the pull continues; reconnecting"
    with pytest.raises(AnsibleActionFail, match="the pull continues on the host: run the play again"):
        awaited(lost)


def test_a_pull_that_failed_says_why() -> None:
    with pytest.raises(AnsibleActionFail, match=r"^No room: 3 GB are free, 230 GB are needed$"):
        awaited((1, "metal weights: No room: 3 GB are free, 230 GB are needed\nmore\n"))


def test_time_ends_the_wait_and_not_the_pull() -> None:
    with pytest.raises(AnsibleActionFail, match="not verified within 0 s, the pull continues; last: weights"):
        awaited((6, GOES_ON), timeout=0)


def test_one_hosts_words_act_on_no_terminal_and_end_no_play(said: list[str]) -> None:
    found = awaited(
        (
            0,
            "weights m: \x1b]0;x\x07\x1b[2Jverified\x9b31m\n"
            '{"fetched": "x", "peers": -1, "seconds": 1e300}\n',
        )
    )
    assert found["came"] == {}
    assert said == ["  gpu01: weights m: verified31m"]
    for odd in ("{" * 100_000, '{"fetched": []}', "{}", '{"fetched": true, "peers": 1e30}'):
        came = awaited((0, f"weights m: verified\n{odd}\n"))["came"]
        assert set(came) <= {"fetched"}

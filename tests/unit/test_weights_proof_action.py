"""The task that resolves the files of a model: on the controller, and from one host if it can't."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail

from minimax_metal.host.weights.errors import SourceError
from tests.support.plugins import load_plugin

PROOF = load_plugin("action/metal_weights_proof")
COMMIT = "c" * 40
STATED = {
    "by": "hub",
    "origin": "https://huggingface.co",
    "repository": "A/B",
    "revision": COMMIT,
    "resolver": "this host",
    "time": "2026-11-29T00:00:00Z",
    "files": [{"path": "config.json", "size": 3, "git_oid": "1" * 40}],
}


class Resolving(PROOF.ActionModule):  # type: ignore[name-defined, misc]  # loaded by its path
    """The task, with a host that gives the test's answers."""

    def __init__(self, answer: dict[str, Any], check: bool = False, **given: Any) -> None:
        source = {
            "kind": "hf-mirror",
            "repository": "A/B",
            "revision": COMMIT,
            "endpoint": "https://hf-mirror.com",
        }
        arguments = {"repository": "A/B", "revision": COMMIT, "sources": [source], **given}
        self._task = SimpleNamespace(args=arguments, check_mode=check, async_val=0, action="x")
        self._connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir=None), has_pipelining=True)
        self.answer = answer
        self.commands: list[Any] = []

    def _execute_module(self, **more: Any) -> dict[str, Any]:
        self.commands.append(more["module_args"])
        return self.answer


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(source: Any, *_: Any) -> Any:
        raise SourceError(f"{source}: Connection refused")

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(PROOF.resolve, "__kwdefaults__", {**PROOF.resolve.__kwdefaults__, "ask": refused})


def run(task: Resolving) -> dict[str, Any]:
    found: dict[str, Any] = task.run(task_vars={"inventory_hostname": "gpu01", "inventory_dir": "/a"})
    return found


def test_a_host_asks_the_hub_and_is_named(tmp_path: Path) -> None:
    task = Resolving({"rc": 0, "stdout": json.dumps(STATED)})
    found = run(task)
    assert found["proof"]["resolver"] == "gpu01"
    assert found["line"] == "hub's hashes (https://huggingface.co), resolved by gpu01 at 2026-11-29T00:00:00Z"
    assert found["changed"] is False
    assert task.commands[0]["argv"][1:4] == ["weights", "resolve", "--proof"]
    again = Resolving({"rc": 1})
    assert run(again)["proof"] == found["proof"], "kept on the controller"
    assert again.commands == []
    assert len(list(tmp_path.rglob("*.json"))) == 1


@pytest.mark.parametrize(
    "answer",
    [
        {"rc": 1, "stdout": ""},
        {"rc": 0, "stdout": ""},
        {"rc": 0, "stdout": "{"},
        {"rc": 0, "stdout": "[]"},
        {"rc": 0, "stdout": json.dumps({**STATED, "by": "mirror"})},
        {
            "rc": 0,
            "stdout": json.dumps({**STATED, "files": [{"path": "../x", "size": 1, "sha256": "0" * 64}]}),
        },
        {"unreachable": True},
    ],
)
def test_a_hosts_word_that_is_no_hubs_counts_for_nothing(answer: dict[str, Any]) -> None:
    found = run(Resolving(answer))
    assert found["proof"] is None
    assert "no source outside the fleet could list" in found["warnings"][0]


def test_check_mode_asks_no_host_and_keeps_nothing(tmp_path: Path) -> None:
    task = Resolving({"rc": 0, "stdout": json.dumps(STATED)}, check=True)
    assert run(task)["proof"] is None
    assert task.commands == []
    assert list(tmp_path.rglob("*")) == []


def test_a_mistake_is_one_line_with_the_host() -> None:
    with pytest.raises(
        AnsibleActionFail, match=r"^gpu01: model_weights_manifest: found /none\.json that can't be read"
    ):
        run(Resolving({"rc": 1}, manifest="/none.json"))

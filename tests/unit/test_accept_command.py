"""`metal accept` as users call it: exit status, table, one line for a mistake."""

from __future__ import annotations

import fcntl
import io
import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from minimax_metal import cli
from minimax_metal.common.errors import UserError
from minimax_metal.controller.verbs import accept as controller
from minimax_metal.host.accept import commands
from minimax_metal.host.accept.outcome import Outcome, failed, limited, of_dict, passed, skipped
from minimax_metal.host.accept.report import Report, parse
from tests.support.acceptance import FakeMachine, fake, host, planned

ALL = (
    passed("gpus", "8 x NVIDIA H100 80GB HBM3", count=8),
    limited("pcie", "GPU 0 (0000:01:00.0): 8 of 16 lanes", "all lanes", "reseat the card"),
    skipped("dcgm", "DCGM is not installed", "optional"),
)
BAD = failed("xid", "Xid 79 on 0000:91:00", "no Xid since the boot", "reset the GPU", xids=["line"])


def report(*outcomes: Outcome) -> Report:
    return Report(
        "gpu01",
        "2026-11-22T04:00:00+00:00",
        outcomes,
        "MiniMaxAI/MiniMax-M2.5",
        "8 x H100",
        "0.5.23",
        "580.1",
    )


def test_accepted_is_not_complete() -> None:
    assert (report(*ALL).accepted, report(*ALL).complete) == (True, False)
    assert report(*ALL).summary == "gpu01: accepted, with checks skipped: 1 passed, 1 limited, 1 skipped"
    assert (report(*ALL, BAD).accepted, report(ALL[0]).complete) == (False, True)
    assert not report().accepted
    assert not report(ALL[2]).accepted


def test_a_report_survives_its_json() -> None:
    whole = report(*ALL, BAD)
    again = parse(whole.as_json(), "report.json")
    assert again.as_dict() == whole.as_dict()
    assert json.loads(whole.as_json())["counts"] == {"passed": 1, "failed": 1, "limited": 1, "skipped": 1}


@pytest.mark.parametrize("text", ["", "[]", '{"checks": 1}', '{"host": "a"}'])
def test_half_a_report_is_none(text: str) -> None:
    with pytest.raises(UserError, match="holds no report"):
        parse(text, "report.json")


def test_an_unknown_state_never_passes() -> None:
    assert of_dict({"check": "x", "state": "splendid"}).state == "failed"


def test_a_failure_is_told_in_one_line_and_in_the_table() -> None:
    assert BAD.line("gpu01") == (
        "gpu01: xid failed: found Xid 79 on 0000:91:00; expected no Xid since the boot; reset the GPU"
    )
    output = io.StringIO()
    report(*ALL, BAD).print(output)
    text = output.getvalue()
    assert "DCGM is not installed; optional" in text
    assert "xid failed" in text
    assert "do:       reset the GPU" in text
    assert text.rstrip().endswith("not accepted: 1 passed, 1 failed, 1 limited, 1 skipped")


# On the host -----------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeMachine:
    machine = fake(host("H20", 4))
    monkeypatch.setattr(commands, "Local", lambda: machine)
    monkeypatch.setattr(commands, "is_root", lambda: True)
    monkeypatch.setattr(commands, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(commands, "sweep", lambda machine: None)
    monkeypatch.setattr(commands, "secrets_of_host", lambda environments: ["CANARY-key-of-16-or-more"])
    return machine


def local(tmp_path: Path, *arguments: str, plan: dict[str, Any] | None = None) -> int:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan or planned("H20", 4)))
    return cli.main(
        ["accept", "--local", "--plan", str(file), "--directory", str(tmp_path / "out"), *arguments]
    )


def test_a_host_that_shows_it_is_accepted(
    machine: FakeMachine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert local(tmp_path, "--only", "device_nodes", "--only", "cold_boot") == 0
    assert "accepted: 2 passed" in capsys.readouterr().out
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"report.json", "report.txt", "bundle.tar.gz"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in out.iterdir())
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert parse((out / "report.json").read_text(), "it").accepted


def test_a_host_that_fails_is_not(
    machine: FakeMachine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del machine.nodes["/dev/nvidia-uvm"]
    assert local(tmp_path, "--only", "device_nodes", "--json") == 1
    data = json.loads(capsys.readouterr().out)
    assert (data["accepted"], data["checks"][0]["state"]) == (False, "failed")
    assert (tmp_path / "out" / "bundle.tar.gz").is_file()


def test_a_key_that_a_program_says_is_in_no_report(machine: FakeMachine, tmp_path: Path) -> None:
    from minimax_metal.host.accept.machine import Answer

    machine.answers["nvidia-smi -L"] = Answer(1, "CANARY-key-of-16-or-more")
    assert local(tmp_path, "--only", "gpus") == 1
    for name in ("report.json", "report.txt"):
        text = (tmp_path / "out" / name).read_text()
        assert "CANARY" not in text
        assert "***" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["accept"], "metal accept HOST --inventory INVENTORY"),
        (["accept", "gpu01"], "metal accept HOST --inventory INVENTORY"),
        (
            ["accept", "--local", "--only", "nodes"],
            "no check is named 'nodes'; expected some of gpus, device_nodes",
        ),
        (["accept", "--local", "--plan", "/nonexistent"], "can't read the plan"),
    ],
)
def test_a_mistake_is_one_line(
    machine: FakeMachine, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_two_at_once_are_refused(
    machine: FakeMachine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert local(tmp_path, "--only", "device_nodes") == 2
    assert "found another metal accept running on this host" in capsys.readouterr().err
    assert local(tmp_path, "--only", "device_nodes") == 0


def test_a_plan_that_serves_nothing_is_refused(
    machine: FakeMachine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert local(tmp_path, plan=planned("H20", 4) | {"services": []}) == 2
    assert "found a plan without services" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("[]", "found no release record"),
        ("{", "found no release record"),
        ('{"plan": 5}', "found a plan without gpus, driver"),
        (
            '{"plan": {"gpus": [], "driver": {}, "engine": "x", "services": [{"unit": "a"}]}}',
            "without gpus, engine",
        ),
    ],
)
def test_a_damaged_record_is_refused_in_one_line(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], record: str, words: str,
) -> None:  # fmt: skip
    (tmp_path / "current").write_text(record)
    monkeypatch.setattr(commands, "DIRECTORY", tmp_path)
    assert cli.main(["accept", "--local"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_a_user_who_is_not_root_is_told(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "is_root", lambda: False)
    assert local(tmp_path) == 2
    assert "expected root" in capsys.readouterr().err


def test_the_checks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["accept", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 19
    assert lines[0].startswith("gpus ")


# On the controller -----------------------------------------------------------------------------------------


@pytest.fixture
def ansible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ansible-playbook that writes the test's data, and records its arguments."""
    program = tmp_path / "bin" / "ansible-playbook"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, pathlib, shutil, sys\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "(here / 'arguments.json').write_text(json.dumps(sys.argv[1:]))\n"
        "extra = json.loads(sys.argv[sys.argv.index('--extra-vars') + 1])\n"
        "place = pathlib.Path(extra['metal_acceptance_directory'])\n"
        "if (here / 'brought.json').exists():\n"
        "    place.mkdir(parents=True, exist_ok=True)\n"
        "    shutil.copy(here / 'brought.json', place / 'report.json')\n"
        "    sys.exit(2)\n"
        "sys.exit(4)\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program.parent / "python"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("outcomes", "status"), [(ALL, 0), ((*ALL, BAD), 1)])
def test_the_report_decides(ansible: Path, outcomes: tuple[Outcome, ...], status: int) -> None:
    (ansible / "brought.json").write_text(report(*outcomes).as_json())
    assert (
        cli.main(["accept", "gpu01", "-i", "fleet", "-i", "more", "--stop-engine", "--ansible=--check"])
        == status
    )
    arguments = json.loads((ansible / "arguments.json").read_text())
    assert arguments[0].endswith("playbooks/accept.yml")
    assert arguments[1:7] == ["--inventory", "fleet", "--inventory", "more", "--limit", "gpu01"]
    assert arguments[-1] == "--check"
    extra = json.loads(arguments[8])
    assert extra["metal_acceptance_stop_engine"] is True
    assert extra["metal_acceptance_directory"] == str(ansible / "accept" / "gpu01")


def test_an_older_report_never_passes_for_this_one(ansible: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ansible / "accept" / "gpu01"
    place.mkdir(parents=True)
    (place / "report.json").write_text(report(ALL[0]).as_json())
    assert cli.main(["accept", "gpu01", "-i", "fleet"]) == 2
    assert "found no report of gpu01 (ansible-playbook: 4)" in capsys.readouterr().err
    assert not (place / "report.json").exists()


def test_every_playbook_variable_is_known_to_the_plan() -> None:
    from minimax_metal.plan.settings import PLAYBOOK_SETTINGS

    request = controller.Request("gpu01", ("fleet",))
    extra = json.loads(request.command(Path("/x"), "ansible-playbook")[7])
    assert set(extra) <= {one.name for one in PLAYBOOK_SETTINGS}

"""The journal of a host and the releases it keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.common.errors import UserError
from minimax_metal.host.releases import commands as releases
from minimax_metal.host.releases import journal
from minimax_metal.host.releases.record import Records


def plan(root: Path, version: str) -> dict[str, Any]:
    environment, weights = root / "opt" / "sglang" / version, root / "models" / version
    (environment / "bin").mkdir(parents=True, exist_ok=True)
    (environment / "bin" / "python").touch()
    weights.mkdir(parents=True, exist_ok=True)
    return {
        "schema": 1,
        "host": "gpu01",
        "engine": {"release": version, "environment": str(environment)},
        "model": {"served_name": "m", "path": str(weights)},
    }


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Records of three releases, the last in force."""
    records = Records(tmp_path / "releases")
    for version in ("1.0", "2.0", "3.0"):
        assert records.record(plan(tmp_path, version))
    return tmp_path


def shown(host: Path, wish: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    status = releases.main(
        ["--directory", str(host / "releases"), "show", wish, "--journal", str(host / "rollout.json")]
    )
    printed = capsys.readouterr()
    release = json.loads(printed.out)["plan"]["engine"]["release"] if printed.out else ""
    return status, release, printed.err


def begin(host: Path, run: str, kind: str = "rollout") -> int:
    words = ("--run", run, "--to", "x", "--kind", kind, "--releases", str(host / "releases"))
    return journal.main(["--file", str(host / "rollout.json"), "begin", *words])


def step(host: Path, *words: str) -> int:
    return journal.main(["--file", str(host / "rollout.json"), *words])


def test_a_release_has_many_names(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [one.path for one in Records(host / "releases").all()]
    assert shown(host, "previous", capsys)[1] == "2.0"
    assert shown(host, "1", capsys)[1] == "1.0"
    assert shown(host, "0001", capsys)[1] == "1.0"
    assert shown(host, names[0].stem, capsys)[1] == "1.0"
    assert shown(host, names[2].stem.split("-")[1][:8], capsys)[1] == "3.0"
    status, _, error = shown(host, "9", capsys)
    assert status == 1
    assert "found no release 9, kept: 0001-" in error


def test_previous_after_a_rollback_is_the_one_that_was_left_before_it(
    host: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Records(host / "releases").record(plan(host, "2.0"))
    assert shown(host, "previous", capsys)[1] == "3.0"


def test_of_a_rollout_that_never_ended_the_release_it_began_from_is_previous(
    host: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(host, "r1")
    assert shown(host, "previous", capsys)[1] == "3.0"
    # Killed after the record was written and before the journal's end.
    Records(host / "releases").record(plan(host, "4.0"))
    assert shown(host, "previous", capsys)[1] == "3.0"
    assert shown(host, "begun-from", capsys)[1] == "3.0"
    step(host, "end", "--run", "r1", "done")
    assert shown(host, "previous", capsys)[1] == "3.0"


def test_of_a_rollback_that_never_ended_previous_is_still_the_one_before(
    host: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(host, "r1", "rollback")
    assert shown(host, "previous", capsys)[1] == "2.0"
    assert shown(host, "begun-from", capsys)[1] == "3.0"


def test_what_is_not_there_any_more_is_named(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (host / "opt" / "sglang" / "2.0" / "bin" / "python").unlink()
    status, _, error = shown(host, "previous", capsys)
    assert status == 1
    assert f"without the engine's environment {host}/opt/sglang/2.0/bin/python" in error


def test_a_host_with_no_release_before_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Records(tmp_path / "releases").record(plan(tmp_path, "1.0"))
    status, _, error = shown(tmp_path, "previous", capsys)
    assert status == 1
    assert "found no release before 0001-" in error


def prune(host: Path, keep: int, *words: str) -> int:
    return releases.main(
        [
            "--directory",
            str(host / "releases"),
            "prune",
            "--keep",
            str(keep),
            *words,
            "--journal",
            str(host / "rollout.json"),
        ]
    )


def test_the_oldest_releases_go_with_what_only_they_need(
    host: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prune(host, 2, "--check") == 0
    assert len(Records(host / "releases").all()) == 3
    assert prune(host, 2) == 0
    assert "removed release 0001-" in capsys.readouterr().out
    assert [one.number for one in Records(host / "releases").all()] == [2, 3]
    assert not (host / "opt" / "sglang" / "1.0").exists()
    assert (host / "opt" / "sglang" / "2.0").is_dir()
    assert (host / "models" / "1.0").is_dir()


def test_what_a_rollback_needs_is_never_pruned(host: Path) -> None:
    begin(host, "r1")
    Records(host / "releases").record(plan(host, "4.0"))
    assert prune(host, 1) == 0
    assert [one.number for one in Records(host / "releases").all()] == [3, 4]


def test_an_environment_that_a_unit_names_stays(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    units = host / "units"
    units.mkdir()
    (units / "sglang@x.service").write_text(f"ExecStart={host}/opt/sglang/1.0/bin/python -m x")
    monkeypatch.setattr(releases, "UNITS", units)
    assert prune(host, 2) == 0
    assert (host / "opt" / "sglang" / "1.0").is_dir()


def test_keeping_nothing_is_refused(host: Path) -> None:
    with pytest.raises(UserError, match="expected 1 or more"):
        prune(host, 0)


def test_the_journal_says_how_far_a_run_came(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert begin(host, "r1") == 0
    assert step(host, "stage", "drain", "--run", "r1") == 0
    assert step(host, "stage", "stop", "--run", "r1") == 0
    state = journal.read(host / "rollout.json")
    assert state is not None
    assert (state["stage"], state["ended"], state["to_release"]) == ("stop", None, "x")
    assert state["from_release"].startswith("0003-")
    assert [one["name"] for one in state["stages"]] == ["drain", "stop"]
    assert begin(host, "r2") == 0
    again = journal.read(host / "rollout.json")
    assert again is not None
    assert again["after"] == "r1"
    capsys.readouterr()
    assert step(host, "end", "--run", "r1", "done") == 1
    assert "found run r2" in capsys.readouterr().out
    assert step(host, "end", "--run", "r2", "failed", "--message", "no GPU") == 0
    ended = journal.read(host / "rollout.json")
    assert ended is not None
    assert (ended["result"], ended["message"]) == ("failed", "no GPU")


def test_a_damaged_journal_is_none(tmp_path: Path) -> None:
    (tmp_path / "rollout.json").write_text("{")
    assert journal.read(tmp_path / "rollout.json") is None

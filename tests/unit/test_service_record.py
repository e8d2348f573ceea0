"""Release records."""

from __future__ import annotations

import io
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from minimax_metal.common.errors import UserError
from minimax_metal.host.releases import record
from minimax_metal.host.releases.record import Records

PLAN = {"schema": 1, "host": "gpu01", "model": {"name": "MiniMax-M2.5"}}
OTHER = {**PLAN, "model": {"name": "MiniMax-M3"}}


def test_first_second_and_back(tmp_path: Path) -> None:
    records = Records(tmp_path / "releases")
    first = records.record(PLAN, datetime(2026, 1, 2, tzinfo=UTC))
    assert first is not None
    assert first.path.name == f"0001-{record.digest_of(PLAN)}.json"
    content = json.loads(first.path.read_text())
    assert content["plan"] == PLAN
    assert content["schema"] == 1
    assert content["time"] == "2026-01-02T00:00:00+00:00"
    assert records.record(dict(reversed(PLAN.items()))) is None, "the order of keys is no change"
    second = records.record(OTHER)
    again = records.record(PLAN)
    assert second is not None
    assert again is not None
    assert [release.number for release in records.all()] == [1, 2, 3]
    assert again.digest == first.digest
    assert records.current() == again
    assert (records.directory / "current").readlink() == Path(again.path.name)
    assert sorted(path.name[0] for path in records.directory.iterdir()) == ["0", "0", "0", "c"]
    assert first.path.stat().st_mode & 0o777 == 0o644


def test_the_manifest_of_the_weights_belongs_to_the_release(tmp_path: Path) -> None:
    model = tmp_path / "models" / "m"
    manifest = model / ".minimax-metal" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text('{"files": [1]}')
    plan = {**PLAN, "model": {"name": "MiniMax-M2.5", "path": str(model)}}
    records = Records(tmp_path / "releases")
    first = records.record(plan)
    assert first is not None
    said = subprocess.run(["sha256sum", manifest], capture_output=True, text=True, check=True).stdout.split()[
        0
    ]
    assert json.loads(first.path.read_text())["weights"] == {"manifest": str(manifest), "sha256": said}
    assert records.record(plan) is None
    # The same plan over other files is another release, and so is one of which the files were not known.
    manifest.write_text(
        '{"files": [2], "proof": {"text": "hub\'s hashes (https://h), resolved by controller"}}'
    )
    second = records.record(plan)
    assert second is not None
    assert (second.number, second.digest) == (2, first.digest)
    assert json.loads(second.path.read_text())["weights"]["proof"].startswith("hub's hashes (https://h)")
    assert "accepted" not in json.loads(second.path.read_text())["weights"]
    manifest.unlink()
    third = records.record(plan)
    assert third is not None
    assert json.loads(third.path.read_text())["weights"] is None
    assert records.record(plan) is None


def test_what_was_taken_on_trust_stays_with_the_release(tmp_path: Path) -> None:
    """model_weights_accept_unproved was only in the manifest: no record showed it."""
    manifest = tmp_path / "m" / ".minimax-metal" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text('{"files": [], "proof": {"text": "a path", "accepted": ["weights-unproved"]}}')
    plan = {**PLAN, "model": {"name": "MiniMax-M2.5", "path": str(manifest.parents[1])}}
    made = Records(tmp_path / "releases").record(plan)
    assert made is not None
    assert json.loads(made.path.read_text())["weights"]["accepted"] == "weights-unproved"


def test_a_dangling_link_and_strangers_are_survived(tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to("0007-000000000000.json")
    (tmp_path / "notes.txt").write_text("mine")
    made = Records(tmp_path).record(PLAN)
    assert made is not None
    assert made.number == 1


def test_redaction_is_one_hook(tmp_path: Path) -> None:
    records = Records(tmp_path, redact=lambda plan: {key: plan[key] for key in plan if key != "secret"})
    made = records.record({**PLAN, "secret": "canary"})
    assert made is not None
    assert "canary" not in made.path.read_text()
    assert records.record({**PLAN, "secret": "other"}) is None


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plan, directory = tmp_path / "plan.json", tmp_path / "releases"
    plan.write_text(json.dumps(PLAN))
    arguments = ["--plan", str(plan), "--directory", str(directory)]
    assert record.main([*arguments, "--check"]) == 0
    assert not directory.exists()
    assert record.main(arguments) == 0
    assert record.main(arguments) == 0
    assert record.main([*arguments, "--check"]) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(OTHER)))
    assert record.main(["--plan", "-", "--directory", str(directory)]) == 0
    assert capsys.readouterr().out.split("\n")[:-1] == [
        "would record", "recorded", "unchanged", "unchanged", "recorded",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"), [("{", "is not JSON"), ("[]", "contains no plan"), (None, "can't read")]
)
def test_what_is_no_plan_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    plan = tmp_path / "plan.json"
    if text is not None:
        plan.write_text(text)
    with pytest.raises(UserError, match=words):
        record.main(["--plan", str(plan), "--directory", str(tmp_path / "releases")])


def test_unwritable_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(PLAN))
    with pytest.raises(UserError, match="can't write a record"):
        record.main(["--plan", str(plan), "--directory", str(tmp_path / "file" / "releases")])


def test_how_the_host_was_found_that_day_is_no_new_release(tmp_path: Path) -> None:
    found = {"code": "disk", "found": "73 GB free", "needed": "232 GB", "remedy": "free some"}
    first = {
        **PLAN,
        "disk": {"needed_bytes": 1},
        "warnings": [{"code": "x", "message": "y"}],
        "accepted": [found],
    }
    later = {
        **PLAN,
        "disk": {"needed_bytes": 0},
        "warnings": [],
        "accepted": [{**found, "found": "72 GB free"}],
    }
    records = Records(tmp_path)
    assert records.record(first) is not None
    assert records.record(later) is None
    assert records.record({**later, "accepted": []}) is not None, (
        "what the operator accepted is part of a release"
    )

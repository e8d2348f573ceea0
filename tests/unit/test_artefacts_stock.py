"""Weights on the disk: verified again, listed, removed, pruned; but never those in use."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path

import pytest

from minimax_metal.common.errors import UserError
from minimax_metal.host.weights import check, commands, stock
from minimax_metal.host.weights.manifest import FOLDER, Entry, Manifest
from tests.support import models

FILES = {"config.json": b"{}", "model-1.safetensors": b"a" * 3_000_000, "sub/vocab.txt": b"hello"}


def make(root: Path, name: str, revision: str, age: int = 0) -> Path:
    directory = root / name / revision
    for path, content in FILES.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(content)
    entries = tuple(Entry(p, len(c), hashlib.sha256(c).hexdigest(), stated=True) for p, c in FILES.items())
    file = Manifest(name, revision, {"kind": "huggingface"}, entries).write(directory)
    os.utime(file, (1_000_000 - age, 1_000_000 - age))
    return directory


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "srv" / "models"


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> stock.System:
    folders = {name: tmp_path / name for name in ("units", "releases", "requests", "processes")}
    for folder in folders.values():
        folder.mkdir()
    found = stock.System(**folders)
    monkeypatch.setattr(stock, "System", lambda: found)
    return found


# Verify --------------------------------------------------------------------------------------------------


def test_verify_reads_every_byte(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = make(root, "Org/Model", "r1")
    assert commands.main(["verify", str(directory)]) == 0
    assert "3 files, 3.0 MB, all match the manifest" in capsys.readouterr().out
    shard = directory / "model-1.safetensors"
    before = shard.stat()
    shard.write_bytes(b"a" * 1_500_000 + b"b" + b"a" * 1_499_999)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    (directory / "config.json").unlink()
    (directory / "notes.txt").write_text("mine")
    assert commands.main(["verify", "--workers", "2", str(directory)]) == 1
    said = capsys.readouterr().out
    assert "config.json: is missing" in said
    assert "model-1.safetensors: has sha256" in said
    assert "notes.txt: not in the manifest" in said
    assert "2 of 3 files damaged; fetch them again with: metal weights pull --repair" in said


def test_verify_tells_how_far_it_is(root: Path) -> None:
    directory = make(root, "Org/Model", "r1")
    manifest = Manifest.read(directory)
    assert manifest is not None
    seen: list[tuple[int, int]] = []
    found = check.reread(directory, manifest, 1, lambda *now: seen.append(now), interval=0.0001)
    assert found.bytes == manifest.bytes
    assert seen
    assert all(total == manifest.bytes for _, total in seen)


def test_verify_without_a_manifest_names_each_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On any directory, and only from the files: statuses 0, 1 and 2."""
    whole = models.write(tmp_path / "whole", models.model())
    assert commands.main(["verify", str(whole)]) == 0
    assert "no hash was checked" in capsys.readouterr().out
    assert commands.main(["verify", "--model", "minimax-m2.5", str(whole)]) == 1
    assert "the catalogue's size of MiniMax-M2.5" in capsys.readouterr().out
    (whole / "tokenizer.json").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (whole / f"{models.INDEX}.aria2").touch()
    assert commands.main(["verify", "--json", str(whole), str(tmp_path / "gone")]) == 2
    found, gone = json.loads(capsys.readouterr().out)
    assert [problem["path"] for problem in found["problems"]] == [f"{models.INDEX}.aria2", "tokenizer.json"]
    assert found["whole"] is False
    assert found["proved_by"] == "files themselves"
    assert (gone["proved_by"], gone["error"]) == (None, "does not exist; expected a model's directory")
    Manifest("m", None, {}, ()).write(whole)
    assert commands.main(["verify", str(whole)]) == 1, "a manifest that names nothing proves nothing"
    (tmp_path / "empty").mkdir()
    assert commands.main(["verify", str(tmp_path / "empty")]) == 1
    assert commands.main(["verify", str(whole / "config.json")]) == 2
    with pytest.raises(UserError, match="expected one of MiniMax"):
        commands.main(["verify", "--model", "x", str(whole)])


# Who uses what -------------------------------------------------------------------------------------------


def test_users(root: Path, system: stock.System) -> None:
    served, overridden, released, running, idle = (make(root, "Org/Model", f"r{n}") for n in range(5))
    unit = f"[Service]\nExecStart=/usr/bin/metal supervise -- \\\n /x/python --model-path \\\n {served} \\\n"
    (system.units / "sglang@m.service").write_text(unit)
    (system.units / "other@m.service").write_text(f"ExecStart=/x --model-path {idle}\n")
    (system.units / "sglang@n.service.d").mkdir()
    (system.units / "sglang@n.service.d" / "override.conf").write_text(
        f'ExecStart=x "--model-path={overridden}"\n'
    )
    (system.releases / "0003-abc.json").write_text(json.dumps({"plan": {"model": {"path": str(released)}}}))
    (system.releases / "0004-bad.json").write_text("{")
    (system.processes / "42").mkdir()
    (system.processes / "42" / "cmdline").write_bytes(f"python\0--model-path\0{running}\0".encode())
    users = system.users()
    assert set(users) == {served, overridden, released, running}
    assert "unit sglang@m.service" in users[served][0]
    assert "unit sglang@n.service" in users[overridden][0]
    assert "release 0003-abc (needed for a rollback" in users[released][0]
    assert users[running] == ["process 42 (stop it)"]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--model-path", "/a"], ["/a"]),
        (["--model", "/a", "--port", "1"], ["/a"]),
        (["--model-path=/a"], ["/a"]),
        (["--model-path", "Org/Model"], []),
        (["--model-path"], []),
    ],
)
def test_model_paths(words: list[str], found: list[str]) -> None:
    assert list(stock.model_paths(words)) == found


# List, remove, prune -------------------------------------------------------------------------------------


def test_list(root: Path, system: stock.System, capsys: pytest.CaptureFixture[str]) -> None:
    used, unused = make(root, "Org/Model", "r1"), make(root, "Org/Model", "r2")
    partial = root / "Org" / "Other" / "r1.partial"
    (partial / FOLDER).mkdir(parents=True)
    (system.units / "sglang@m.service").write_text(f"ExecStart=x --model-path {used}\n")
    assert commands.main(["list", "--root", str(root)]) == 0
    said = capsys.readouterr().out
    assert f"{used}: 3.0 MB, used\n  by unit sglang@m.service" in said
    assert f"{unused}: 3.0 MB, unused" in said
    assert f"{partial}: 0 B, not complete, unused" in said
    assert commands.main(["list", "--json", "--root", str(root)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["complete"], row["revision"], bool(row["users"])) for row in rows] == [
        (True, "r1", True),
        (True, "r2", False),
        (False, None, False),
    ]


def test_remove_refuses_what_is_used(root: Path, system: stock.System) -> None:
    directory = make(root, "Org/Model", "r1")
    (system.units / "sglang@m.service").write_text(f"ExecStart=x --model-path {directory}\n")
    (system.releases / "0001-a.json").write_text(json.dumps({"plan": {"model": {"path": str(directory)}}}))
    with pytest.raises(
        UserError, match=r"is used by unit sglang@m.*serve another model\); by release 0001-a"
    ):
        commands.main(["remove", "--root", str(root), str(directory)])
    assert (directory / "config.json").exists()


def test_remove_refuses_what_is_being_pulled(root: Path, system: stock.System) -> None:
    partial = root / "Org" / "Model" / "r1.partial"
    (partial / FOLDER).mkdir(parents=True)
    with (partial.parent / ".r1.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="a running pull"):
            stock.remove(partial, system, root)
    assert stock.remove(partial, system, root) == 0
    assert not partial.exists()


def test_remove(root: Path, system: stock.System, capsys: pytest.CaptureFixture[str]) -> None:
    directory = make(root, "Org/Model", "r1")
    other = make(root, "Org/Other", "r1")
    (directory.parent / ".r1.state.json").write_text("{}")
    assert commands.main(["remove", "--root", str(root), str(directory)]) == 0
    assert "3.0 MB" in capsys.readouterr().out
    assert not directory.parent.exists(), "empty folders go, too"
    assert other.exists()
    with pytest.raises(UserError, match="not one of metal's model directories"):
        stock.remove(root / "Org", system, root)
    assert root.exists()


@pytest.mark.parametrize(
    "name", ["r\x1b[2J\x1b]0;x\x07", "r\nremoved /etc", "r\x9b31m", "r\u202ex", "r\udcff"]
)
def test_names_that_the_pulls_user_gives_do_no_more_than_name(
    name: str, root: Path, system: stock.System, capsys: pytest.CaptureFixture[str]
) -> None:
    make(root, "Org/Model", name)
    for words in (["list"], ["prune", "--dry-run"], ["prune"]):
        assert commands.main([*words, "--root", str(root)]) == 0
        said = capsys.readouterr().out
        assert len(said.splitlines()) <= 2
        assert not set(said) & {
            *map(chr, range(10)),
            *map(chr, range(11, 32)),
            "\x7f",
            "\x9b",
            "\u202e",
            "\udcff",
        }


def test_prune(root: Path, system: stock.System, capsys: pytest.CaptureFixture[str]) -> None:
    kept = make(root, "Org/Model", "used", age=9)
    next_one = make(root, "Org/Model", "next", age=8)
    newest, older, oldest = (make(root, "Org/Model", f"r{n}", age=n) for n in range(3))
    wanted, orphan = (root / "Org" / "Model" / f"{name}.partial" for name in ("wanted", "orphan"))
    for partial in (wanted, orphan):
        (partial / FOLDER).mkdir(parents=True)
    (system.requests / "m.json").write_text(json.dumps({"path": str(wanted.with_suffix(""))}))
    (system.units / "sglang@m.service").write_text(f"ExecStart=x --model-path {kept}\n")
    flags = ["prune", "--root", str(root), "--keep", "1", "--spare", str(next_one)]
    assert commands.main([*flags, "--dry-run"]) == 0
    assert oldest.exists()
    assert capsys.readouterr().out.count("would remove") == 3
    assert commands.main(flags) == 0
    assert [path for path in (kept, next_one, newest, older, oldest, wanted, orphan) if path.exists()] == [
        kept,
        next_one,
        newest,
        wanted,
    ]
    capsys.readouterr()
    assert commands.main(flags) == 0
    assert capsys.readouterr().out == "nothing to remove\n"

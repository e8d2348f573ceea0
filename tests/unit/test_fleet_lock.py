"""The fleet lock."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest

from minimax_metal.host import lock

ME = {"run": "r1", "user": "ops", "controller": "desk", "pid": 7, "command": "rollout.yml", "time": "T",
      "process": "boot pid:[1] 9"}  # fmt: skip
OTHER = ME | {"run": "r2", "user": "eve"}


def test_one_holds_it_and_the_other_is_told_who(tmp_path: Path) -> None:
    path = tmp_path / "state" / "lock.json"
    assert lock.take(ME, path) is None
    assert lock.take(ME, path) is None
    assert lock.take(OTHER, path) == ME
    assert not lock.release("r2", path)
    assert lock.release("r1", path)
    assert lock.take(OTHER, path) is None


def test_a_lock_is_broken_only_by_asking(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    lock.take(ME, path)
    assert lock.break_lock(path) == ME
    assert lock.break_lock(path) is None
    assert lock.read(path) is None


def test_a_lock_is_taken_from_one_run_and_no_other(tmp_path: Path) -> None:
    """A lock that was read a moment ago may be another run's by now."""
    path = tmp_path / "lock.json"
    lock.take(ME, path)
    assert lock.break_lock(path, run="r0") is None
    assert lock.read(path) == ME
    assert lock.break_lock(path, run="r1") == ME


def test_a_lock_of_an_earlier_version_names_no_process(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    path.write_text(json.dumps({name: value for name, value in ME.items() if name != "process"}))
    assert lock.read(path) == ME | {"process": "?"}


def test_a_directory_that_only_the_lock_needed_goes_with_it(tmp_path: Path) -> None:
    """On a removed host, or one that never had the product, nothing is left of a run."""
    path = tmp_path / "state" / "lock.json"
    lock.take(ME, path)
    assert lock.release("r1", path)
    assert not path.parent.exists()
    lock.take(ME, path)
    (path.parent / "releases").mkdir()
    assert lock.release("r1", path)
    assert [entry.name for entry in path.parent.iterdir()] == ["releases"]


def test_a_directory_that_goes_in_the_same_moment_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state" / "lock.json"
    whole = lock._alone
    calls: list[Path] = []

    @contextlib.contextmanager
    def gone(directory: Path) -> Iterator[None]:
        with whole(directory):
            if not calls:
                directory.rmdir()
            calls.append(directory)
            yield

    monkeypatch.setattr(lock, "_alone", gone)
    assert lock.take(ME, path) is None
    assert lock.read(path) == ME
    assert len(calls) == 2


def test_a_file_that_is_no_lock_counts_as_held(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    for text in ("", "{", "[]", '"x"'):
        path.write_text(text)
        other = lock.take(ME, path)
        assert other is not None
        assert other["run"] == "?"
        assert "?@?" in lock.described(other)


def contend(path: Path, number: int, start: object, results: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    taken = lock.take(ME | {"run": f"r{number}"}, path) is None
    results.put((number, taken))  # type: ignore[attr-defined]


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    path = tmp_path / "lock.json"
    processes = [context.Process(target=contend, args=(path, n, start, results)) for n in range(8)]
    for process in processes:
        process.start()
    start.set()
    winners = [number for number, taken in (results.get(timeout=30) for _ in processes) if taken]
    for process in processes:
        process.join(30)
    assert len(winners) == 1
    assert json.loads(path.read_text())["run"] == f"r{winners[0]}"
    assert [entry.name for entry in tmp_path.iterdir()] == ["lock.json"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ["--file", str(tmp_path / "lock.json")]
    words = ["--user", "ops", "--controller", "desk", "--pid", "7", "--command", "rollout.yml"]
    assert lock.main([*file, "show"]) == 0
    assert lock.main([*file, "take", "--run", "r1", *words]) == 0
    assert lock.main([*file, "take", "--run", "r2", *words]) == 1
    assert lock.main([*file, "show", "--json"]) == 1
    assert lock.main([*file, "release", "--run", "r2"]) == 1
    assert lock.main([*file, "break"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == ["free", "taken"]
    assert printed[2].startswith("held by ops@desk since 20")
    assert json.loads(printed[3])["run"] == "r1"
    assert printed[-1].startswith("broken: it was held by ops@desk")

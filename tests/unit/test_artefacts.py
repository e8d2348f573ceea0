"""The pull: from directories and scripted origins, with every interruption that needs no hub."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.common.errors import UserError
from minimax_metal.common.sizes import spell_bytes
from minimax_metal.host.engine.notify import Notifier
from minimax_metal.host.weights import commands, errors, follow, progress, publish, pull, watch
from minimax_metal.host.weights.attempt import Attempt, Journal
from minimax_metal.host.weights.errors import SourceError
from minimax_metal.host.weights.follow import AwaitError, UnitState
from minimax_metal.host.weights.manifest import (
    FOLDER,
    INDEX,
    DamagedFileError,
    Entry,
    Manifest,
    missing,
    missing_from_index,
    sync,
    verify,
)
from minimax_metal.host.weights.pull import NoSpaceError, Options, PullError, RefusedError, Reporter
from minimax_metal.host.weights.request import Request, Source
from minimax_metal.host.weights.sources import Listing
from minimax_metal.host.weights.web import Body
from tests.support.models import safetensors

PATIENCE = 60.0
"""Seconds allowed for something that takes a fraction of one: a busy machine is not a failure."""

QUICK = Options(workers=2, stall=60, attempts=2, backoff=0.01, interval=0.2)
CONTENT = {
    "config.json": b'{"architectures": ["MiniMaxM2ForCausalLM"]}\n',
    "tokenizer.json": b"{}\n",
    "tokenizer_config.json": b"{}\n",
    "model-00000-of-00002.safetensors": safetensors({"w0": b"a" * 300_000}),
    "model-00001-of-00002.safetensors": safetensors({"w1": b"b" * 200_000}),
    INDEX: json.dumps(
        {"weight_map": {f"w{n}": f"model-0000{n}-of-00002.safetensors" for n in range(2)}}
    ).encode(),
    "tokenizer/vocab.txt": b"hello\n",
}


def entry(path: str, content: bytes) -> Entry:
    return Entry(path, len(content), hashlib.sha256(content).hexdigest(), stated=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "mnt" / "model"
    for path, content in CONTENT.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(content)
    for leftover in (".cache/huggingface/x", "__pycache__/part", ".msc", ".mv", ".git/config"):
        (directory / leftover).parent.mkdir(parents=True, exist_ok=True)
        (directory / leftover).write_text("leftover")
    return directory


def request_for(tmp_path: Path, *where: Path, **more: Any) -> Request:
    raw = {
        "path": str(tmp_path / "srv" / "Org" / "Model" / "main"),
        "sources": [{"kind": "directory", "path": str(path)} for path in where],
        **more,
    }
    return Request.parse(raw)


def run_pull(request: Request, options: Options = QUICK) -> tuple[bool, str]:
    output = io.StringIO()
    try:
        return pull.pull(request, options, Reporter(request, Notifier(None), output)), output.getvalue()
    finally:
        sys.stdout.write(output.getvalue())


def tree(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and FOLDER not in path.parts
    }


# The whole pull ------------------------------------------------------------------------------------------


def test_a_directory_is_copied_verified_and_published(tmp_path: Path, model: Path) -> None:
    request = request_for(tmp_path, model, bytes=500_000)
    assert run_pull(request)[0] is True
    assert tree(request.path) == CONTENT, "the model and nothing else"
    manifest = Manifest.read(request.path)
    assert manifest is not None
    assert {e.path: e.sha256 for e in manifest.files} == {
        path: hashlib.sha256(content).hexdigest() for path, content in CONTENT.items()
    }
    assert not request.staging.exists()
    assert [path.name for path in (request.path / FOLDER).iterdir()] == ["manifest.json"]
    assert request.path.stat().st_mode & 0o777 == 0o755
    changed, said = run_pull(request)
    assert changed is False
    assert "already verified" in said


def test_sources_are_tried_in_order(tmp_path: Path, model: Path) -> None:
    _, said = run_pull(request_for(tmp_path, tmp_path / "gone", model))
    assert "gone does not exist" in said
    assert f"trying directory {model}" in said


def test_no_source_can_serve(tmp_path: Path) -> None:
    request = request_for(tmp_path, tmp_path / "gone", tmp_path / "away")
    with pytest.raises(RefusedError, match=r"gone does not exist.*; .*away does not exist"):
        run_pull(request)
    state = follow.read_state(request)
    assert state["state"] == "failed"
    assert "away does not exist" in state["text"]
    assert not request.path.exists()


def test_an_incomplete_source_is_refused(tmp_path: Path, model: Path) -> None:
    (model / "model-00001-of-00002.safetensors").unlink()
    request = request_for(tmp_path, model)
    with pytest.raises(RefusedError, match=r"model-00001-of-00002.*: missing; .*index.json names it"):
        run_pull(request)
    assert not request.path.exists()


def test_links_of_a_hub_cache_are_followed(tmp_path: Path, model: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in CONTENT:
        (snapshot / path).parent.mkdir(exist_ok=True)
        (snapshot / path).symlink_to(model / path)
    request = request_for(tmp_path, snapshot)
    run_pull(request)
    assert tree(request.path) == CONTENT
    assert not any(path.is_symlink() for path in request.path.rglob("*"))


def test_the_hashes_of_a_manifest_at_the_source_are_held_against_it(tmp_path: Path, model: Path) -> None:
    first = request_for(tmp_path, model)
    run_pull(first)
    shard = first.path / "model-00000-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-9] + b"x" * 9)
    raw = {
        "path": str(tmp_path / "srv2" / "m" / "main"),
        "sources": [{"kind": "directory", "path": str(first.path)}],
    }
    with pytest.raises(RefusedError, match="sha256"):
        run_pull(Request.parse(raw))


def test_a_lost_file_is_repaired_and_the_good_ones_are_kept(tmp_path: Path, model: Path) -> None:
    request = request_for(tmp_path, model)
    run_pull(request)
    good = (request.path / "model-00000-of-00002.safetensors").stat().st_ino
    (request.path / "config.json").unlink()
    (request.path / "model-00001-of-00002.safetensors").write_bytes(b"short")
    assert run_pull(request)[0] is True
    assert tree(request.path) == CONTENT
    assert (request.path / "model-00000-of-00002.safetensors").stat().st_ino == good
    assert sorted(path.name for path in request.path.parent.iterdir()) == [
        ".main.lock",
        ".main.state.json",
        "main",
    ]


def test_what_is_not_ours_is_left_alone(tmp_path: Path, model: Path) -> None:
    request = request_for(tmp_path, model)
    request.path.mkdir(parents=True)
    (request.path / "mine").write_text("precious")
    with pytest.raises(RefusedError, match="metal did not create it"):
        run_pull(request)
    assert (request.path / "mine").read_text() == "precious"


def test_a_verified_file_is_not_read_again(tmp_path: Path, model: Path) -> None:
    broken = json.loads((model / INDEX).read_text())
    broken["weight_map"]["w9"] = "model-00009.safetensors"
    (model / INDEX).write_text(json.dumps(broken))
    with pytest.raises(PullError, match="its index names"):
        run_pull(request_for(tmp_path, model, accept=["weights-unproved"]))
    request = request_for(tmp_path, model)
    kept = (request.staging / "model-00000-of-00002.safetensors").stat()
    # Same size and time, other bytes: only a file that is not read again keeps them.
    other = CONTENT["model-00000-of-00002.safetensors"][:-9] + b"z" * 9
    (request.staging / "model-00000-of-00002.safetensors").write_bytes(other)
    os.utime(request.staging / "model-00000-of-00002.safetensors", ns=(kept.st_atime_ns, kept.st_mtime_ns))
    (model / INDEX).write_bytes(CONTENT[INDEX])
    run_pull(request)
    assert tree(request.path)["model-00000-of-00002.safetensors"] == other


def test_order_of_the_system_calls(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_for(tmp_path, model)
    calls: list[tuple[str, str]] = []
    real_rename = Path.rename

    def noted(path: Path) -> None:
        calls.append(("sync", str(path)))
        sync(path)

    def rename(path: Path, target: Path) -> Path:
        calls.append(("rename", str(target)))
        return real_rename(path, target)

    monkeypatch.setattr(publish, "sync", noted)
    monkeypatch.setattr(Path, "rename", rename)
    run_pull(request)
    at = calls.index(("rename", str(request.path)))
    before = {path for kind, path in calls[:at] if kind == "sync"}
    assert {str(request.staging / path) for path in CONTENT} <= before
    assert {str(request.staging), str(request.staging / FOLDER), str(request.staging / "tokenizer")} <= before
    assert calls[at + 1 :] == [("sync", str(request.path.parent))]


def test_owner(tmp_path: Path, model: Path) -> None:
    with pytest.raises(RefusedError, match="owner 'nobody-knows'"):
        run_pull(request_for(tmp_path, model, owner="nobody-knows"))
    if os.geteuid() == 0:
        request = request_for(tmp_path, model, owner="nobody")
        run_pull(request)
        assert (request.path / "config.json").owner() == "nobody"


# Disk ----------------------------------------------------------------------------------------------------


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    class Usage:
        free = size

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)


def test_a_disk_too_small_is_refused_before_the_source_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 50 * 10**9)
    with pytest.raises(NoSpaceError, match=r"has 50\.0 GB free, the model needs another 230\.0 GB"):
        run_pull(request_for(tmp_path, tmp_path / "gone", bytes=230 * 10**9))


def test_a_disk_too_small_by_what_the_source_lists(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, progress.SPARE_BYTES + 100_000)
    request = request_for(tmp_path, model)
    with pytest.raises(NoSpaceError, match="free, the model needs another"):
        run_pull(request)
    free(monkeypatch, progress.SPARE_BYTES + 10**9)
    run_pull(request)
    assert tree(request.path) == CONTENT


def test_a_full_disk_says_so() -> None:
    found = errors.transport_error(
        Source("directory", path=Path("/x")), OSError(errno.ENOSPC, "No space left")
    )
    assert found.space
    assert found.permanent


# Two at once, kills --------------------------------------------------------------------------------------


def test_a_second_pull_waits_for_the_first(tmp_path: Path, model: Path) -> None:
    request = request_for(tmp_path, model)
    request.path.parent.mkdir(parents=True)
    with request.lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        output = io.StringIO()
        reporter = Reporter(request, Notifier(None), output)
        thread = threading.Thread(target=pull.pull, args=(request, QUICK, reporter))
        thread.start()
        deadline = time.monotonic() + PATIENCE
        while "another pull of" not in output.getvalue() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert "another pull of" in output.getvalue()
        assert not request.staging.exists()
    thread.join(timeout=PATIENCE)
    assert tree(request.path) == CONTENT


def start_command(request: Request, file: Path, raw: dict[str, Any]) -> subprocess.Popen[str]:
    file.write_text(json.dumps(raw))
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "minimax_metal.cli",
            "weights",
            "pull",
            "--request",
            str(file),
            "--interval",
            "0.2",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def children_of(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def gone(pid: int, seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_pull_leaves_no_process_and_goes_on(
    tmp_path: Path, model: Path, number: signal.Signals
) -> None:
    # A pipe nobody writes to holds the copy up, as a dead NFS server would.
    fifo = model / "slow.bin"
    request = request_for(tmp_path, model)
    raw = {"path": str(request.path), "sources": [{"kind": "directory", "path": str(model)}]}
    fifo.write_bytes(b"slow")
    (tmp_path / "block").mkdir()
    os.mkfifo(tmp_path / "block" / "fifo")
    Manifest("m", None, {}, (*(entry(p, c) for p, c in CONTENT.items()), entry("slow.bin", b"slow"))).write(
        model
    )
    fifo.unlink()
    fifo.symlink_to(tmp_path / "block" / "fifo")
    process = start_command(request, tmp_path / "request.json", raw)
    try:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and len(Journal.open(request.staging).lines) < len(CONTENT):
            time.sleep(0.05)
        fetchers = children_of(process.pid)
        assert fetchers
        process.send_signal(number)
        assert process.wait(timeout=PATIENCE) == -number
        assert all(gone(pid) for pid in fetchers)
    finally:
        process.kill()
        process.wait()
    assert process.stdout is not None
    if number == signal.SIGTERM:
        assert "the next pull resumes from here" in process.stdout.read()
    process.stdout.close()
    assert not request.path.exists()
    fifo.unlink()
    fifo.write_bytes(b"slow")
    before = (request.staging / "config.json").stat().st_ino
    run_pull(request)
    assert (request.path / "config.json").stat().st_ino == before, "a staged file is not fetched twice"
    assert tree(request.path) == {**CONTENT, "slow.bin": b"slow"}


def test_a_stalled_source_is_given_up_and_the_next_one_serves(tmp_path: Path, model: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # accepts in the kernel and never answers
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        raw = [{"kind": "hf-mirror", "repository": "a/b", "endpoint": endpoint}]
        request = request_for(tmp_path, model)
        begun = time.monotonic()
        options = Options(workers=1, stall=0.5, attempts=2, backoff=0.01, interval=0.1)
        with pytest.raises(PullError, match=r"no data for 0\.5 s \(2 attempts\)") as caught:
            run_pull(Request.parse({"path": str(request.path), "sources": raw}), options)
        assert not isinstance(caught.value, RefusedError), "time may mend it"
        both = [*raw, {"kind": "directory", "path": str(model)}]
        run_pull(Request.parse({"path": str(request.path), "sources": both}), options)
    assert time.monotonic() - begun < PATIENCE
    assert tree(request.path) == CONTENT


# One attempt, with a scripted origin ---------------------------------------------------------------------


class Scripted:
    """An origin that serves ``files`` and follows ``script`` for the n-th fetch of a path."""

    def __init__(
        self, files: dict[str, bytes], script: Callable[[str, int], bytes | Exception | None]
    ) -> None:
        self.files = files
        self.script = script
        self.fetched: list[tuple[str, int]] = []

    def list(self) -> Listing:
        return Listing(tuple(entry(path, content) for path, content in self.files.items()), "commit")

    @contextlib.contextmanager
    def open(self, entry: Entry, offset: int, end: int | None = None) -> Iterator[Body]:
        number = sum(path == entry.path for path, _ in self.fetched)
        self.fetched.append((entry.path, offset))
        act = self.script(entry.path, number)
        if isinstance(act, Exception):
            raise act
        content = self.files[entry.path] if act is None else act
        yield Body(offset, None, iter([content[offset:]] if content[offset:] else []))

    def identity(self, entry: Entry) -> str | None:
        return entry.sha256


def attempt(
    tmp_path: Path, script: Callable[[str, int], bytes | Exception | None]
) -> tuple[bool, Scripted, list[dict[str, Any]]]:
    staging = tmp_path / "staging"
    (staging / FOLDER).mkdir(parents=True, exist_ok=True)
    origin, events = Scripted({"a": b"aaaa", "b": b"bbb"}, script), io.StringIO()
    done = Attempt(origin, staging, events, workers=2, pause=0.01).run("m", {})
    return done, origin, [json.loads(line) for line in events.getvalue().splitlines()]


def test_attempt_that_succeeds(tmp_path: Path) -> None:
    done, _, events = attempt(tmp_path, lambda *_: None)
    assert done
    assert [event["event"] for event in events][0::3] == ["listed", "done"]
    assert events[0] == {"event": "listed", "revision": "commit", "files": 2, "bytes": 7, "needed": 7}


@pytest.mark.parametrize("bad", [b"AAAA", b"aa", b""])
def test_damaged_file_is_fetched_again_and_only_it(tmp_path: Path, bad: bytes) -> None:
    done, origin, events = attempt(tmp_path, lambda path, n: bad if path == "a" and n == 0 else None)
    assert done
    assert sorted(origin.fetched) in (
        [("a", 0), ("a", 0), ("b", 0)],  # wrong bytes: from the beginning
        [("a", 0), ("a", len(bad)), ("b", 0)],  # too few: the rest, and then they are right or wrong
        [("a", 0), ("a", 0), ("a", len(bad)), ("b", 0)],
    )
    said = {event["event"] for event in events if event.get("path") == "a"}
    assert said & {"damaged", "retry"}


def test_file_that_stays_damaged_ends_the_source(tmp_path: Path) -> None:
    done, origin, events = attempt(tmp_path, lambda path, _: b"AAAA" if path == "a" else None)
    assert not done
    assert sum(path == "a" for path, _ in origin.fetched) == 3
    assert events[-1]["permanent"] is True
    assert "3 times in a row" in events[-1]["reason"]
    assert not (tmp_path / "staging" / "a").exists(), "damaged bytes are not left behind"


def test_lost_connection_is_tried_again(tmp_path: Path) -> None:
    done, origin, _ = attempt(tmp_path, lambda _, n: SourceError("connection reset") if n < 1 else None)
    assert done
    assert len(origin.fetched) == 4


def test_connection_that_stays_lost_lets_the_others_finish(tmp_path: Path) -> None:
    done, _, events = attempt(tmp_path, lambda path, _: SourceError("reset") if path == "a" else None)
    assert not done
    assert events[-1] == {"event": "failed", "reason": "reset", "permanent": False, "space": False}
    assert "b" in Journal.open(tmp_path / "staging").lines


def test_refusal_and_full_disk_end_at_once(tmp_path: Path) -> None:
    done, origin, events = attempt(tmp_path, lambda *_: SourceError("full", permanent=True, space=True))
    assert not done
    assert events[-1]["space"] is True
    assert len(origin.fetched) <= 2


def test_file_complete_before_a_kill_is_verified_not_fetched(tmp_path: Path) -> None:
    (tmp_path / "staging").mkdir()
    (tmp_path / "staging" / "a").write_bytes(b"aaaa")
    done, origin, events = attempt(tmp_path, lambda *_: None)
    assert done
    assert origin.fetched == [("b", False)]
    assert events[0]["needed"] == 3


def test_journal_survives_a_torn_line(tmp_path: Path) -> None:
    attempt(tmp_path, lambda *_: None)
    file = tmp_path / "staging" / FOLDER / "verified.jsonl"
    file.write_text(file.read_text() + '{"path": "c", "si')
    assert set(Journal.open(tmp_path / "staging").lines) == {"a", "b"}


# Manifest ------------------------------------------------------------------------------------------------


def test_verify(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"hello\n")
    git = "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object of "hello\n"
    found = verify(tmp_path, Entry("f", 6, git_oid=git))
    assert found.sha256 == hashlib.sha256(b"hello\n").hexdigest()
    for wrong in (Entry("f", 7), Entry("f", 6, "0" * 64), Entry("f", 6, git_oid="0" * 40), Entry("g", 6)):
        with pytest.raises(DamagedFileError):
            verify(tmp_path, wrong)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "", f"{FOLDER}/manifest.json", "a\\b"])
def test_paths_outside_the_model_are_refused(path: str) -> None:
    with pytest.raises(UserError):
        Entry(path, 1)


def test_index_decides_on_completeness(tmp_path: Path) -> None:
    assert missing_from_index(tmp_path, []) == []
    (tmp_path / INDEX).write_bytes(CONTENT[INDEX])
    assert missing_from_index(tmp_path, CONTENT) == []
    assert missing_from_index(tmp_path, ["config.json"]) == [
        f"model-0000{n}-of-00002.safetensors" for n in range(2)
    ]
    (tmp_path / INDEX).write_text("[]")
    with pytest.raises(DamagedFileError):
        missing_from_index(tmp_path, [])


def test_damaged_manifest_is_none(tmp_path: Path) -> None:
    assert Manifest.read(tmp_path) is None
    (tmp_path / FOLDER).mkdir()
    for text in ("{", "[]", '{"name": "m"}'):
        (tmp_path / FOLDER / "manifest.json").write_text(text)
        assert Manifest.read(tmp_path) is None


def test_missing_names_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    lines = missing(tmp_path, Manifest("m", None, {}, (Entry("a", 2), Entry("b", 3))))
    assert lines == ["a: 1 bytes, expected 2", "b: missing, expected 3 bytes"]


# Requests and sources ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"path": "relative"}, "absolute path"),
        ({"path": "/"}, "absolute path"),
        ({"path": 3}, "expected text"),
        ({"sources": []}, "names no source"),
        ({"sources": "hf"}, "names no source"),
        ({"sources": [{"kind": "ftp"}]}, "'ftp' is unknown"),
        ({"sources": [{"kind": "huggingface"}]}, "names no repository"),
        ({"sources": [{"kind": "directory"}]}, "names no path"),
        (
            {"sources": [{"kind": "hf-mirror", "repository": "a/b", "endpoint": "hf-mirror.com"}]},
            r"is not an http\(s\) URL",
        ),
        ({"bytes": "many"}, "is not a size"),
    ],
)
def test_wrong_requests(change: dict[str, Any], words: str) -> None:
    raw = {"path": "/srv/models/a/b", "sources": [{"kind": "directory", "path": "/x"}], **change}
    with pytest.raises(UserError, match=words):
        Request.parse(raw)


def test_request_file(tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    with pytest.raises(UserError, match="can't read the request"):
        Request.read(file)
    file.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        Request.read(file)
    file.write_text(
        json.dumps(
            {
                "path": "/srv/models/MiniMaxAI/MiniMax-M2.5/abc",
                "revision": "abc",
                "bytes": "230000000000",
                "later": "fields are left alone",
                "sources": [{"kind": "hf-mirror", "repository": "a/b", "endpoint": "https://hf-mirror.com/"}],
            }
        )
    )
    request = Request.read(file)
    assert request.name == "MiniMaxAI/MiniMax-M2.5"
    assert request.bytes == 230 * 10**9
    assert request.sources[0].revision == "abc"
    assert request.sources[0].endpoint == "https://hf-mirror.com"
    assert request.staging == Path("/srv/models/MiniMaxAI/MiniMax-M2.5/abc.partial")


def test_one_line_hides_signatures() -> None:
    text = errors.one_line(OSError("lost https://cdn/x?Signature=canary&b=1\nsecond line"))
    assert "canary" not in text
    assert "\n" not in text


def test_the_root_of_an_error_is_said() -> None:
    try:
        try:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        except OSError as error:
            raise RuntimeError("HTTPSConnectionPool(host=…): Max retries exceeded") from error
    except RuntimeError as error:
        found = errors.transport_error(Source("modelscope", "a/b", endpoint="http://h"), RuntimeError(error))
    assert str(found) == "modelscope a/b at http://h: Connection refused"
    assert not found.permanent


# Progress ------------------------------------------------------------------------------------------------


def test_progress_line(tmp_path: Path) -> None:
    it = watch.Watch(request_for(tmp_path, tmp_path), Source("directory", path=tmp_path), QUICK, None)  # type: ignore[arg-type]  # says nothing here
    it.total, it.files = 1000, 3
    it.have = 412
    assert it.describe() == "41.2 % (412 B of 1.0 kB)"
    it.have = 400
    it.samples.extend([(0.0, 0), (1.0, 400)])
    assert it.describe() == "40.0 % (400 B of 1.0 kB)", "a second says little about a rate"
    it.samples.append((2.0, 400))
    assert it.describe() == "40.0 % (400 B of 1.0 kB), 200 B/s, 3 s left"
    it.have = 1200
    assert it.describe() == "100 % of 1.0 kB, verifying 3 files"
    it.total, it.have = 10**12, 10**12 - 1
    assert it.describe().startswith("99.9 %"), "100 % is said when it is true"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.3e11, "230.0 GB"), (8.55e11, "855.0 GB")],
)
def test_spell_bytes(value: float, text: str) -> None:
    assert spell_bytes(value) == text


@pytest.mark.parametrize(("value", "text"), [(5, "5 s"), (600, "10 min"), (11220, "3 h 07 min")])
def test_spell_seconds(value: float, text: str) -> None:
    assert progress.spell_seconds(value) == text


# Await ---------------------------------------------------------------------------------------------------

RUNNING = UnitState("loaded", "activating", "start", "success")
AGAIN = UnitState("loaded", "activating", "auto-restart", "exit-code", 1)
FAILED = UnitState("loaded", "failed", "failed", "exit-code", 2)
IDLE = UnitState("loaded", "inactive", "dead", "success")


def scripted_unit(*states: UnitState) -> Callable[[str], UnitState]:
    left = list(states)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def await_quickly(request: Request, ask: Callable[[str], UnitState], **more: Any) -> list[str]:
    said: list[str] = []
    quick = {"grace": 0.1, "changing": lambda: False, **more}
    follow.wait(request, say=said.append, ask=ask, pause=0.01, **quick)
    return said


def test_await_returns_when_verified(tmp_path: Path, model: Path) -> None:
    request = request_for(tmp_path, model, unit="metal-weights@m.service")
    thread = threading.Thread(target=run_pull, args=(request,))
    thread.start()
    said = await_quickly(request, scripted_unit(IDLE, RUNNING), grace=PATIENCE)
    thread.join()
    assert any("asking directory" in line for line in said)


def test_await_tells_why_the_unit_failed(tmp_path: Path) -> None:
    request = request_for(tmp_path, tmp_path / "gone", unit="metal-weights@m.service")
    with pytest.raises(RefusedError):
        run_pull(request)
    with pytest.raises(
        AwaitError, match=r"gone does not exist.*is failed \(failed\).*2 restart.*journalctl -u metal"
    ):
        await_quickly(request, scripted_unit(RUNNING, AGAIN, FAILED))
    with pytest.raises(AwaitError, match="gone does not exist"):
        await_quickly(request, scripted_unit(IDLE))


def test_await_sits_through_a_shutdown(tmp_path: Path, model: Path) -> None:
    request = request_for(tmp_path, model, unit="u.service")
    asked = 0

    def changing() -> bool:
        nonlocal asked
        asked += 1
        if asked == 3:
            run_pull(request)
        return True

    await_quickly(request, scripted_unit(RUNNING, FAILED), changing=changing)
    assert asked == 3


def test_await_does_not_sit_through_endless_restarts(tmp_path: Path) -> None:
    request = request_for(tmp_path, tmp_path, unit="u.service")
    often = UnitState("loaded", "activating", "auto-restart", "exit-code", 3)
    with pytest.raises(AwaitError, match="after 3 restart"):
        await_quickly(request, scripted_unit(RUNNING, AGAIN, RUNNING, often))


def test_await_timeout_and_missing_unit(tmp_path: Path) -> None:
    request = request_for(tmp_path, tmp_path, unit="u.service")
    with pytest.raises(AwaitError, match="not verified within 0 s, the pull continues"):
        await_quickly(request, scripted_unit(RUNNING), timeout=0.1)
    with pytest.raises(AwaitError, match="there is no unit"):
        await_quickly(request, scripted_unit(UnitState("not-found", "inactive", "dead")))


def test_await_without_a_unit_reads_the_state(tmp_path: Path) -> None:
    request = request_for(tmp_path, tmp_path)
    request.path.parent.mkdir(parents=True)
    with pytest.raises(AwaitError, match="no pull of"):
        await_quickly(request, scripted_unit(IDLE))
    request.state.write_text(json.dumps({"state": "pulling", "text": "41 %", "pid": os.getpid()}))
    with pytest.raises(AwaitError, match="the pull continues; last: 41 %"):
        await_quickly(request, scripted_unit(IDLE), timeout=0.3)


def test_show_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "systemctl"
    program.write_text(
        '#!/bin/sh\necho "$@" > "$0.args"\n'
        "printf 'NRestarts=2\\nResult=exit-code\\nLoadState=loaded\\n'\n"
        "printf 'ActiveState=failed\\nSubState=failed\\n'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert follow.show_unit("m.service") == FAILED
    assert "show m.service -p" in (tmp_path / "systemctl.args").read_text()
    program.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(AwaitError, match="can't ask systemd"):
        follow.show_unit("m.service")


# The command ---------------------------------------------------------------------------------------------


def test_command(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "request.json"
    target = tmp_path / "srv" / "o" / "m"
    file.write_text(json.dumps({"path": str(target), "sources": [{"kind": "directory", "path": str(model)}]}))
    flag = ["--request", str(file)]
    assert commands.main(["check", *flag]) == commands.EXIT_INCOMPLETE
    assert not target.parent.exists(), "check writes nothing"
    assert commands.main(["pull", *flag]) == 0
    assert commands.main(["check", *flag]) == 0
    assert commands.main(["await", *flag]) == 0
    (target / "config.json").unlink()
    capsys.readouterr()
    assert commands.main(["check", *flag]) == commands.EXIT_INCOMPLETE
    assert capsys.readouterr().out == "config.json: missing, expected 44 bytes\n"


def test_command_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "request.json"
    raw = {
        "path": str(tmp_path / "srv" / "o" / "m"),
        "sources": [{"kind": "directory", "path": "/gone"}],
        "bytes": 9,
    }
    file.write_text(json.dumps(raw))
    assert commands.main(["pull", "--request", str(file)]) == commands.EXIT_REFUSED
    free(monkeypatch, 1)
    assert commands.main(["pull", "--request", str(file)]) == commands.EXIT_NO_SPACE
    monkeypatch.setattr(follow, "GRACE", 0.0)
    monkeypatch.setattr(
        follow.wait,
        "__defaults__",
        (None, lambda _: None, follow.show_unit, 0.01, 0.0, 3, follow.machine_is_changing),
    )
    assert commands.main(["await", "--request", str(file)]) == commands.EXIT_FAILED

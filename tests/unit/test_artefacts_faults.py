"""The pull against a hub that fails in every way that its rules support, one at a time."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.common.errors import UserError
from minimax_metal.host.engine.notify import Notifier
from minimax_metal.host.weights import sources, unprivileged
from minimax_metal.host.weights.errors import SourceError
from minimax_metal.host.weights.manifest import FOLDER, Manifest
from minimax_metal.host.weights.pull import Options, PullError, RefusedError, Reporter, pull
from minimax_metal.host.weights.request import Request, Source
from minimax_metal.host.weights.web import Web
from tests.support.hub import REPOSITORY, Hub, model, running
from tests.support.weights_faults import play

QUICK = Options(workers=3, stall=5, attempts=2, backoff=0.05, interval=0.2, spare=0)
SHARD = "model-00001-of-00003.safetensors"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running(tmp_path_factory.mktemp("hub"), model(shards=3, size=1_000_000)) as hub:
        yield hub


@pytest.fixture
def hub(served: Hub) -> Iterator[Hub]:
    served.fail()
    yield served
    served.fail()


def rule(hub: Hub, fault: str, path: str = SHARD, kind: str = "huggingface", **more: Any) -> dict[str, Any]:
    """A rule for the bytes of one file."""
    digest = hashlib.sha256(hub.files[path]).hexdigest()
    return {"match": digest if kind == "huggingface" else f"FilePath={path}", "fault": fault, **more}


def request_for(tmp_path: Path, *found: dict[str, Any], **more: Any) -> Request:
    return Request.parse({"path": str(tmp_path / "srv" / "m" / "r"), "sources": list(found), **more})


def run(request: Request, options: Options = QUICK) -> str:
    output = io.StringIO()
    try:
        pull(request, options, Reporter(request, Notifier(None), output))
        return output.getvalue()
    finally:
        print(output.getvalue())


def tree(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and FOLDER not in path.parts
    }


KINDS = pytest.mark.parametrize("kind", ["huggingface", "modelscope"])


@KINDS
def test_a_cut_connection_goes_on_at_the_next_byte(kind: str, hub: Hub, tmp_path: Path) -> None:
    skip = len(hub.lines())
    hub.fail(
        rule(hub, "cut", kind=kind, after=400_000, times=1), rule(hub, "cut", kind=kind, after=9, times=2)
    )
    request = request_for(tmp_path, hub.source(kind))
    assert "continuing" in run(request)
    assert tree(request.path) == hub.files
    size = len(hub.files[SHARD])
    # The third answer brought nine bytes: progress, however little, is no reason to give a source up.
    assert [(first, sent) for first, sent, _ in hub.bodies(skip)[SHARD]] == [
        (0, 400_000),
        (400_000, 9),
        (400_009, 9),
        (400_018, size - 400_018),
    ]


@KINDS
def test_a_stalled_connection_is_dropped_and_goes_on(kind: str, hub: Hub, tmp_path: Path) -> None:
    skip = len(hub.lines())
    hub.fail(rule(hub, "stall", kind=kind, after=500_000, times=1))
    request = request_for(tmp_path, hub.source(kind))
    said = run(request, Options(workers=3, stall=0.5, attempts=2, backoff=0.05, interval=0.2, spare=0))
    assert "no data for 0.5 s; continuing" in said
    assert tree(request.path) == hub.files
    assert [first for first, _, _ in hub.bodies(skip)[SHARD]][-1] == 500_000


def test_a_corrupt_file_is_fetched_again_and_only_it(hub: Hub, tmp_path: Path) -> None:
    skip = len(hub.lines())
    hub.fail(rule(hub, "corrupt", after=77_777, times=1))
    request = request_for(tmp_path, hub.source())
    assert f"{SHARD} has sha256" in run(request)
    assert tree(request.path) == hub.files
    assert {path: len(answers) for path, answers in hub.bodies(skip).items() if len(answers) > 1} == {
        SHARD: 2
    }


def test_a_source_with_wrong_bytes_is_left_for_the_next(hub: Hub, tmp_path: Path) -> None:
    hub.fail(rule(hub, "corrupt", after=5))
    request = request_for(tmp_path, hub.source("hf-mirror"), hub.source("modelscope"))
    assert "3 times in a row" in run(request)
    assert tree(request.path) == hub.files
    manifest = Manifest.read(request.path)
    assert manifest is not None
    assert manifest.source["kind"] == "modelscope"


def test_a_truncated_mirror_is_left_for_the_next_source(hub: Hub, tmp_path: Path) -> None:
    hub.fail(rule(hub, "truncate", after=300_000))
    request = request_for(tmp_path, hub.source("hf-mirror"), hub.source("modelscope"))
    size = len(hub.files[SHARD])
    assert f"{SHARD} has 300000 bytes at the source, expected {size} (2 attempts)" in run(request)
    assert tree(request.path) == hub.files


def test_what_one_source_brought_the_next_one_does_not_bring_again(hub: Hub, tmp_path: Path) -> None:
    skip = len(hub.lines())
    hub.fail(
        rule(hub, "cut", after=600_000, times=1),
        {"match": "huggingface-cdn", "fault": "busy", "status": 500},
    )
    request = request_for(tmp_path, hub.source("hf-mirror"), hub.source("modelscope"))
    run(request, Options(workers=1, stall=5, attempts=1, backoff=0.01, interval=1, spare=0))
    assert tree(request.path) == hub.files
    starts = [first for first, _, _ in hub.bodies(skip)[SHARD]]
    assert starts == [0, 600_000], "the first bytes came from one hub, the rest from the other"


def test_a_mirror_that_ignores_ranges(hub: Hub, tmp_path: Path) -> None:
    hub.fail(rule(hub, "cut", after=400_000, times=1), rule(hub, "ignore-ranges"))
    request = request_for(tmp_path, hub.source("hf-mirror"))
    run(request)
    assert tree(request.path) == hub.files


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_is_given_the_time_it_asks_for(status: int, hub: Hub, tmp_path: Path) -> None:
    skip = len(hub.lines())
    hub.fail({"match": "huggingface-cdn", "fault": "busy", "status": status, "retry_after": 1, "times": 3})
    request = request_for(tmp_path, hub.source())
    assert f"answered {status}: waiting 1 s" in run(request)
    assert tree(request.path) == hub.files
    refused = [line for line in hub.lines(skip) if line["status"] == status]
    assert len(refused) == 3, "three files were asked for at once; nobody came back before the time"
    assert max(len(answers) for answers in hub.bodies(skip).values()) == 1


def test_a_hub_that_stays_busy_is_left_for_the_next_source(hub: Hub, tmp_path: Path) -> None:
    hub.fail({"match": "huggingface-cdn|resolve|api/models/Mini", "fault": "busy", "retry_after": 3600})
    request = request_for(tmp_path, hub.source(), hub.source("modelscope"))
    assert "asks to wait another" in run(request)
    assert tree(request.path) == hub.files


def test_a_busy_listing_is_asked_again(hub: Hub, tmp_path: Path) -> None:
    hub.fail({"match": "^/api/", "fault": "busy", "status": 429, "times": 2})
    request = request_for(tmp_path, hub.source())
    run(request)
    assert tree(request.path) == hub.files


def test_a_gated_repository(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN_PATH", raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    gate = hub.store.root / "repositories" / "huggingface" / REPOSITORY / "gate"
    hub.store.gate("huggingface", REPOSITORY, "canary-token")
    try:
        request = request_for(tmp_path, hub.source())
        with pytest.raises(RefusedError, match=r"is gated.*accept its licence.*token"):
            run(request)
        token = tmp_path / "token"
        token.write_text("wrong-token\n")
        request = request_for(tmp_path, hub.source(token_file=str(token)))
        with pytest.raises(RefusedError, match="may not read it"):
            run(request)
        (tmp_path / "huggingface").write_text("canary-token\n")
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        request = request_for(tmp_path, hub.source())
        said = run(request)
        assert tree(request.path) == hub.files
        kept = [path.read_bytes() for path in (tmp_path / "srv").rglob("*") if path.is_file()]
        assert "canary" not in said
        assert not any(b"canary" in content for content in kept)
    finally:
        gate.unlink()


def test_token_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "t"))
    source = Source("huggingface", "a/b", token_file=tmp_path / "t")
    with pytest.raises(UserError, match="can't read the token file"):
        sources.token_of(source)
    (tmp_path / "t").write_text("\n")
    with pytest.raises(UserError, match="contains no token"):
        sources.token_of(source)
    (tmp_path / "t").write_text("abc\n")
    assert sources.token_of(source) == "abc"
    assert sources.token_of(Source("huggingface", "a/b")) == "abc"
    assert sources.token_of(Source("hf-mirror", "a/b")) is None, "a mirror is somebody else"


def test_a_token_is_not_carried_to_another_host() -> None:
    seen: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.headers["Host"].partition(":")[0], self.headers.get("Authorization")))
            if self.path == "/file":
                self.send_response(302)
                self.send_header("Location", f"http://localhost:{server.server_port}/elsewhere")
                self.send_header("Content-Length", "0")
            else:
                self.send_response(200)
                self.send_header("Content-Length", "2")
            self.end_headers()
            if self.path != "/file":
                self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        web = Web("hub", token="secret", stall=10)
        with web.open(f"http://127.0.0.1:{server.server_port}/file") as body:
            assert b"".join(body.blocks) == b"{}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert seen == [("127.0.0.1", "Bearer secret"), ("localhost", None)]


@KINDS
def test_a_branch_is_resolved_to_a_commit(kind: str, hub: Hub, tmp_path: Path) -> None:
    branch = {"huggingface": "main", "modelscope": "master"}[kind]
    source = Source.parse(hub.source(kind, revision=branch))
    assert unprivileged.resolve(source) == Source.parse(hub.source(kind, branch=branch))
    request = request_for(tmp_path, hub.source(kind, revision=branch))
    run(request)
    manifest = Manifest.read(request.path)
    assert manifest is not None
    assert manifest.revision == hub.commit


def test_git_itself_reads_the_hubs_branches(hub: Hub) -> None:
    done = subprocess.run(
        ["git", "ls-remote", f"{hub.url}/{REPOSITORY}.git"], capture_output=True, text=True, check=True
    )
    assert f"{hub.commit}\trefs/heads/main" in done.stdout


def test_references_of_git() -> None:
    one, two, tag = "1" * 40, "2" * 40, "3" * 40
    text = (
        f"001e# service=git-upload-pack\n00000155{one} HEAD\0symref=HEAD:refs/heads/master\n"
        f"003f{one} refs/heads/master\n003d{two} refs/heads/dev\n"
        f"003e{tag} refs/tags/v1\n0041{two} refs/tags/v1^{{}}\n0000"
    )
    assert sources.parse_refs(text) == {"master": one, "dev": two, "v1": two}


def test_another_host_that_serves_its_directory(hub: Hub, tmp_path: Path) -> None:
    first = request_for(tmp_path / "one", hub.source())
    run(first)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = (first.path / self.path[1:]).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        there = {"kind": "http", "endpoint": f"http://127.0.0.1:{server.server_port}"}
        second = request_for(tmp_path / "two", there, revision=hub.commit)
        run(second)
        other = request_for(tmp_path / "three", there, revision="f" * 40)
        with pytest.raises(RefusedError, match=f"have revision {hub.commit}, not {'f' * 40}"):
            run(other)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert tree(second.path) == hub.files


def test_a_hub_that_is_no_hub(tmp_path: Path, hub: Hub) -> None:
    web = Web("x", stall=5)
    with pytest.raises(SourceError, match="did not answer with JSON"):
        web.json(f"{hub.url}/healthz")
    request = request_for(tmp_path, hub.source(endpoint="http://127.0.0.1:9"))
    with pytest.raises(PullError, match="Connection refused"):
        run(request)
    assert json.loads(request.state.read_text())["state"] == "failed"


@pytest.mark.parametrize("number", range(2))
def test_random_faults(number: int, hub: Hub, tmp_path: Path) -> None:
    """The short version of tests/integration/test_weights_faults.py, the same rounds every time."""
    print(play(number, 20261122 + number, hub, tmp_path))


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_the_kernel_is_asked_in_the_right_order(hub: Hub, tmp_path: Path) -> None:
    """Every file and directory is flushed before the name appears, and the name itself after."""
    request = request_for(tmp_path, hub.source())
    file, trace = tmp_path / "request.json", tmp_path / "trace"
    file.write_text(json.dumps({"path": str(request.path), "sources": [hub.source()]}))
    calls = "trace=fsync,fdatasync,rename,renameat,renameat2"
    metal = [sys.executable, "-m", "minimax_metal.cli", "weights", "pull", "--request", str(file)]
    done = subprocess.run(
        ["strace", "-f", "-y", "-qq", "-s", "4096", "-e", calls, "-o", str(trace), *metal, "--spare", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    if "ptrace" in done.stderr:
        pytest.skip("may not trace here")
    assert done.returncode == 0, done.stderr
    staging = str(request.staging)
    events: list[tuple[str, str, str]] = []
    for line in trace.read_text().splitlines():
        if found := re.search(r"f(?:data)?sync\(\d+<([^>]+)>\)\s+= 0", line):
            events.append(("sync", found[1], ""))
        elif found := re.search(r'rename\w*\((?:[^"]*)"([^"]+)",(?:[^"]*)"([^"]+)".*= 0', line):
            events.append(("rename", found[1], found[2]))
    published = events.index(("rename", staging, str(request.path)))
    flushed = {path for kind, path, _ in events[:published] if kind == "sync"}
    moved = {new: old for kind, old, new in events[:published] if kind == "rename"}
    for path in hub.files:
        # Flushed under its name, or under the one it came in by.
        assert {f"{staging}/{path}", moved.get(f"{staging}/{path}")} & flushed, path
    assert {staging, f"{staging}/figures", f"{staging}/{FOLDER}"} <= flushed
    scratch = moved[f"{staging}/{FOLDER}/manifest.json"]
    assert scratch in flushed, "the manifest's bytes are there before its name"
    assert ("sync", str(request.path.parent), "") in events[published:]
    # Nothing else is renamed to the final name, before or after.
    assert [new for kind, _, new in events if kind == "rename"].count(str(request.path)) == 1

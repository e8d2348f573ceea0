"""The lab's hub against the unmodified clients, on loopback."""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import io
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lab.engine import environment
from lab.hub import Store
from lab.hub.accesslog import AccessLog
from lab.hub.application import create

HF, MS = "MiniMaxAI/MiniMax-M2.5", "MiniMax/MiniMax-M2.5"
LARGE = "model-00001-of-00002.safetensors"
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Hub:
    """A running hub: its address, its published models (folder and commit), its access log."""

    url: str
    folder: Path
    commit: str
    log: Path
    root: Path

    def requests(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "files"
    (folder / "figures" / "deep").mkdir(parents=True)
    noise = random.Random(7)  # noqa: S311  test data
    (folder / LARGE).write_bytes(noise.randbytes(3_000_001))
    (folder / "model-00002-of-00002.safetensors").write_bytes(noise.randbytes(1 << 20))
    (folder / "config.json").write_text('{"model_type": "minimax_m2"}\n')
    (folder / "empty.txt").write_text("")
    (folder / "figures" / "deep" / "chart 1.png").write_bytes(noise.randbytes(5_000))
    root = tmp_path / "root"
    commit = Store(root).publish("huggingface", HF, folder).commit
    assert Store(root).publish("modelscope", MS, folder).commit == commit
    log = tmp_path / "access.jsonl"
    ready = tmp_path / "stdout"
    with ready.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "lab.hub", "--root", root, "--port", "0", "--access-log", log],
            cwd=REPOSITORY,
            stdout=out,
            stderr=out,
        )
    try:
        url = _announced(ready, server)
        yield Hub(url, folder, commit, log, root)
    finally:
        server.terminate()
        assert server.wait(10) in (0, -15)


def _announced(output: Path, server: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert server.poll() is None, output.read_text()
        if found := re.search(r"http://127\.0\.0\.1:\d+", output.read_text()):
            return found.group()
        time.sleep(0.05)
    raise AssertionError(f"the hub did not come up: {output.read_text()}")


def _client(hub: Hub, home: Path, code: str, python: str | Path = sys.executable) -> str:
    """Run ``code`` in a new process that knows only our hub; return the last line it printed."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "MODELSCOPE_"))
    }
    done = subprocess.run(
        [python, "-c", code],
        env={
            **environment,
            "HF_ENDPOINT": hub.url,
            "MODELSCOPE_ENDPOINT": hub.url,
            "HF_HOME": str(home / "hf"),
            "MODELSCOPE_CACHE": str(home / "ms"),
            "HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def _same(hub: Hub, folder: Path) -> None:
    for path in (path for path in hub.folder.rglob("*") if path.is_file()):
        assert filecmp.cmp(path, folder / path.relative_to(hub.folder), shallow=False), path


@pytest.mark.parametrize("revision", ["None", "'main'", "commit"])
def test_huggingface_hub_downloads_the_same_files(hub: Hub, tmp_path: Path, revision: str) -> None:
    code = (
        f"commit = {hub.commit!r}\nimport huggingface_hub as h\n"
        f"print(h.snapshot_download({HF!r}, revision={revision}))"
    )
    folder = Path(_client(hub, tmp_path, code))
    assert folder.name == hub.commit
    _same(hub, folder)


@pytest.mark.engine
def test_the_engines_own_huggingface_hub_downloads_the_same_files(hub: Hub, tmp_path: Path) -> None:
    """Release 1.33, from the engine's lock."""
    code = f"import huggingface_hub as h\nassert h.__version__ < '2'\nprint(h.snapshot_download({HF!r}))"
    _same(hub, Path(_client(hub, tmp_path, code, environment())))


def test_huggingface_hub_into_a_directory(hub: Hub, tmp_path: Path) -> None:
    code = f"import huggingface_hub as h; h.snapshot_download({HF!r}, local_dir={str(tmp_path / 'd')!r})"
    _client(hub, tmp_path, code)
    _same(hub, tmp_path / "d")


class _Cut:
    """Ends an answer after ``after`` blocks of 1 MiB, once, like a lost connection."""

    def __init__(self, app: ASGIApp, after: int) -> None:
        self.app = app
        self.left = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def cut(message: Message) -> None:
            await send(message)
            self.left -= len(message.get("body", b"")) == 1 << 20
            if self.left == 0:
                self.left = -1
                raise ConnectionResetError("cut by the test")

        with contextlib.suppress(ConnectionResetError):
            await self.app(scope, receive, cut)


def test_huggingface_hub_goes_on_after_a_cut(hub: Hub, tmp_path: Path) -> None:
    """The client asks for the rest with a range; what it had written (in blocks of 10 MiB) is not read again.

    Only within one process: since 2.x it does not resume a partial file left by another process.
    """
    block = 10 << 20
    (hub.folder / LARGE).write_bytes(random.Random(8).randbytes(block + 3_000_001))  # noqa: S311  test data
    Store(hub.root).publish("huggingface", HF, hub.folder)
    log = io.StringIO()
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(AccessLog(_Cut(create(hub.root, io.StringIO()), 11), log), log_level="error")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        code = f"import huggingface_hub as h; print(h.hf_hub_download({HF!r}, {LARGE!r}))"
        got = Path(_client(replace(hub, url=url), tmp_path, code))
    finally:
        server.should_exit = True
        thread.join(10)
    assert filecmp.cmp(got, hub.folder / LARGE, shallow=False)
    answers = [json.loads(line) for line in log.getvalue().splitlines()]
    bodies = [(line["range"], line["bytes"]) for line in answers if "cdn" in line["path"] and line["bytes"]]
    assert bodies == [(None, 11 << 20), (f"bytes={block}-", 3_000_001)]


def test_huggingface_hub_says_what_is_missing(hub: Hub, tmp_path: Path) -> None:
    code = f"""
import huggingface_hub as h
from huggingface_hub import errors
def raised(*arguments, **options):
    try:
        h.hf_hub_download(*arguments, **options)
    except Exception as error:
        return type(error).__name__
print(raised("MiniMaxAI/Nothing", "config.json"), raised({HF!r}, "config.json", revision="0" * 40),
      raised({HF!r}, "nothing.json"), raised({MS!r}, "config.json"))
"""
    assert _client(hub, tmp_path, code).split() == [
        "RepositoryNotFoundError",
        "RevisionNotFoundError",
        "RemoteEntryNotFoundError",
        "RepositoryNotFoundError",
    ]


def test_huggingface_hub_lists_the_tree_with_sizes_and_digests(hub: Hub, tmp_path: Path) -> None:
    code = f"""
import json, huggingface_hub as h, huggingface_hub.hf_api
tree = h.HfApi().list_repo_tree({HF!r}, recursive=True)
files = [entry for entry in tree if isinstance(entry, h.hf_api.RepoFile)]
print(json.dumps({{f.path: [f.size, f.lfs and f.lfs.sha256] for f in files}}))
"""
    listed = json.loads(_client(hub, tmp_path, code))
    assert listed == {
        path.relative_to(hub.folder).as_posix(): [
            path.stat().st_size,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix == ".safetensors" else None,
        ]
        for path in hub.folder.rglob("*")
        if path.is_file()
    }


def test_tree_comes_in_pages(hub: Hub) -> None:
    url: str | None = f"{hub.url}/api/models/{HF}/tree/main?recursive=true&limit=2"
    seen, pages = [], 0
    while url:
        answer = httpx2.get(url)
        seen += [entry["path"] for entry in answer.json() if entry["type"] == "file"]
        pages += 1
        url = answer.links.get("next", {}).get("url")
    assert sorted(seen) == sorted(
        path.relative_to(hub.folder).as_posix() for path in hub.folder.rglob("*") if path.is_file()
    )
    assert pages == 4  # five files and two folders, two at a time


@pytest.mark.parametrize(
    ("asked", "status", "first", "last"),
    [
        ("bytes=0-99", 206, 0, 99),
        ("bytes=2999990-", 206, 2_999_990, 3_000_000),
        ("bytes=-10", 206, 2_999_991, 3_000_000),
        ("bytes=5-99999999", 206, 5, 3_000_000),
        ("bytes=3000001-", 416, 0, 0),
    ],
)
@pytest.mark.parametrize("site", ["huggingface", "modelscope"])
def test_ranges(hub: Hub, site: str, asked: str, status: int, first: int, last: int) -> None:
    url = {
        "huggingface": f"{hub.url}/{HF}/resolve/main/{LARGE}",
        "modelscope": f"{hub.url}/api/v1/models/{MS}/repo?Revision=master&FilePath={LARGE}",
    }[site]
    answer = httpx2.get(url, headers={"Range": asked}, follow_redirects=True)
    # ModelScope states the part right and the status wrong (modelscope/modelscope_hub issue 50).
    assert answer.status_code == (200 if site == "modelscope" and status == 206 else status)
    if status == 206:
        assert answer.headers["content-range"] == f"bytes {first}-{last}/3000001"
        assert answer.content == (hub.folder / LARGE).read_bytes()[first : last + 1]
    else:
        assert answer.headers["content-range"] == "bytes */3000001"


def test_metadata_of_a_large_and_a_small_file(hub: Hub) -> None:
    large = httpx2.head(f"{hub.url}/{HF}/resolve/main/{LARGE}")
    digest = hashlib.sha256((hub.folder / LARGE).read_bytes()).hexdigest()
    assert large.status_code == 302
    assert large.headers["x-repo-commit"] == hub.commit
    assert large.headers["x-linked-etag"] == f'"{digest}"'
    assert large.headers["x-linked-size"] == "3000001"
    assert not [name for name in large.headers if "xet" in name]
    small = httpx2.head(f"{hub.url}/{HF}/resolve/{hub.commit}/config.json")
    content = (hub.folder / "config.json").read_bytes()
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    assert small.status_code == 200
    assert small.headers["etag"] == f'"{oid}"'
    assert small.headers["content-length"] == str(len(content))
    assert small.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize("revision", ["None", "'master'", "commit"])
def test_modelscope_downloads_the_same_files(hub: Hub, tmp_path: Path, revision: str) -> None:
    code = (
        f"commit = {hub.commit!r}\nimport modelscope\n"
        f"print(modelscope.snapshot_download({MS!r}, revision={revision}))"
    )
    _same(hub, Path(_client(hub, tmp_path, code)))


def test_modelscopes_client_begins_a_cut_file_anew(hub: Hub, tmp_path: Path) -> None:
    """It goes by the hub's status, which is wrong (modelscope/modelscope_hub issue 50): it takes the
    requested rest for the whole file, and its hash check makes it start again.
    """
    target = tmp_path / "d"
    target.mkdir()
    (target / f"{LARGE}.incomplete").write_bytes((hub.folder / LARGE).read_bytes()[:2_000_000])
    _client(
        hub, tmp_path, f"import modelscope; modelscope.snapshot_download({MS!r}, local_dir={str(target)!r})"
    )
    _same(hub, target)
    asked = [line["range"] for line in hub.requests() if line["path"].endswith("/repo") and line["range"]]
    assert asked[0] == "bytes=2000000-"


def test_modelscope_says_what_is_missing(hub: Hub, tmp_path: Path) -> None:
    code = f"""
import modelscope
def raised(*arguments, **options):
    try:
        modelscope.snapshot_download(*arguments, **options)
    except Exception as error:
        return type(error).__name__ + " " + str(error.response.status_code)
print(raised("MiniMax/Nothing"), raised({MS!r}, revision="0" * 40))
"""
    assert _client(hub, tmp_path, code).split() == ["HTTPError", "404"] * 2


def test_publishing_again_changes_nothing_and_a_new_file_makes_a_new_commit(hub: Hub) -> None:
    store = Store(hub.root)
    before = {path: path.stat().st_mtime_ns for path in hub.root.rglob("*")}
    assert store.publish("huggingface", HF, hub.folder).commit == hub.commit
    assert {path: path.stat().st_mtime_ns for path in hub.root.rglob("*")} == before
    (hub.folder / "more.txt").write_text("more")
    newer = store.publish("huggingface", HF, hub.folder).commit
    assert newer != hub.commit
    assert httpx2.get(f"{hub.url}/api/models/{HF}/revision/main").json()["sha"] == newer
    assert httpx2.get(f"{hub.url}/api/models/{HF}/revision/{hub.commit}").json()["sha"] == hub.commit


@pytest.mark.parametrize(
    "path",
    [
        "/../secret/resolve/main/x",
        "/a/b/resolve/main/../../../x",
        f"/{HF}/resolve/..%2Frefs%2Fmain/config.json",
    ],
)
def test_paths_do_not_lead_out_of_the_hub(hub: Hub, path: str) -> None:
    raw = httpx2.get(hub.url + path)
    assert raw.status_code in (307, 404)

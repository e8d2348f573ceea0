"""The pull with both hubs' unmodified clients, over loopback, from the lab's model hub."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.hub import Store
from minimax_metal.host.engine.notify import Notifier
from minimax_metal.host.weights.manifest import FOLDER, INDEX, Manifest
from minimax_metal.host.weights.pull import Options, PullError, RefusedError, Reporter, pull
from minimax_metal.host.weights.request import Request

QUICK = Options(workers=4, stall=20, attempts=2, backoff=0.05, interval=0.2)
REPOSITORY = "MiniMaxAI/MiniMax-M2.5"
CONTENT = {
    "config.json": b"{}\n",
    "README.md": b"# A model\n",
    "tokenizer.json": b'{"version": "1.0"}',
    "model-00000-of-00002.safetensors": bytes(range(256)) * 8000,
    "model-00001-of-00002.safetensors": b"\0" * 700_000,
    "figures/benchmark.svg": b"<svg/>",
    INDEX: json.dumps(
        {"weight_map": {f"w{n}": f"model-0000{n}-of-00002.safetensors" for n in range(2)}}
    ).encode(),
}


@dataclass
class Hub:
    """A running hub with one model."""

    url: str
    store: Store
    commit: str
    log: Path
    seen: int = 0

    def request(
        self, directory: Path, kind: str, repository: str = REPOSITORY, revision: str = ""
    ) -> Request:
        source = {
            "kind": kind,
            "endpoint": self.url,
            "repository": repository,
            "revision": revision or self.commit,
        }
        return Request.parse(
            {"path": str(directory / "srv" / "org" / "model" / "revision"), "sources": [source]}
        )

    def bodies(self) -> Counter[str]:
        """How often the bytes of each large file were requested since the last call."""
        asked: Counter[str] = Counter()
        lines = self.log.read_text().splitlines()
        new, self.seen = lines[self.seen :], len(lines)
        for line in new:
            entry = json.loads(line)
            where = entry["path"] + "?" + entry["query"]
            for path in CONTENT:
                if path.endswith(".safetensors") and path in where and entry["method"] == "GET":
                    # A redirect to the large files' server is no second transfer.
                    asked[path] += entry["status"] in {200, 206}
        return asked


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    tmp_path = tmp_path_factory.mktemp("hub")
    folder = tmp_path / "model"
    for path, content in CONTENT.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    store = Store(tmp_path / "hub")
    commits = {store.publish(site, REPOSITORY, folder).commit for site in ("huggingface", "modelscope")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "access.log"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "lab.hub",
            "--root",
            str(store.root),
            "--port",
            str(port),
            "--access-log",
            str(log),
        ],
        cwd=Path(__file__).parents[2],
    )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{url}/healthz", timeout=1):  # noqa: S310  # our own loopback URL
                    break
            except OSError:
                time.sleep(0.05)
        yield Hub(url, store, commits.pop(), log)
    finally:
        process.terminate()
        process.wait(timeout=20)


def tree(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and FOLDER not in path.parts
    }


def run(request: Request) -> bool:
    return pull(request, QUICK, Reporter(request, Notifier(None)))


@pytest.mark.parametrize("kind", ["huggingface", "hf-mirror", "modelscope"])
def test_both_protocols(kind: str, hub: Hub, tmp_path: Path) -> None:
    hub.bodies()
    request = hub.request(tmp_path, kind)
    assert run(request) is True
    assert tree(request.path) == CONTENT, "the model, and nothing that a client left over"
    assert [path.name for path in (request.path / FOLDER).iterdir()] == ["manifest.json"]
    manifest = Manifest.read(request.path)
    assert manifest is not None
    assert manifest.revision == hub.commit
    assert all(entry.sha256 == hashlib.sha256(CONTENT[entry.path]).hexdigest() for entry in manifest.files)
    stated = {entry.path for entry in manifest.files if entry.stated}
    assert {path for path in CONTENT if path.endswith(".safetensors")} <= stated
    assert set(hub.bodies().values()) == {1}, "every large file is fetched once"
    assert run(request) is False


@pytest.mark.parametrize(
    ("kind", "repository", "revision", "words"),
    [
        ("huggingface", "MiniMaxAI/Nothing", "main", "does not exist or needs a token"),
        ("huggingface", REPOSITORY, "f" * 40, f"has no revision {'f' * 40}"),
        ("modelscope", REPOSITORY, "f" * 40, f"revision {'f' * 40}.* does not exist"),
    ],
)
def test_unknown_repository_or_revision_is_final(
    kind: str, repository: str, revision: str, words: str, hub: Hub, tmp_path: Path
) -> None:
    with pytest.raises(RefusedError, match=words):
        run(hub.request(tmp_path, kind, repository, revision))


def test_wrong_bytes_are_never_published(hub: Hub, tmp_path: Path) -> None:
    shard, other = "model-00001-of-00002.safetensors", "model-00000-of-00002.safetensors"
    stored = hub.store.object(hashlib.sha256(CONTENT[shard]).hexdigest())
    hub.bodies()
    stored.write_bytes(b"\1" * len(CONTENT[shard]))
    request = hub.request(tmp_path, "huggingface")
    with pytest.raises(PullError, match=f"{shard} has sha256 .*3 times in a row"):
        run(request)
    assert not request.path.exists()
    stored.write_bytes(CONTENT[shard])
    assert run(request) is True
    assert tree(request.path) == CONTENT
    assert hub.bodies() == {shard: 4, other: 1}, "only the damaged file is fetched again"


def test_from_one_hub_to_the_other(hub: Hub, tmp_path: Path) -> None:
    raw = {
        "path": str(tmp_path / "srv" / "org" / "model" / "revision"),
        "sources": [
            {
                "kind": "modelscope",
                "endpoint": hub.url,
                "repository": "MiniMax/Nothing",
                "revision": "master",
            },
            {"kind": "hf-mirror", "endpoint": hub.url, "repository": REPOSITORY, "revision": "main"},
        ],
    }
    request = Request.parse(raw)
    assert run(request) is True
    manifest = Manifest.read(request.path)
    assert manifest is not None
    assert manifest.source["kind"] == "hf-mirror"
    assert manifest.revision == hub.commit, "a branch is resolved to the commit"

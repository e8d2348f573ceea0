"""A pull follows a statement from outside the fleet: no source and no host defines a model alone."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.common.errors import UserError
from minimax_metal.host.weights.bound import Bound
from minimax_metal.host.weights.errors import SourceError
from minimax_metal.host.weights.manifest import FOLDER, Entry, Manifest
from minimax_metal.host.weights.proof import Proof, is_document, named
from minimax_metal.host.weights.pull import Options, PullError, RefusedError, complete, pull
from minimax_metal.host.weights.request import Request, Source
from minimax_metal.host.weights.sources import Listing, open_source
from tests.support.hub import REPOSITORY, Hub, model, running

QUICK = Options(attempts=1, backoff=0.05, interval=60, spare=0, stall=5, patience=3)
COMMIT = "c" * 40
OTHER = "d" * 40


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running(tmp_path_factory.mktemp("hub"), model(shards=2, size=50_000)) as hub:
        yield hub


@pytest.fixture
def hub(served: Hub) -> Iterator[Hub]:
    served.fail()
    yield served
    served.fail()


def git_id(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()


def proof_of(files: Mapping[str, bytes], **more: Any) -> dict[str, Any]:
    """A hub's statement: SHA-256 of large files, git ids of small ones."""
    stated = [
        {"path": path, "size": len(content)}
        | (
            {"sha256": hashlib.sha256(content).hexdigest()}
            if path.endswith(".safetensors")
            else {"git_oid": git_id(content)}
        )
        for path, content in files.items()
    ]
    return {
        "by": "hub",
        "origin": "https://huggingface.co",
        "repository": REPOSITORY,
        "revision": COMMIT,
        "resolver": "controller",
        "time": "2026-11-29T00:48:49Z",
        "files": stated,
        **more,
    }


def request_for(tmp_path: Path, sources: list[dict[str, Any]], **more: Any) -> Request:
    return Request.parse({"path": str(tmp_path / "srv" / "m" / "r"), "sources": sources, **more})


def content_of(request: Request) -> dict[str, bytes]:
    return {
        path.relative_to(request.path).as_posix(): path.read_bytes()
        for path in request.path.rglob("*")
        if path.is_file() and FOLDER not in path.parts
    }


# Sources ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["huggingface", "hf-mirror", "modelscope"])
def test_the_manifest_says_who_proved_what(kind: str, hub: Hub, tmp_path: Path) -> None:
    request = request_for(tmp_path, [hub.source(kind)], proof=proof_of(hub.files))
    assert pull(request, QUICK)
    assert content_of(request) == hub.files
    manifest = Manifest.read(request.path)
    assert manifest is not None
    assert manifest.revision == COMMIT
    assert manifest.proof["text"] == (
        "hub's hashes (https://huggingface.co), resolved by controller at 2026-11-29T00:48:49Z"
    )
    assert complete(request)
    # Without the proof, as a later run of an older controller asks: it is still what was asked for.
    assert complete(request_for(tmp_path, [hub.source(kind)]))


def test_without_a_proof_the_manifest_says_that_the_mirror_speaks_for_itself(
    hub: Hub, tmp_path: Path
) -> None:
    request = request_for(tmp_path, [hub.source()])
    assert pull(request, QUICK)
    manifest = Manifest.read(request.path)
    assert manifest is not None
    assert manifest.proof["by"] == "mirror"
    assert f"mirror's own list ({hub.url})" in manifest.proof["text"]


@pytest.mark.parametrize("kind", ["huggingface", "modelscope"])
@pytest.mark.parametrize("what", ["config.json", "model-00000-of-00002.safetensors"])
def test_a_source_with_other_bytes_than_stated_is_refused(
    kind: str, what: str, hub: Hub, tmp_path: Path
) -> None:
    """ModelScope's ``master`` under a commit of Hugging Face: another file of the same name and size."""
    files = dict(hub.files)
    files[what] = bytes(len(files[what]))
    request = request_for(tmp_path, [hub.source(kind, revision=None)], proof=proof_of(files))
    with pytest.raises(PullError) as caught:
        pull(request, QUICK)
    assert what in str(caught.value)
    assert not request.path.exists()


def test_a_file_that_the_source_lacks_is_named(hub: Hub, tmp_path: Path) -> None:
    request = request_for(tmp_path, [hub.source()], proof=proof_of({**hub.files, "modeling.py": b"x"}))
    with pytest.raises(RefusedError, match=r"modeling\.py: not there.*listed by hub's hashes"):
        pull(request, QUICK)


def test_what_nobody_stated_is_not_brought(hub: Hub, tmp_path: Path) -> None:
    files = {path: content for path, content in hub.files.items() if path != "tokenizer.json"}
    request = request_for(tmp_path, [hub.source()], proof=proof_of(files))
    pull(request, QUICK)
    assert content_of(request) == files


def test_a_text_that_a_hub_words_itself_is_left_out(hub: Hub, tmp_path: Path) -> None:
    """ModelScope stores README.md with its own front matter; the engine does not read that file."""
    files = {**hub.files, "README.md": b"# Another text\n", "LICENSE": b"terms"}
    request = request_for(tmp_path, [hub.source("modelscope")], proof=proof_of(files))
    pull(request, QUICK)
    assert content_of(request) == {
        path: content for path, content in hub.files.items() if path != "README.md"
    }
    assert complete(request)


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("README.md", True),
        ("LICENSE", True),
        ("LICENSE-MODEL.txt", True),
        (".gitattributes", True),
        ("figures/a.png", True),
        ("README.py", False),
        ("LICENSE.safetensors", False),
        ("merges.txt", False),
        ("chat_template.jinja", False),
        ("config.json", False),
    ],
)
def test_texts_for_readers(path: str, answer: bool) -> None:
    assert is_document(path) is answer


class Unhashed:
    """A source that states names and sizes only."""

    def list(self) -> Listing:
        return Listing((Entry("config.json", 3),), "master")

    def open(self, entry: Entry, offset: int, end: int | None = None) -> Any:
        raise AssertionError("nothing is to be fetched")

    def identity(self, entry: Entry) -> str | None:
        return None


@pytest.mark.parametrize("kind", ["modelscope", "huggingface", "http"])
def test_a_file_that_nobody_states_a_hash_of_is_refused(kind: str) -> None:
    source = Source(kind, "a/b", "master", "http://h")
    with pytest.raises(SourceError, match=r"no source publishes a hash of 1 file.*config\.json") as caught:
        Bound(Unhashed(), source).list()
    assert caught.value.permanent
    assert "model_weights_manifest" in str(caught.value)
    assert "model_weights_accept_unhashed" in str(caught.value)
    bound = Bound(Unhashed(), source, accept_unhashed=True)
    assert len(bound.list().files) == 1
    assert bound.record()["accepted"] == ["weights-unhashed"]
    assert bound.record()["unhashed"] == ["config.json"]


def test_a_branch_is_warned_of() -> None:
    said: list[str] = []
    Bound(Unhashed(), Source("modelscope", "a/b", "master"), accept_unhashed=True, note=said.append).list()
    assert len(said) == 1
    assert "is asked for master: a branch may change" in said[0]


def test_a_directory_is_held_to_the_proof(hub: Hub, tmp_path: Path) -> None:
    there = tmp_path / "mnt"
    for path, content in hub.files.items():
        (there / path).parent.mkdir(parents=True, exist_ok=True)
        (there / path).write_bytes(content)
    source = {"kind": "directory", "path": str(there)}
    request = request_for(tmp_path, [source], proof=proof_of(hub.files))
    (there / "config.json").write_bytes(b"[]\n")
    with pytest.raises(PullError, match=r"config\.json"):
        pull(request, QUICK)
    (there / "config.json").write_bytes(hub.files["config.json"])
    pull(request, QUICK)
    manifest = Manifest.read(request.path)
    assert manifest is not None
    assert manifest.proof["by"] == "hub"


# What is there ---------------------------------------------------------------------------------------------


def test_a_directory_that_was_pulled_unproved_is_held_to_the_proof_later(hub: Hub, tmp_path: Path) -> None:
    """Its bytes came under the commit's name from a source that had others: the next run repairs that."""
    first = request_for(tmp_path, [hub.source("modelscope", revision=None)])
    pull(first, QUICK)
    assert complete(first)
    stated = proof_of(hub.files)
    assert complete(request_for(tmp_path, [hub.source()], proof=stated))
    small = first.path / "tokenizer.json"
    wrong = b" " * len(hub.files["tokenizer.json"])
    small.unlink()
    small.write_bytes(wrong)
    raw = json.loads((first.path / FOLDER / "manifest.json").read_text())
    for file in raw["files"]:
        file.pop("git_oid", None)
        if file["path"] == "tokenizer.json":
            file["sha256"] = hashlib.sha256(wrong).hexdigest()
    (first.path / FOLDER / "manifest.json").write_text(json.dumps(raw))
    assert complete(first), "nobody knows better"
    proved = request_for(tmp_path, [hub.source()], proof=stated)
    assert not complete(proved)
    pull(proved, QUICK)
    assert content_of(proved) == hub.files


def test_a_file_that_nobody_stated_makes_a_directory_incomplete(hub: Hub, tmp_path: Path) -> None:
    pull(request_for(tmp_path, [hub.source()]), QUICK)
    files = {path: content for path, content in hub.files.items() if path != "tokenizer.json"}
    request = request_for(tmp_path, [hub.source()], proof=proof_of(files))
    assert not complete(request), "the engine may load what is there"
    pull(request, QUICK)
    assert content_of(request) == files


# Other hosts -----------------------------------------------------------------------------------------------


@contextmanager
def impostor(files: Mapping[str, bytes]) -> Iterator[int]:
    """An attacker at a host's address, without the fleet's secret, with a model of his own."""
    listing = {
        "revision": COMMIT,
        "files": [
            {
                "path": path,
                "size": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "stated": True,
                "identity": hashlib.sha256(content).hexdigest(),
            }
            for path, content in files.items()
        ],
    }
    answers = {
        "/listing": b"0" * 32 + b"\n" + json.dumps(listing).encode(),
        "/manifest": json.dumps({"schema": 1, "name": "m", "source": {}, **listing}).encode(),
        "/log": b'\n{"boot":"1","me":"gpu02","piece":1000000}\n["origin",true]\n',
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("/files/")[2].partition("/")[2]
            body = answers.get(self.path) or files.get(path, b"")
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize("proved", [False, True])
@pytest.mark.parametrize("accepted", [False, True])
def test_whoever_answers_at_a_hosts_address_defines_no_model(
    proved: bool, accepted: bool, tmp_path: Path
) -> None:
    """The origin can't be reached. Before, the impostor's files were verified, as "huggingface, stated"."""
    (tmp_path / "secret").write_text("ab01" * 16)
    evil = {"config.json": b"{}\n", "modeling.py": b"import os; os.system('id')\n"}
    with impostor(evil) as port:
        request = request_for(
            tmp_path,
            [
                {
                    "kind": "huggingface",
                    "repository": "a/b",
                    "revision": COMMIT,
                    "endpoint": "http://127.0.0.1:9",
                }
            ],
            share={
                "me": "gpu01",
                "port": 18000,
                "peers": [{"name": "gpu02", "address": "127.0.0.1", "port": port}],
                "secret_file": str(tmp_path / "secret"),
            },
            **({"proof": proof_of(evil)} if proved else {}),
            **({"accept": ["weights-unhashed"]} if accepted else {}),
        )
        with pytest.raises(PullError) as caught:
            pull(request, QUICK)
    assert not request.path.exists()
    assert "Connection refused" in str(caught.value)
    if not proved and not accepted:
        assert "their list of the model's files is not proved" in str(caught.value)


def test_a_source_that_sends_a_byte_now_and_then_is_left_for_the_next(tmp_path: Path) -> None:
    """It is never silent, so no connection timeout ends it."""
    content = bytes(100_000)
    there = tmp_path / "mnt"
    there.mkdir()
    (there / "a.bin").write_bytes(content)
    (there / "config.json").write_bytes(b"{}\n")
    stated = [
        Entry(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest(), stated=True)
        for path in sorted(there.iterdir())
    ]
    manifest = json.dumps(Manifest("m", None, {}, tuple(stated)).as_dict()).encode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path.endswith("manifest.json")
            self.send_response(200)
            self.send_header("Content-Length", str(len(manifest if known else content)))
            self.end_headers()
            with contextlib.suppress(OSError):
                if known:
                    self.wfile.write(manifest)
                for _ in range(0 if known else 300):
                    self.wfile.write(b"\0")
                    time.sleep(0.1)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        sources = [{"kind": "http", "endpoint": url}, {"kind": "directory", "path": str(there)}]
        request = request_for(tmp_path, sources, proof=proof_of({"a.bin": content, "config.json": b"{}\n"}))
        begun = time.monotonic()
        assert pull(request, replace(QUICK, attempts=2, patience=2))
        assert time.monotonic() - begun < 25
        server.shutdown()


# Reading ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"by": "me"},
        {"files": []},
        {"files": "x"},
        {"files": [{"path": "../x", "size": 1, "sha256": "0" * 64}]},
        {"files": [{"path": "a", "size": 10**30, "sha256": "0" * 64}]},
        {"files": [{"path": "a", "size": -1, "sha256": "0" * 64}]},
        {"files": [{"path": "a", "size": True, "sha256": "0" * 64}]},
        {"files": [{"path": "a", "size": 1, "sha256": "../../x"}]},
        {"files": [{"path": "a\x1b[2J", "size": 1, "sha256": "0" * 64}]},
        {"files": [{"path": "a", "size": 1}, {"path": "a", "size": 2}]},
        {"origin": "x\ny"},
        {"time": None},
    ],
)
def test_a_statement_that_is_none_is_refused_in_one_line(change: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        Proof.parse({**proof_of({"a": b"x"}), **change})
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_proof_survives_its_journey() -> None:
    raw = proof_of({"a.safetensors": b"x", "b.json": b"{}"})
    assert Proof.parse(raw).as_dict() == raw
    assert Proof.parse(raw).unhashed == ()


def test_a_manifest_file_of_the_user(tmp_path: Path) -> None:
    """One of ours, a proof, or the answer of Hugging Face's API (huggingface.co/docs/hub/api)."""
    when = "2026-11-01T00:00:00Z"
    ours: dict[str, Any] = {
        "name": "m",
        "revision": None,
        "source": {},
        "files": [{"path": "a", "size": 1, "sha256": "0" * 64, "stated": True}],
    }
    api = {
        "sha": COMMIT,
        "siblings": [
            {"rfilename": "config.json", "size": 3, "blobId": "1" * 40},
            {
                "rfilename": "m.safetensors",
                "size": 134,
                "blobId": "2" * 40,
                "lfs": {"sha256": "3" * 64, "size": 9},
            },
        ],
    }
    for raw in (ours, api, proof_of({"a": b"x"})):
        found = named(raw, "/m.json", when, repository="a/b", revision=COMMIT)
        assert found.by == "manifest"
        assert found.unhashed == ()
    assert str(found) == f"manifest named by the user (/m.json), resolved by controller at {when}"
    with pytest.raises(UserError, match=f"for revision {COMMIT}, expected {OTHER}"):
        named(api, "/m.json", when, repository="a/b", revision=OTHER)
    for raw in ([], {}, {"siblings": [{}]}, {"files": 3}, 7, None):  # type: ignore[assignment]  # foreign
        with pytest.raises(UserError, match=r"/m\.json"):
            named(raw, "/m.json", when, repository=None, revision=None)


def test_every_kind_is_opened_bound() -> None:
    """A source is known by the hash that binds it, the same for all hosts and sources."""
    proof = Proof.parse(proof_of({"config.json": b"{}"}))
    for kind in ("huggingface", "modelscope"):
        source = Source(kind, "a/b", COMMIT, "http://h")
        bound = Bound(open_source(source), source, proof)
        assert bound.shared_identity(proof.files[0]) == git_id(b"{}")

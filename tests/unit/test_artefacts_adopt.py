"""Adopt existing files: caches of both hubs' own clients, plain directories, other revisions."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from minimax_metal.common.errors import UserError
from minimax_metal.host.engine.notify import Notifier
from minimax_metal.host.weights import adopt, commands
from minimax_metal.host.weights.manifest import FOLDER, Entry, Manifest
from minimax_metal.host.weights.pull import Options, Reporter, pull
from minimax_metal.host.weights.request import Request
from tests.support import models
from tests.support.hub import REPOSITORY, Hub, model, running

QUICK = Options(workers=3, stall=5, attempts=2, backoff=0.05, interval=0.2, spare=0)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running(tmp_path_factory.mktemp("hub"), model(shards=3, size=400_000)) as found:
        yield found


@pytest.fixture(scope="module")
def caches(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both clients' caches, created by the clients themselves."""
    home = tmp_path_factory.mktemp("home")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "MODELSCOPE_"))},
        "HF_ENDPOINT": hub.url,
        "MODELSCOPE_ENDPOINT": hub.url,
        "HF_HOME": str(home / "hf"),
        "MODELSCOPE_CACHE": str(home / "ms"),
        "HOME": str(home),
    }
    for code in (
        f"import huggingface_hub as h; h.snapshot_download({REPOSITORY!r})",
        f"import modelscope; modelscope.snapshot_download({REPOSITORY!r})",
    ):
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    return home


def request_for(
    tmp_path: Path, hub: Hub, *directories: Path, kind: str = "huggingface", **more: object
) -> Request:
    path = tmp_path / "srv" / "m" / "r"
    adopted = [str(directory) for directory in directories]
    return Request.parse({"path": str(path), "sources": [hub.source(kind)], "adopt": adopted, **more})


def run(request: Request) -> str:
    output = io.StringIO()
    pull(request, QUICK, Reporter(request, Notifier(None), output))
    return output.getvalue()


def tree(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and FOLDER not in path.parts
    }


def state(directory: Path) -> dict[str, tuple[object, ...]]:
    """Everything about a user's directory except its files' link counts."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        found[str(path)] = (status.st_mode, status.st_uid, status.st_mtime_ns, status.st_ino, content)
    return found


@pytest.mark.parametrize("kind", ["huggingface", "modelscope"])
@pytest.mark.parametrize(
    "where",
    [
        "hf",
        "hf/hub",
        f"hf/hub/models--{REPOSITORY.replace('/', '--')}",
        "ms",
        "ms/models",
        f"ms/models/{REPOSITORY.replace('/', '--')}/snapshots/master",
    ],
)
def test_caches_of_the_hubs_own_clients(
    where: str, kind: str, hub: Hub, caches: Path, tmp_path: Path
) -> None:
    skip, before = len(hub.lines()), state(caches)
    request = request_for(tmp_path, hub, caches / where, kind=kind)
    said = run(request)
    assert tree(request.path) == hub.files
    assert set(hub.bodies(skip)) <= {"empty.txt"}, "no byte is downloaded"
    assert state(caches) == before, "nothing of the user's is changed"
    assert "adopted 1." in said
    assert not any(path.is_symlink() for path in request.path.rglob("*"))


def test_a_plain_directory_is_linked(hub: Hub, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    for path, content in hub.files.items():
        (mine / path).parent.mkdir(parents=True, exist_ok=True)
        (mine / path).write_bytes(content)
    shard, other = "model-00000-of-00003.safetensors", "model-00001-of-00003.safetensors"
    (mine / shard).chmod(0o666)  # somebody else may write to it
    (mine / other).write_bytes(b"x" * len(hub.files[other]))  # and this is not the file
    (mine / "config.json").chmod(0o600)
    before, skip = state(mine), len(hub.lines())
    request = request_for(tmp_path, hub, mine, tmp_path / "nothing")
    said = run(request)
    assert tree(request.path) == hub.files
    assert state(mine) == before
    assert set(hub.bodies(skip)) == {other}, "what is not the file is fetched, and only that"
    assert "1 files don't match" in said
    linked = "model-00002-of-00003.safetensors"
    if (request.path / linked).stat().st_nlink > 1:  # no reflinks on this file system
        assert (request.path / linked).stat().st_ino == (mine / linked).stat().st_ino
    assert (request.path / shard).stat().st_ino != (mine / shard).stat().st_ino
    assert (request.path / "config.json").stat().st_mode & 0o777 == 0o644


def test_what_was_adopted_is_not_read_again(hub: Hub, caches: Path, tmp_path: Path) -> None:
    """Like the unit: one step that may read users' homes, then the pull, which may not."""
    file = tmp_path / "request.json"
    raw = {
        "path": str(tmp_path / "srv" / "m" / "r"),
        "sources": [hub.source()],
        "adopt": [str(caches / "hf"), str(tmp_path / "nothing")],
    }
    file.write_text(json.dumps(raw))
    assert commands.main(["adopt", "--request", str(file)]) == 0
    request = Request.parse({**raw, "adopt": []})
    assert not request.path.exists()
    shard = request.staging / "model-00000-of-00003.safetensors"
    status = shard.stat()
    content = shard.read_bytes()
    shard.unlink()  # not the user's any more
    shard.write_bytes(b"z" + content[1:])
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    run(request)
    assert (request.path / shard.name).read_bytes()[:1] == b"z", (
        "only a file that is not read again keeps this"
    )
    assert commands.main(["adopt", "--request", str(file)]) == 0, "nothing to do any more"


def test_another_revision_of_the_model_lends_its_shards(hub: Hub, tmp_path: Path) -> None:
    first = request_for(tmp_path, hub)
    run(first)
    skip = len(hub.lines())
    second = Request.parse({"path": str(first.path.with_name("r2")), "sources": [hub.source("modelscope")]})
    run(second)
    assert tree(second.path) == hub.files
    assert set(hub.bodies(skip)) <= {"empty.txt"}


def test_a_manifest_stands_in_for_a_hub_that_is_out_of_reach(hub: Hub, tmp_path: Path) -> None:
    first = request_for(tmp_path, hub)
    run(first)
    manifest = tmp_path / "manifest.json"
    shutil.copy(first.path / FOLDER / "manifest.json", manifest)
    mine = tmp_path / "mine"
    first.path.rename(mine)
    shutil.rmtree(mine / FOLDER)
    gone = hub.source(endpoint="http://127.0.0.1:9")
    raw = {"path": str(tmp_path / "srv" / "m" / "r"), "sources": [gone], "adopt": [str(mine)]}
    said: list[str] = []
    request = Request.parse(raw)
    assert not adopt.adopt(request, said.append, [mine], 0).ways
    assert "no source lists the expected files and hashes" in said[0]
    found = adopt.adopt(Request.parse({**raw, "manifest": str(manifest)}), said.append, [mine], 0)
    assert found.ways.total() == len([content for content in hub.files.values() if content])
    with pytest.raises(UserError, match="can't read the manifest"):
        adopt.adopt(Request.parse({**raw, "manifest": "/nonexistent"}), said.append, [mine], 0)


@pytest.mark.parametrize("way", [adopt.LINK, adopt.COPY, None])
def test_ways(way: str | None, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"bytes")
    (tmp_path / "a").chmod(0o444)
    found = adopt.place(tmp_path / "a", tmp_path / "b", way)
    assert found == way or way is None
    assert (tmp_path / "b").read_bytes() == b"bytes"
    assert ((tmp_path / "a").stat().st_nlink == 2) is (found == adopt.LINK)
    with pytest.raises(FileExistsError):
        adopt.place(tmp_path / "a", tmp_path / "b", adopt.COPY)


def test_a_reflink_is_taken_where_the_file_system_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []

    def ioctl(target: int, request: int, source: int) -> int:
        calls.append((request, os.fstat(source).st_ino))
        os.write(target, b"bytes")
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    (tmp_path / "a").write_bytes(b"bytes")
    assert adopt.place(tmp_path / "a", tmp_path / "b") == adopt.REFLINK
    assert calls == [(0x40049409, (tmp_path / "a").stat().st_ino)]


def test_what_is_no_file_is_no_candidate(tmp_path: Path) -> None:
    entry = Entry("f", 5, "0" * 64)
    os.mkfifo(tmp_path / "f")
    assert list(adopt.candidates(entry, [tmp_path], [])) == []
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / ("0" * 64)).write_bytes(b"12345")
    (tmp_path / "x").mkdir()
    os.link(tmp_path / "blobs" / ("0" * 64), tmp_path / "x" / "f")
    assert list(adopt.candidates(entry, [tmp_path / "x"], [tmp_path / "blobs"])) == [
        tmp_path / "blobs" / ("0" * 64)
    ]
    assert str(adopt.Adopted()) == "nothing"
    assert str(adopt.Adopted(Counter({"linked": 2, "copied": 1}))) == "1 copied, 2 linked"


def test_repair_fetches_what_is_damaged_and_only_that(hub: Hub, tmp_path: Path) -> None:
    request = request_for(tmp_path, hub)
    run(request)
    shard = request.path / "model-00002-of-00003.safetensors"
    shard.write_bytes(b"\0" * shard.stat().st_size)
    skip = len(hub.lines())
    assert "already verified" in run(request), "sizes are as they should be"
    pull(request, QUICK, Reporter(request, Notifier(None), io.StringIO()), repair=True)
    assert tree(request.path) == hub.files
    assert set(hub.bodies(skip)) == {shard.name}
    assert Manifest.read(request.path) is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_adopts_for_the_owner_of_the_models(hub: Hub, tmp_path: Path) -> None:
    """Like the unit, from a place that nobody else may read: the resulting files are the service's."""
    mine = tmp_path / "home" / "mine"
    for path, content in hub.files.items():
        (mine / path).parent.mkdir(parents=True, exist_ok=True)
        (mine / path).write_bytes(content)
    mine.parent.chmod(0o700)
    place = tmp_path / "srv" / "m"
    place.mkdir(parents=True)
    os.chown(place, 65534, 65534)
    # The service reaches its own directory, as it does below /srv: only its owner's rights are used there.
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o711)
    tmp_path.chmod(0o711)
    file = tmp_path / "request.json"
    file.write_text(json.dumps({"path": str(place / "r"), "sources": [hub.source()], "adopt": [str(mine)]}))
    assert commands.main(["adopt", "--request", str(file)]) == 0
    found = list(place.rglob("*"))
    assert {".r.lock", ".r.state.json", "r.partial", "verified.jsonl"} <= {path.name for path in found}
    shared = {path for path in found if path.is_file() and path.stat().st_nlink > 1}
    assert {path.stat().st_uid for path in found if path not in shared} == {65534}
    assert {path.stat().st_uid for path in mine.rglob("*")} == {0}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_an_owner_who_cant_reach_the_directory_ends_no_adoption(hub: Hub, tmp_path: Path) -> None:
    """``rsync -a`` and ``cp -a`` below /root keep owners that can't enter /root."""
    home = tmp_path / "home"
    foreign, mine = home / "foreign", tmp_path / "mine"
    for place in (foreign, mine):
        for path, content in hub.files.items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_bytes(content)
    for each in [foreign, *foreign.rglob("*")]:
        os.chown(each, 65534, 65534)
    home.chmod(0o700)
    said: list[str] = []
    request = Request.parse({"path": str(tmp_path / "srv" / "m" / "r"), "sources": [hub.source()]})
    request.path.parent.mkdir(parents=True)
    taken = adopt.adopt(request, said.append, [foreign, mine], 0)
    assert sum(taken.ways.values()) >= len(hub.files) - 1  # an empty file is made by the pull
    assert len(said) == 1
    assert "read as its owner, user 65534, who can't: Permission denied" in said[0]
    assert f"give it to root (chown -R root: {foreign})" in said[0]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("gone", "it does not exist"),
        ("empty", "it is empty"),
        ("file", "it is not a directory"),
        ("other", "none of the model's .* files is in it, but notes.txt; .: contains no .safetensors file"),
        ("pointers", "with another size, e.g. model-0.*a git-LFS pointer"),
        ("aria2", "an unfinished download of aria2"),
        ("parent", "none of the model's .* files is in it, but A, B; .: contains 2 models"),
    ],
)
def test_an_adoption_that_finds_nothing_says_what_it_saw(
    spoil: str, words: str, hub: Hub, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
    if spoil == "file":
        mine.touch()
    elif spoil != "gone":
        mine.mkdir()
    if spoil == "other":
        (mine / "notes.txt").touch()
    if spoil in {"pointers", "aria2"}:
        for name in hub.files:
            if name.endswith(".safetensors"):
                (mine / name).write_bytes(pointer)
    if spoil == "aria2":
        (mine / "model.safetensors.aria2").touch()
    if spoil == "parent":
        models.write(mine / "A", models.model())
        models.write(mine / "B", models.model())
    said: list[str] = []
    request = Request.parse({"path": str(tmp_path / "srv" / "m" / "r"), "sources": [hub.source()]})
    request.path.parent.mkdir(parents=True)
    assert not adopt.adopt(request, said.append, [mine], 0).ways
    assert len(said) == 1
    assert re.search(words, said[0]), said
    assert str(mine) in said[0]

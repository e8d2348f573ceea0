"""Writers killed between any two file operations leave the old file or the new one, never half.

Each writer runs in a process that kills itself before its n-th file operation, for every n. After each kill
the reader finds the state before or after, and the writer, run again, finishes.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509 import DNSName, SubjectAlternativeName

from minimax_metal.common import files
from minimax_metal.common.errors import UserError
from minimax_metal.controller.bundle import serve
from minimax_metal.controller.bundle_store import store
from minimax_metal.controller.keys import authority, rotation
from minimax_metal.controller.keys import kept as keys
from minimax_metal.controller.statements.resolving import resolve
from minimax_metal.controller.statements.wishes import Kept, Wish, note_failure, recent_failure
from minimax_metal.host import lock
from minimax_metal.host.accept import bundle
from minimax_metal.host.accept.redaction import Redaction
from minimax_metal.host.engine import kernel_archive, kernel_lines, kernels
from minimax_metal.host.releases import journal
from minimax_metal.host.releases.record import Records
from minimax_metal.host.weights.manifest import Entry, Manifest
from minimax_metal.host.weights.proof import HUB, Proof
from minimax_metal.host.weights.publish import publish
from minimax_metal.host.weights.request import Request, Source
from minimax_metal.host.weights.share.pieces import PieceFile
from minimax_metal.host.weights.stock import System, remove

FAILED = 3
"""A process that the writer needed was killed instead, and the writer reported it."""
MOST = 400
"""Maximum number of operations of one writer; more would be an endless loop."""
AUDITED = {
    "open", "os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink",
    "os.truncate", "os.utime", "shutil.rmtree",
}  # fmt: skip
UNAUDITED = ("write", "fsync", "fchmod", "fchown")
SLOW = ("sync",)
"""Counted, but left out: it affects the whole machine, while a killed process loses nothing."""

PLAN: dict[str, Any] = {"schema": 1, "host": "gpu01", "model": {"path": None}, "kernel_cache": {"key": "key"}}


@dataclass
class Writer:
    """A writer, and the states that its reader may find."""

    write: Callable[[Path], object]
    read: Callable[[Path], object]
    prepare: Callable[[Path], object] = lambda _: None
    between: tuple[object, ...] = ()
    """Further states that may be found: intended ones, which a reader recognises."""


def text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def names(directory: Path) -> list[str]:
    """The files that a reader sees: names that no writer uses temporarily."""
    found = []
    for path in directory.rglob("*"):
        if path.is_file() and not path.name.startswith(".") and not path.name.endswith(".part"):
            found.append(f"{path.relative_to(directory)} {path.read_bytes()!r}")
    return sorted(found)


def released(place: Path) -> object:
    records = Records(place / "releases")
    for release in records.all():
        json.loads(release.path.read_text(encoding="utf-8"))
    current = records.current()
    return None if current is None else json.loads(current.path.read_text(encoding="utf-8"))["plan"]


def cache(place: Path) -> None:
    for name in ("a/kernel.cubin", "b.so", "precompiled-0123456789ab"):
        (place / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "cache" / name).write_text(f"content of {name}" * 50)
    kernels.pack(place / "cache", place / "archive.tar.gz")


def packed(place: Path) -> object:
    path = place / "again.tar.gz"
    if not path.exists():
        return None
    with tarfile.open(path, "r:gz") as archive:
        return archive.getnames()


def whole_kernels(place: Path) -> object:
    """Kernels may arrive one by one, each complete; the marker only when all the others exist."""
    found = {
        path.as_posix(): (place / "other" / path).read_text()
        for path in kernel_archive.kernels(place / "other")
    }
    for name, content in found.items():
        assert content == (place / "cache" / name).read_text()
    if "precompiled-0123456789ab" in found:
        assert len(found) == 3
        return "all"
    return None


def one_key(place: Path) -> object:
    path = place / "secrets" / "key"
    return None if not path.exists() else len(keys.kept(path))


def model(place: Path) -> None:
    directory = place / "models" / "o" / "m" / "r"
    directory.mkdir(parents=True)
    (directory / "shard").write_text("shard")
    manifest = Manifest("m", "r", {}, (Entry("shard", 5, "0" * 64, stated=True),))
    manifest.write(directory)


def complete(place: Path) -> object:
    directory = place / "models" / "o" / "m" / "r"
    if not directory.exists():
        return None
    assert Manifest.read(directory) is not None
    return (directory / "shard").read_text()


def pieces(place: Path) -> PieceFile:
    return PieceFile(place, "identity", Entry("shard", 30, None), 10)


def half_of_pieces(place: Path) -> None:
    """Two pieces that exist and are recorded, and a record of a third that does not."""
    found = pieces(place)
    found.open()
    found.write(b"a" * 20, 0)
    found.close()
    good = hashlib.sha256(b"a" * 10).hexdigest()
    found.notes.write_text(f"piece 10\n0 {good}\n1 {good}\n2 {good}\n")


def removed(place: Path) -> None:
    nowhere = place / "nowhere"
    with contextlib.suppress(Exception):
        remove(place / "models/o/m/r", System(nowhere, nowhere, nowhere, nowhere), place / "models")


def bundled(place: Path) -> object:
    path = place / "out" / "bundle.tar.gz"
    return gzip.decompress(path.read_bytes()).count(b"metal-accept/a.txt") if path.exists() else None


def lines_of(place: Path) -> None:
    lines = kernel_lines.Lines(place / "kernel-lines")
    lines.kept.append("1.0 NVRM: x")
    lines.write()


def pulled(place: Path) -> Request:
    """A request with new files verified in the staging directory, and older ones under the final name."""
    return Request.parse(
        {"path": str(place / "srv/m/r"), "sources": [{"kind": "directory", "path": "/none"}]}
    )


def two_revisions(place: Path) -> None:
    request = pulled(place)
    for directory, content in ((request.path, "old!!"), (request.staging, "newer")):
        directory.mkdir(parents=True)
        (directory / "shard").write_text(content)
        digest = hashlib.sha256(content.encode()).hexdigest()
        Manifest("m", content, {}, (Entry("shard", 5, digest, stated=True),)).write(directory)


def publish_new(place: Path) -> None:
    # As a pull does: what is there as it should be is left alone.
    manifest = Manifest.read(pulled(place).path)
    if manifest is None or manifest.revision != "newer":
        publish(pulled(place))


def published(place: Path) -> object:
    """The name always exists, and refers to one complete revision."""
    manifest = Manifest.read(pulled(place).path)
    content = (pulled(place).path / "shard").read_text()
    assert manifest is not None
    assert manifest.revision == content
    return content


@functools.cache
def signing_key() -> tuple[Path, Path]:
    """A key to sign bundles with, and the file of allowed signers."""
    place = Path(tempfile.mkdtemp(prefix="metal-crash-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    key = place / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    return key, key.with_name("key.pub")


def export_of(name: str, size: int) -> Callable[[Path], object]:
    """An export of a small signed bundle, as by ``metal bundle export``; a second one continues."""

    def export(place: Path) -> object:
        directory = place / "bundle"
        store.begin(directory)
        files = [store.place(directory, f"pypi/files/{n}", name.encode() * size) for n in range(2)]
        return store.finish(directory, {"wheels": []}, files, f"2026-{size:02}-01", signing_key()[0])

    return export


def bundle_in(folder: str) -> Callable[[Path], object]:
    """A bundle that can be read is signed, and complete."""

    def read(place: Path) -> object:
        try:
            found = store.read(place / folder, signing_key()[1])
        except UserError as error:
            assert "no bundle" in str(error) or "unfinished" in str(error)  # noqa: PT017 - no reader takes it
            return None
        assert found.signer
        assert list(store.damaged(found)) == []
        return found.created

    return read


def import_bundle(place: Path) -> None:
    store.copy(store.read(place / "bundle", signing_key()[1]), place / "copy", lambda _: None, "signed")


WISH = Wish("MiniMaxAI/M", "main", (Source("huggingface", "MiniMaxAI/M", "main"),))
COMMITS = {"old": "a" * 40, "new": "b" * 40}


def statement(name: str) -> Callable[[Path], object]:
    """The hub's statement on a model's files, requested and stored like in a play."""
    proof = Proof(
        HUB, "https://huggingface.co", "controller", "2026-11-29T00:00:00Z",
        (Entry("config.json", 3, "0" * 64, stated=True),), "MiniMaxAI/M", COMMITS[name],
    )  # fmt: skip
    wish = dataclasses.replace(WISH, again=True)
    return lambda place: resolve(wish, place / "store", ask=lambda _: proof)


def stated(place: Path) -> object:
    found = Kept.read(place / "store", WISH)
    return None if found is None else (found.proof.revision, [commit for _, commit in found.settled])


def old_keys(place: Path) -> None:
    for name in rotation.NAMES:
        keys.kept(place / "secrets" / name)
        (place / name).write_text(keys.kept(place / "secrets" / name))


def rotated(*verbs: str) -> Callable[[Path], object]:
    """Steps of a key rotation, each with its end."""

    def run(place: Path) -> None:
        for verb in verbs:
            if verb == "arrived":
                rotation.arrived(place / "secrets")
            else:
                rotation.step(place / "secrets", verb)

    return run


def in_steps(*verbs: str) -> Callable[[Path], object]:
    def prepare(place: Path) -> None:
        old_keys(place)
        rotated(*verbs)(place)

    return prepare


def valid_keys(place: Path) -> object:
    """The keys that hosts get now, old and new ones; they always accept the key in use."""
    found = []
    for name in rotation.NAMES:
        path, old = place / "secrets" / name, (place / name).read_text()
        found.append(["old" if one == old else "new" for one in rotation.accepted(path, keep=False)])
        assert keys.kept(path, keep=False) in rotation.accepted(path, keep=False)
    assert found[0] == found[1] == found[2], "keys of one change are at one place"
    return found[0]


def certify(*names: str) -> Callable[[Path], object]:
    return lambda place: authority.issued(place / "tls", "gpu01", names)


def certified(place: Path) -> object:
    """The clients' authority never changes; a host's certificate has its key next to it, at every moment."""
    tls = place / "tls"
    if not (tls / "ca.crt").exists():
        return None
    ca = authority._load(tls / "ca.crt", tls / "ca.key")
    assert ca is not None
    known = place / "known.crt"
    if known.exists():
        assert known.read_bytes() == (tls / "ca.crt").read_bytes()
    if not (tls / "host-gpu01.crt").exists():
        return "an authority"
    pair = authority._load(tls / "host-gpu01.crt", tls / "host-gpu01.key")
    assert pair is not None
    pair[0].verify_directly_issued_by(ca[0])
    return (
        pair[0].extensions.get_extension_for_class(SubjectAlternativeName).value.get_values_for_type(DNSName)
    )


def known_authority(place: Path) -> None:
    certify("gpu01")(place)
    shutil.copy(place / "tls" / "ca.crt", place / "known.crt")


HOLDER = {"run": "r", "user": "u", "controller": "c", "time": "t", "command": "site", "pid": 1}

WRITERS: dict[str, Writer] = {
    "a file": Writer(
        lambda place: files.write_atomic(place / "file", "new" * 1000),
        lambda place: text(place / "file"),
        lambda place: (place / "file").write_text("old"),
    ),
    "a link": Writer(
        lambda place: files.link_atomic(place / "link", "new"),
        lambda place: str((place / "link").readlink()),
        lambda place: (place / "link").symlink_to("old"),
    ),
    "a release": Writer(lambda place: Records(place / "releases").record(PLAN), released),
    "a second release": Writer(
        lambda place: Records(place / "releases").record(PLAN | {"host": "gpu02"}),
        released,
        lambda place: Records(place / "releases").record(PLAN),
    ),
    "an archive of kernels": Writer(
        lambda place: kernels.pack(place / "cache", place / "again.tar.gz"), packed, cache
    ),
    "kernels that are taken": Writer(
        lambda place: kernels.unpack(place / "archive.tar.gz", place / "other"), whole_kernels, cache
    ),
    "kernels that are copied": Writer(
        lambda place: kernels.copy(place / "cache", place / "other"), whole_kernels, cache
    ),
    "a note of kernels": Writer(
        lambda place: kernels.note("key", {"built_by": "gpu01"}, place / "notes"),
        lambda place: kernels.origin("key", place / "notes"),
    ),
    "a key": Writer(lambda place: keys.kept(place / "secrets" / "key"), one_key),
    "a manifest": Writer(
        lambda place: Manifest("m", "new", {}, ()).write(place),
        lambda place: (found := Manifest.read(place)) and found.revision,
        lambda place: Manifest("m", "old", {}, ()).write(place),
    ),
    "notes of pieces": Writer(
        lambda place: pieces(place).recall(),
        lambda place: pieces(place).notes.read_text().splitlines() and pieces(place).staged(),
        half_of_pieces,
    ),
    "the removal of a model": Writer(removed, complete, model),
    "a model that replaces another": Writer(publish_new, published, two_revisions),
    "a bundle": Writer(
        lambda place: bundle.write(place / "out" / "bundle.tar.gz", {"a.txt": "x" * 9000}, Redaction([])),
        bundled,
    ),
    "a rollout's journal": Writer(
        lambda place: journal.write({"run": "new"}, place / "rollout.json"),
        lambda place: journal.read(place / "rollout.json"),
        lambda place: journal.write({"run": "old"}, place / "rollout.json"),
    ),
    "the fleet's lock": Writer(
        lambda place: lock.take(HOLDER, place / "lock.json"),
        lambda place: (found := lock.read(place / "lock.json")) and found["run"],
    ),
    "the variables of a served bundle": Writer(
        lambda place: serve.written(place / "all.yml", "http://10.0.0.9:8080", frozen=True),
        lambda place: text(place / "all.yml"),
        lambda place: serve.written(place / "all.yml", "http://10.0.0.8:8080"),
    ),
    "a signed bundle": Writer(export_of("new", 2), bundle_in("bundle")),
    "a signed bundle in another's place": Writer(
        # While it is made there is none: nobody takes the directory for one.
        export_of("new", 2),
        bundle_in("bundle"),
        export_of("old", 1),
        between=(None,),
    ),
    "the copy of a signed bundle": Writer(import_bundle, bundle_in("copy"), export_of("new", 2)),
    "a statement of a model's files": Writer(statement("new"), stated),
    "another statement": Writer(statement("new"), stated, statement("old")),
    "a note that nobody could say": Writer(
        lambda place: note_failure(place, WISH, ["no way"], 1), lambda place: recent_failure(place, WISH)
    ),
    "new keys beside the old": Writer(rotated("start"), valid_keys, old_keys),
    "new keys in use": Writer(rotated("start"), valid_keys, in_steps("start", "arrived")),
    "old keys gone": Writer(rotated("finish"), valid_keys, in_steps("start", "arrived", "start", "arrived")),
    "the end of a key rotation": Writer(
        rotated("arrived"),
        lambda place: (valid_keys(place), rotation.read(place / "secrets") is None),
        in_steps("start", "arrived", "start", "arrived", "finish"),
    ),
    "keys taken back": Writer(
        rotated("take-back"), valid_keys, in_steps("start", "arrived", "start", "arrived")
    ),
    "an authority": Writer(certify("gpu01"), certified, between=("an authority",)),
    "another certificate": Writer(certify("gpu01", "llm.example"), certified, known_authority),
    "the kernel's lines": Writer(lines_of, lambda place: kernel_lines.read(0, place / "kernel-lines")),
}


def killed_before(number: int, work: Callable[[], object]) -> bool:
    """Work in a process that is killed before its n-th file operation; return whether it finished."""
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in {0, FAILED, -signal.SIGKILL}, f"ended with {status}"
        return status == 0
    left = number

    def step() -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in AUDITED and not (event == "open" and str(arguments[0]).endswith((".py", ".pyc"))):
            step()

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*words: Any, **named: Any) -> Any:
            step()
            return call(*words, **named)

        return stepping

    def opened(*words: Any, **named: Any) -> Any:
        file = real_open(*words, **named)
        # Opened, perhaps made empty, and nothing written yet.
        step()
        return file

    real_open, io.open = io.open, opened
    code = 70
    try:
        for name in UNAUDITED:
            setattr(os, name, counted(getattr(os, name)))
        for name in SLOW:
            setattr(os, name, step)
        sys.addaudithook(hook)
        work()
        code = 0
    except UserError:
        code = FAILED
    finally:
        os._exit(code)


@pytest.mark.parametrize("name", WRITERS)
def test_a_kill_leaves_the_old_or_the_new(tmp_path: Path, name: str) -> None:
    writer = WRITERS[name]
    whole = tmp_path / "whole"
    whole.mkdir()
    writer.prepare(whole)
    before = writer.read(whole)
    assert killed_before(MOST, lambda: writer.write(whole))
    after = writer.read(whole)
    assert after != before
    for number in range(1, MOST):
        place = tmp_path / str(number)
        place.mkdir()
        writer.prepare(place)
        ended = killed_before(number, lambda: writer.write(place))  # noqa: B023 - called at once
        assert writer.read(place) in (before, after, *writer.between), f"killed before operation {number}"
        if ended:
            assert number > 2, "nothing was counted"
            break
        writer.write(place)
        assert writer.read(place) == after, f"written again after a kill before operation {number}"
        shutil.rmtree(place)
    else:
        pytest.fail("it never ends")

"""A bundle made by an attacker, or on a disk that an attacker can write to; and what serving one reveals."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from minimax_metal.cli import main
from minimax_metal.common.errors import UserError
from minimax_metal.controller.bundle import download, serve
from minimax_metal.controller.bundle_store import document, signature, store
from minimax_metal.controller.bundle_store.area import area

SECRET = b"root:$6$secret:19000:0:99999:7:::\n"


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file outside the bundle that no bundle may read, write or delete."""
    path = tmp_path / "etc" / "shadow"
    path.parent.mkdir()
    path.write_bytes(SECRET)
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> store.Bundle:
    directory = tmp_path / "bundle"
    store.begin(directory)
    files = [store.place(directory, f"pypi/files/{n}", bytes([n]) * (n + 1)) for n in range(3)]
    files.append(store.place(directory, "weights/a/b/c/model.safetensors", b"weights"))
    files.append(store.place(directory, "pypi/simple/x/index.html", b"<a>page</a>"))
    return store.finish(directory, {}, files)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two SSH keys: the signer's and an attacker's."""
    place = tmp_path_factory.mktemp("ssh")
    for name in ("signer", "other"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(place / name)], check=True
        )
    return place / "signer", place / "other"


def change(bundle: store.Bundle, **values: Any) -> None:
    path = bundle.directory / store.MANIFEST
    text = json.loads(path.read_text())
    text["files"][0] |= values
    path.write_text(json.dumps(text))


def tree(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


# -- the manifest ---------------------------------------------------------------------------------------------

BAD: list[dict[str, Any]] = [
    {"sha256": "../../x"}, {"sha256": "A" * 64}, {"sha256": "a" * 63}, {"sha256": None}, {"sha256": 7},
    {"size": -1}, {"size": 1e30}, {"size": "5"}, {"size": True}, {"size": None}, {"size": 10**20},
    {"path": "/etc/passwd"}, {"path": "../x"}, {"path": "apt/../../x"}, {"path": "apt/./x"}, {"path": "apt//x"},
    {"path": ".partial/x"}, {"path": "manifest.json"}, {"path": "imported.json"}, {"path": "apt"}, {"path": ""},
    {"path": "home/x"}, {"path": "apt/x\n/y"}, {"path": "apt/x\x00"}, {"path": "apt/\x1b[2J"}, {"path": "apt\\..\\x"},
    {"path": "apt/" + "x" * 300}, {"path": "/".join(["apt"] + ["y"] * 2000)}, {"path": ["apt"]}, {"path": "apt/x/"},
    {"path": "APT/x"}, {"more": 1}, {"path": "apt/\u202etxt"}, {"path": "apt/\ud800"},
]  # fmt: skip


@pytest.mark.parametrize("values", BAD, ids=lambda value: repr(value)[:50])
def test_a_manifest_that_names_what_no_bundle_has_is_refused(
    bundle: store.Bundle, values: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    change(bundle, **values)
    before = tree(tmp_path)
    for words in (
        ["verify", str(bundle.directory), "--remove"],
        ["import", str(bundle.directory), "--to", str(tmp_path / "copy")],
        ["serve", str(bundle.directory), "--allow", "127.0.0.0/8"],
    ):
        assert main(["bundle", *words, "--accept-unsigned"]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "Traceback" not in said
        assert "\x1b" not in said
    assert tree(tmp_path) == before


def entry(path: str) -> dict[str, Any]:
    return {"path": path, "size": 1, "sha256": "a" * 64}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("apt/x", "apt/x"),
        ("apt/x", "apt/X"),
        ("apt/x", "apt/x/y"),
        ("apt/ﬁ", "apt/fi"),
        ("apt/é", "apt/e\u0301"),
    ],
)
def test_two_names_for_one_file_are_refused(one: str, other: str) -> None:
    text = {"schema": 1, "created": "x", "contents": {}, "files": [entry(one), entry(other)]}
    with pytest.raises(UserError, match="don't use it"):
        document.parse(json.dumps(text).encode(), "manifest.json")


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"[" * 200_000, b'{"schema": true}', b'{"schema": 1}', b'{"schema": NaN}', b"\xff\xfe",
     b'{"schema": 1, "created": 1, "contents": {}, "files": []}', b'{"schema": 1, "created": "", "contents": [], "files": []}',
     b'{"schema": 1, "created": "", "contents": {}, "files": {}}', b'{"schema": 1, "created": "", "contents": {}, "files": [1]}',
     b'{"schema": 1, "created": "", "contents": {}, "files": [' + b",".join([b"1"] * 300_001) + b"]}"],
    ids=lambda value: value[:40].decode("latin1"),
)  # fmt: skip
def test_what_is_not_a_manifest_is_one_line(content: bytes) -> None:
    with pytest.raises(UserError) as refused:
        document.parse(content, "manifest.json")
    assert "\n" not in str(refused.value)


def test_a_huge_manifest_is_not_read(bundle: store.Bundle) -> None:
    with (bundle.directory / store.MANIFEST).open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(UserError, match="more than"):
        store.read(bundle.directory)


@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
def test_a_manifest_that_is_no_plain_file_is_not_waited_for(
    bundle: store.Bundle, kind: str, secret: Path
) -> None:
    path = bundle.directory / store.MANIFEST
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(secret)
    else:
        path.mkdir()
    with pytest.raises(UserError, match="can't be read"):
        store.read(bundle.directory)


# -- what lies under its names --------------------------------------------------------------------------------


def plant(kind: str, path: Path, secret: Path) -> None:
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(secret)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "larger":
        with path.open("wb") as stream:
            stream.truncate(1 << 42)
    elif kind == "smaller":
        path.write_bytes(b"")
    elif kind == "directory":
        path.mkdir()
    elif kind == "above":
        path.parent.rename(path.parent.with_name("moved"))
        path.parent.symlink_to(path.parent.with_name("moved"))


KINDS = ["fifo", "link", "zero", "larger", "smaller", "directory", "above"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_planted_in_a_bundle_is_found_and_not_taken_in(
    bundle: store.Bundle, kind: str, secret: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(kind, bundle.directory / "pypi/files/2", secret)
    started = time.monotonic()
    assert main(["bundle", "verify", str(bundle.directory), "--accept-unsigned"]) == 1
    assert "pypi/files/2: found" in capsys.readouterr().err
    target = tmp_path / "copy"
    assert main(["bundle", "import", str(bundle.directory), "--to", str(target), "--accept-unsigned"]) == 2
    assert not (target / store.MANIFEST).exists()
    assert all(SECRET not in content for content in tree(target).values())
    if kind not in {"directory", "above"}:
        assert main(["bundle", "verify", str(bundle.directory), "--remove", "--accept-unsigned"]) == 1
        assert not (bundle.directory / "pypi/files/2").is_symlink()
    assert secret.read_bytes() == SECRET
    assert time.monotonic() - started < 20


def test_what_is_planted_where_a_bundle_goes_is_not_followed(
    bundle: store.Bundle, secret: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, outside = tmp_path / "copy", tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"kept")
    store.begin(target)
    (target / "pypi").symlink_to(outside)
    command = ["bundle", "import", str(bundle.directory), "--to", str(target), "--accept-unsigned"]
    assert main(command) == 2
    assert "is a link" in capsys.readouterr().err
    assert tree(outside) == {"kept": b"kept"}
    (target / "pypi").unlink()
    # Under a file's own name: replaced, not written through.
    (target / "pypi/files").mkdir(parents=True)
    (target / "pypi/files/0").symlink_to(secret)
    os.mkfifo(target / "pypi/files/1")
    (target / "weights").mkdir()
    (target / "weights/elsewhere").symlink_to(outside)
    assert main(command) == 0
    assert secret.read_bytes() == SECRET
    assert tree(outside) == {"kept": b"kept"}
    assert not (target / "weights/elsewhere").is_symlink()
    assert list(store.damaged(store.read(target))) == []


def test_the_place_of_unfinished_files_is_not_followed(bundle: store.Bundle, tmp_path: Path) -> None:
    target, outside = tmp_path / "copy", tmp_path / "outside"
    target.mkdir()
    outside.mkdir()
    (target / ".partial").symlink_to(outside)
    with pytest.raises(UserError, match="is a link"):
        store.copy(bundle, target, lambda _: None)
    assert list(outside.iterdir()) == []
    with pytest.raises(UserError, match="is a link"):
        store.place(target, "apt/x", b"x")


def test_an_unfinished_file_that_is_a_link_or_has_another_name_is_not_written_to(
    secret: Path, tmp_path: Path
) -> None:
    target = tmp_path / "copy"
    store.begin(target)
    name = hashlib.sha256(b"apt/x").hexdigest() + ".new"
    (target / ".partial" / name).symlink_to(secret)
    store.place(target, "apt/x", b"new")
    item = download.Item("http://127.0.0.1:9/x", "apt/y", 3, sha(b"new"))
    part = target / ".partial" / hashlib.sha256(f"{item.path} {item.sha256}".encode()).hexdigest()
    os.link(secret, part)
    with area(target) as opened:
        os.close(opened.write(part.name, keep=True))
    assert not part.is_symlink()
    assert part.stat().st_nlink == 1
    assert secret.read_bytes() == SECRET


# -- what comes over the net ----------------------------------------------------------------------------------


class Endless(BaseHTTPRequestHandler):
    """Announces ten bytes and sends endlessly, or announces no length."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        block = b"x" * (1 << 20)
        try:
            while True:
                self.wfile.write(block)
        except OSError:
            pass

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def endless() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_body_without_end_is_cut_at_what_the_lock_says(
    endless: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(download, "UNSTATED", 5 << 20)
    store.begin(tmp_path / "b")
    for size in (10, -1):
        item = download.Item(f"{endless}/x", "pypi/files/x", size, sha(b"y"))
        with pytest.raises(UserError, match="more than"):
            download.fetch(item, tmp_path / "b")
    assert sum(path.stat().st_size for path in (tmp_path / "b").rglob("*") if path.is_file()) <= 5 << 20
    with pytest.raises(UserError, match="more than 64 MiB"):
        download.get(f"{endless}/InRelease", "a list")


class _Sends(BaseHTTPRequestHandler):
    """Redirects every client, and records their credentials."""

    target = ""
    seen: list[str | None]

    def do_GET(self) -> None:
        self.seen.append(self.headers["Authorization"])
        self.send_response(302 if self.target else 200)
        self.send_header("Location", self.target)
        self.send_header("Content-Length", "0" if self.target else "3")
        self.end_headers()
        self.wfile.write(b"" if self.target else b"new")

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def sending(target: str = "") -> Iterator[tuple[str, list[str | None]]]:
    seen: list[str | None] = []
    handler = type("Handler", (_Sends,), {"target": target, "seen": seen})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()
        thread.join()


def test_no_password_of_netrc_is_sent_to_a_mirror_nor_where_it_leads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login me password canary\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    store.begin(tmp_path / "b")
    with sending() as (end, last), sending(f"{end}/x") as (url, first):
        download.fetch(download.Item(f"{url}/x", "apt/y", 3, sha(b"new")), tmp_path / "b")
        assert download.get(f"{url}/InRelease", "a list") == b"new"
    assert first == last == [None, None]


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://[fd00:ec2::254]/x",
        "http://100.100.100.200/x",
        "ftp://127.0.0.1/x",
        "file:///etc/shadow",
        "http://me:word@127.0.0.1/x",
    ],
)
def test_a_mirror_sends_a_bundle_to_no_reserved_address(tmp_path: Path, target: str) -> None:
    store.begin(tmp_path / "b")
    with sending(target) as (url, seen):
        with pytest.raises(UserError, match="redirects to"):
            download.fetch(download.Item(f"{url}/x", "apt/y", 3, sha(b"new")), tmp_path / "b")
        with pytest.raises(UserError, match="redirects to"):
            download.get(f"{url}/InRelease", "a list")
    assert len(seen) == 2, "nor is it asked again"


# -- signatures -----------------------------------------------------------------------------------------------


def signers(tmp_path: Path, *keys: Path) -> Path:
    path = tmp_path / "signers"
    path.write_text("# who signs\n" + "".join(Path(f"{key}.pub").read_text() for key in keys))
    return path


def signed(bundle: store.Bundle, key: Path) -> None:
    store.begin(bundle.directory)
    store.finish(bundle.directory, {}, bundle.files, bundle.created, key)


def test_a_signed_bundle_is_known_by_a_key_that_was_there_before(
    bundle: store.Bundle, keys: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    signed(bundle, keys[0])
    known = str(signers(tmp_path, keys[0]))
    target = tmp_path / "copy"
    assert main(["bundle", "import", str(bundle.directory), "--to", str(target), "--signers", known]) == 0
    assert "verified, signed by SHA256:" in capsys.readouterr().out
    # The copy is the same bundle, byte for byte, and stays one when it is carried on.
    for name in (store.MANIFEST, store.SIGNATURE):
        assert (target / name).read_bytes() == (bundle.directory / name).read_bytes()
    assert main(["bundle", "verify", str(target), "--signers", known]) == 0
    note = json.loads((target / "imported.json").read_text())
    assert note["signer"].startswith("SHA256:")


@pytest.mark.parametrize("how", ["unsigned", "other", "changed", "namespace", "garbage", "nobody"])
def test_a_bundle_of_nobody_known_is_refused_unless_accepted_by_name(
    bundle: store.Bundle,
    keys: tuple[Path, Path],
    tmp_path: Path,
    how: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = signers(tmp_path, keys[0])
    directory = bundle.directory
    if how == "other":
        signed(bundle, keys[1])
    elif how == "changed":
        signed(bundle, keys[0])
        change(bundle, sha256="b" * 64)
    elif how == "namespace":  # signed for something else: a git commit
        subprocess.run(
            ["ssh-keygen", "-q", "-Y", "sign", "-f", str(keys[0]), "-n", "git", str(directory / store.MANIFEST)],
            check=True, capture_output=True,
        )  # fmt: skip
        assert (directory / store.SIGNATURE).exists()
    elif how == "garbage":
        (directory / store.SIGNATURE).write_bytes(b"-----BEGIN SSH SIGNATURE-----\n" + b"A" * 60_000)
    before = tree(tmp_path)
    words = [] if how == "nobody" else ["--signers", str(known)]
    for verb in (["verify", str(directory)], ["import", str(directory), "--to", str(tmp_path / "copy")],
                 ["serve", str(directory), "--allow", "127.0.0.0/8"]):  # fmt: skip
        assert main(["bundle", *verb, *words]) == 2
        said = capsys.readouterr().err
        assert "signature" in said
        assert "--accept-unsigned" in said
    assert tree(tmp_path) == before
    if how != "changed":
        target = tmp_path / "copy"
        assert (
            main(["bundle", "import", str(directory), "--to", str(target), *words, "--accept-unsigned"]) == 0
        )
        assert "accepted with --accept-unsigned" in capsys.readouterr().out
        note = json.loads((target / "imported.json").read_text())
        assert note["signer"] is None
        assert "accepted with --accept-unsigned" in note["trust"]


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "no public key"), ("not a key\n", "not a public key"), ('cert-authority,namespaces="*" ssh-ed25519 AAAA\n', "not a"),
     ("ssh-ed25519 AAAA x\nbundle ssh-ed25519 BBBB\n", "not a public key")],
)  # fmt: skip
def test_a_wrong_file_of_signers_is_said(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "signers"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        signature.public_keys(path)
    with pytest.raises(UserError, match="can't be read"):
        signature.public_keys(tmp_path)


def test_a_key_that_is_not_there_stops_before_the_bundle_is_finished(
    bundle: store.Bundle, tmp_path: Path
) -> None:
    store.begin(bundle.directory)
    with pytest.raises(UserError, match="found no key"):
        store.finish(bundle.directory, {}, bundle.files, None, tmp_path / "nothing")
    assert not (bundle.directory / store.MANIFEST).exists()


# -- serving --------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def served(bundle: store.Bundle, secret: Path, tmp_path: Path) -> Iterator[tuple[str, int, Path]]:
    """A bundle with planted files that must not be served, served by the command; URL, pid, directory."""
    directory = bundle.directory
    (directory / "weights/etc").symlink_to(secret.parent)
    (directory / "weights/key").symlink_to(secret)
    (directory / "apt").mkdir()
    (directory / "apt/unlisted").write_bytes(SECRET)
    os.mkfifo(directory / "apt/pipe")
    (directory / ".partial").mkdir(exist_ok=True)
    (directory / ".partial/half").write_bytes(SECRET)
    port, variables = free_port(), tmp_path / "group_vars/bundle.yml"
    process = subprocess.Popen(
        [sys.executable, "-m", "minimax_metal.cli", "bundle", "serve", str(directory), "--accept-unsigned",
         "--listen", f"127.0.0.1:{port}", "--allow", "127.0.0.0/8", "--variables", str(variables)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                requests.get(f"{url}/manifest.json", timeout=5)
                break
            except requests.ConnectionError:
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.05)
        assert yaml.safe_load(variables.read_text()) == {"metal_mirrors": url}
        yield url, process.pid, directory
    finally:
        process.terminate()
        process.communicate(timeout=60)
    with socket.socket() as probe:  # it ended with the command
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def raw(url: str, line: str) -> bytes:
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(line.encode("latin1") + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b""
        while block := connection.recv(65536):
            answer += block
    return answer


def test_only_listed_files_are_served(served: tuple[str, int, Path]) -> None:
    url, pid, directory = served
    assert requests.get(f"{url}/pypi/files/2", timeout=10).content == bytes([2]) * 3
    for asked, status, content in (
        ("bytes=1-2", 206, bytes([2]) * 2), ("bytes=1-", 206, bytes([2]) * 2), ("bytes=-1", 206, bytes([2])),
        ("bytes=3-", 416, b""), ("bytes=-0", 416, b""), ("bytes=2-1", 416, b""), ("lines=1-2", 200, bytes([2]) * 3),
        ("bytes=0-1,2-2", 200, bytes([2]) * 3), ("bytes=0-999999999", 206, bytes([2]) * 3),
    ):  # fmt: skip
        answer = requests.get(f"{url}/pypi/files/2", headers={"Range": asked}, timeout=10)
        assert (answer.status_code, answer.content) == (status, content), asked
    whole = requests.head(f"{url}/pypi/files/2", timeout=10)
    assert (whole.headers["Content-Length"], whole.content) == ("3", b"")
    assert requests.get(f"{url}/pypi/simple/x/", timeout=10).text == "<a>page</a>"
    assert requests.get(f"{url}/manifest.json", timeout=10).json()["schema"] == 1
    assert requests.put(f"{url}/pypi/files/2", data=b"x", timeout=10).status_code == 405
    for path in (
        "/weights/etc/shadow", "/weights/key", "/apt/unlisted", "/apt/pipe", "/.partial/half", "/../etc/shadow",
        "/weights/a/../../../etc/shadow", "/%2e%2e/etc/shadow", "/weights/a/b/c/..%2f..%2fmodel", "//etc/shadow",
        "/pypi/files", "/pypi/files/", "/", "", "http://x/etc/shadow", "/pypi/files/2%00", "/%ff", "/PYPI/FILES/2",
        "/pypi//files/2", "/pypi/./files/2", "/imported.json", "/manifest.json.sig", "/pypi/files/2/",
    ):  # fmt: skip
        for method in ("GET", "HEAD"):
            got = raw(url, f"{method} {path} HTTP/1.1")
            assert SECRET not in got, path
            assert b" 200 " not in got.split(b"\r\n")[0], (method, path)
    # What changed under its name since.
    (directory / "pypi/files/1").unlink()
    (directory / "pypi/files/1").symlink_to("/dev/zero")
    (directory / "pypi/files/0").write_bytes(b"other length")
    for name in ("0", "1"):
        assert requests.get(f"{url}/pypi/files/{name}", timeout=10).status_code == 404
    if os.geteuid() == 0:
        rights = Path(f"/proc/{pid}/status").read_text()
        nobody = pwd.getpwnam("nobody").pw_uid
        for line in rights.splitlines():
            name, _, value = line.partition(":")
            if name in {"Uid", "Gid"}:
                assert "0" not in value.split(), line
            if name in {"CapEff", "CapPrm"}:
                assert int(value, 16) == 0, line
        assert f"Uid:\t{nobody}" in rights


def test_clients_at_the_same_time_get_whole_files(served: tuple[str, int, Path]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    url = served[0]

    def ask(number: int) -> bytes:
        return requests.get(f"{url}/weights/a/b/c/model.safetensors", timeout=20).content

    with ThreadPoolExecutor(32) as pool:
        assert set(pool.map(ask, range(200))) == {b"weights"}


def test_slow_clients_keep_nobody_else_out(bundle: store.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "CLIENTS", 12)
    monkeypatch.setattr(serve, "OF_ONE", 8)
    monkeypatch.setattr(serve, "SECONDS", 1.0)
    slow: list[socket.socket] = []
    with area(bundle.directory) as opened:
        server = serve.Server(opened, bundle, ("127.0.0.1", 0), serve.networks(["127.0.0.0/8"]))
        with server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            for _ in range(20):
                slow.append(socket.create_connection(("127.0.0.1", server.server_port), 5, ("127.0.0.9", 0)))
                slow[-1].sendall(b"GET /manifest.json HTTP/1.1\r\nX: ")
            url = f"http://127.0.0.1:{server.server_port}"
            assert requests.get(f"{url}/manifest.json", timeout=10).status_code == 200
            # Byte after byte, and still late: the place is free again.
            slow[0].settimeout(0.2)
            ended = False
            for _ in range(40):
                try:
                    slow[0].sendall(b"x")
                    ended = slow[0].recv(100) == b""
                except TimeoutError:
                    continue
                except OSError:
                    ended = True
                if ended:
                    break
            assert ended
            server.shutdown()
            thread.join()
    for one in slow:
        one.close()


def test_who_is_not_allowed_gets_nothing(bundle: store.Bundle) -> None:
    with area(bundle.directory) as opened:
        server = serve.Server(opened, bundle, ("127.0.0.1", 0), serve.networks(["10.0.0.0/8", "fd00::/8"]))
        with server:
            for client in ("127.0.0.1", "11.0.0.1", "::1", "fe80::1%eth0"):
                assert not server.verify_request(None, (client, 1)), client
            for client in ("10.1.2.3", "::ffff:10.1.2.3", "fd00::2"):
                assert server.verify_request(None, (client, 1)), client
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            with pytest.raises(requests.ConnectionError):
                requests.get(f"http://127.0.0.1:{server.server_port}/manifest.json", timeout=10)
            server.shutdown()
            thread.join()
    with pytest.raises(UserError, match="found no --allow"):
        serve.networks([])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_root_is_nobody_to_serve_as(
    bundle: store.Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "drop_to", lambda user: pytest.fail(f"became {user}"))
    words = ["bundle", "serve", str(bundle.directory), "--accept-unsigned", "--allow", "127.0.0.0/8",
             "--listen", f"127.0.0.1:{free_port()}"]  # fmt: skip
    assert main([*words, "--user", "root"]) == 2
    assert "a user who is not root" in capsys.readouterr().err
    assert main([*words, "--user", "no-such-user"]) == 2
    assert "no user no-such-user" in capsys.readouterr().err
    # A drop that does not work is not served on.
    monkeypatch.setattr(serve, "drop_to", lambda user: None)
    assert main(words) == 2
    assert "still running as root" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's files can be kept from nobody")
def test_a_bundle_that_nobody_can_read_is_said_before_it_is_served(bundle: store.Bundle) -> None:
    (bundle.directory / "pypi/files/1").chmod(0o600)
    done = subprocess.run(
        [sys.executable, "-m", "minimax_metal.cli", "bundle", "serve", str(bundle.directory), "--accept-unsigned",
         "--listen", f"127.0.0.1:{free_port()}", "--allow", "127.0.0.0/8"],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "found pypi/files/1 in" in done.stderr
    assert "nobody can't read" in done.stderr
    assert stat.S_IMODE((bundle.directory / "pypi/files/1").stat().st_mode) == 0o600

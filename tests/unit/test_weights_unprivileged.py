"""Commands started by root ask hubs and mirrors without root's rights; the server sees whose socket it is."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from minimax_metal.common.apart import within
from minimax_metal.common.errors import UserError
from minimax_metal.controller.statements import bundled
from minimax_metal.host.weights import adopt, asking, commands, unprivileged
from minimax_metal.host.weights.errors import SourceError
from minimax_metal.host.weights.request import Request, Source
from minimax_metal.host.weights.sources import open_source
from tests.support.answering import Answer, answering

SOURCE = Path(__file__).parents[2] / "src/minimax_metal"
COMMIT, NOBODY = "c" * 40, 65534
MODEL = {
    "sha": COMMIT,
    "siblings": [{"rfilename": "config.json", "size": 3, "blobId": "1" * 40}],
}
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="there are no rights to give up")


class Hub(ThreadingHTTPServer):
    """A hub that records the user of each connection, and gives the test's answers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.users: list[int] = []
        self.tokens: list[str | None] = []
        self.status, self.headers = 200, dict[str, str]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def source(self, **more: Any) -> Source:
        return Source("hf-mirror", "A/B", **{"revision": "main", "endpoint": self.url, **more})


class Answering(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.server.users.append(user_of(self.client_address[1], self.server.server_address[1]))
        self.server.tokens.append(self.headers.get("Authorization"))
        body = json.dumps(MODEL).encode()
        self.send_response(self.server.status)
        for name, value in ({"Content-Length": str(len(body))} | self.server.headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def user_of(port: int, other: int) -> int:
    """The user of a socket on the loopback interface (proc_net_tcp of the kernel's documentation)."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1] == f"0100007F:{port:04X}" and fields[2] == f"0100007F:{other:04X}":
            return int(fields[7])
    raise AssertionError("the connection is gone")


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def request_of(hub: Hub, place: Path) -> Request:
    source = {"kind": "hf-mirror", "repository": "A/B", "revision": "main", "endpoint": hub.url}
    (place / "request.json").write_text(
        json.dumps({"path": str(place / "model"), "name": "A/B", "revision": "main", "sources": [source]})
    )
    return Request.read(place / "request.json")


def by_command(hub: Hub, place: Path) -> None:
    request_of(hub, place)
    assert commands.main(["resolve", "--request", str(place / "request.json")]) == 0


def by_controller(hub: Hub, _: Path) -> None:
    proof = asking.ask(hub.source())
    assert (proof.revision, proof.files[0].git_oid) == (COMMIT, "1" * 40)


def by_adoption(hub: Hub, place: Path) -> None:
    found, where = adopt.listing_of(request_of(hub, place))
    assert found is not None, where
    assert (found.revision, found.files[0].path) == (COMMIT, "config.json")


def by_bundle(hub: Hub, place: Path) -> None:
    (place / "signers").write_text("")
    source = Source("http", endpoint=f"{hub.url}/weights/A/B/{COMMIT}")
    bundled._both(str(source), hub.url)  # the answer itself is read by those who call it
    hub.users.clear()
    with pytest.raises((UserError, SourceError)):
        bundled.served(source, "A/B", COMMIT, place / "signers")


@root_only
@pytest.mark.parametrize("asks", [by_command, by_controller, by_adoption, by_bundle])
def test_root_asks_as_nobody(
    asks: Callable[[Hub, Path], None], hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asks(hub, tmp_path)
    assert hub.users
    assert set(hub.users) == {NOBODY}
    assert os.geteuid() == 0, "this process itself goes on as before"
    if asks is by_command:
        assert json.loads(capsys.readouterr().out)[0]["revision"] == COMMIT


@root_only
def test_a_token_that_only_root_reads_is_sent(hub: Hub, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("hf_secret\n")
    token.chmod(0o600)
    unprivileged.list_of(hub.source(token_file=token))
    assert hub.tokens == ["Bearer hf_secret"]


@root_only
def test_errors_arrive_as_they_are(hub: Hub) -> None:
    hub.status = 404
    with pytest.raises(SourceError) as caught:
        unprivileged.list_of(hub.source())
    assert (caught.value.permanent, caught.value.busy, caught.value.status) == (True, False, 404)
    hub.status, hub.headers = 503, {"Retry-After": "7"}
    with pytest.raises(SourceError) as caught:
        unprivileged.list_of(hub.source())
    assert (caught.value.busy, caught.value.after, caught.value.status) == (True, 7.0, 503)


def _watched(origin: Any) -> list[str]:
    """The child's imports, and the files of Python or of this program that it opens."""
    found: list[str] = []
    roots = tuple({sys.prefix, sys.base_prefix, str(SOURCE)})

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "import" or (event == "open" and str(arguments[0]).startswith(roots)):
            found.append(f"{event} {arguments[0]}")

    sys.addaudithook(hook)
    with contextlib.suppress(SourceError, UserError):
        unprivileged._listed(origin)
    return found


PAGE = b"<!doctype html><title>Log in</title><a href='config.json'>config.json</a>"
ANSWERS = {
    "a list": Answer(200, {"Content-Type": "application/json"}, json.dumps(MODEL).encode()),
    "a page": Answer(200, {"Content-Type": "text/html; charset=koi8-r"}, PAGE),
    "no such model": Answer(404, {"X-Error-Code": "RepoNotFound"}, b'{"error": "not found"}'),
    "compressed": Answer(200, {"Content-Encoding": "gzip"}, gzip.compress(json.dumps(MODEL).encode())),
    "compressed wrongly": Answer(200, {"Content-Encoding": "deflate"}, b"x" * 100),
    "a redirect": Answer(302, {"Location": "http://\u00e4.example/\u4e2d".encode().decode("latin-1")}),
    "patience": Answer(503, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
    "garbage": Answer(raw=b"\xff\xfe\r\n\r\n"),
    "nothing": Answer(raw=b""),
}


@root_only
@pytest.mark.parametrize("kind", ["huggingface", "modelscope", "http"])
@pytest.mark.parametrize("name", ANSWERS)
def test_nothing_of_the_program_is_loaded_without_rights(name: str, kind: str) -> None:
    """It may be below root's own home, which no other user can enter."""
    with answering(lambda _: ANSWERS[name]) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        source = Source(kind, None if kind == "http" else "A/B", "main", url)
        assert unprivileged.as_nobody("hub", _watched, open_source(source, 5)) == []
        assert server.asked


@root_only
def test_nothing_is_loaded_for_a_name_that_nobody_knows() -> None:
    source = Source("hf-mirror", "A/B", "main", "https://xn--nothing-4ya.invalid")
    assert unprivileged.as_nobody("hub", _watched, open_source(source, 5)) == []


def _read_certificates() -> str:
    return Path(os.environ["REQUESTS_CA_BUNDLE"]).read_text()


@root_only
def test_certificates_that_only_root_reaches_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root").mkdir(mode=0o700)
    (tmp_path / "root" / "own.pem").write_text("PEM")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "root" / "own.pem"))
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert unprivileged.as_nobody("hub", _read_certificates) == "PEM"
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@root_only
def test_the_child_has_no_right_left() -> None:
    said, problem = within(20, _rights, user=(NOBODY, NOBODY))
    assert problem is None
    assert said == [[NOBODY] * 3, [NOBODY] * 3, [], "0" * 16, "denied"]


def _rights() -> list[Any]:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"CapEff:\s+([0-9a-f]+)", status)
    assert found is not None
    try:
        os.setuid(0)
    except PermissionError:
        back = "denied"
    else:
        back = "root again"
    return [list(os.getresuid()), list(os.getresgid()), os.getgroups(), found[1], back]


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "x",
        {},
        {"error": 1},
        {"answer": None},
        {"answer": {"files": [{"path": "../x", "size": 1}], "revision": None}},
        {"answer": {"files": [{"path": "x", "size": "1"}], "revision": None}},
        {"answer": {"files": [], "revision": 3}},
        {"error": "no", "after": -1, "status": "x", "permanent": 1, "code": "\x1b[31m"},
    ],
)
def test_a_child_that_was_taken_over_says_nothing_that_is_believed(
    answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unprivileged, "within", lambda *_, **__: (answer, None))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises((SourceError, UserError)) as caught:
        unprivileged.list_of(Source("hf-mirror", "A/B", "main", "http://127.0.0.1:1"))
    if isinstance(caught.value, SourceError):
        assert (caught.value.after, caught.value.status, caught.value.permanent) == (None, None, False)
        assert "\x1b" not in caught.value.code


def test_nobody_else_asks_a_server_for_a_model() -> None:
    """New code that opens a source or makes requests must never do so as root."""
    asks = re.compile(r"\b(?:open_source|Web)\(")
    found = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if any(asks.search(line) for line in path.read_text("utf-8").splitlines() if "def " not in line)
    }
    assert found == {
        "controller/statements/bundled.py",  # in the child
        "host/weights/fetch.py",  # the pull: a unit with a user of its own
        "host/weights/asking.py",  # a directory
        "host/weights/sources.py",
        "host/weights/unprivileged.py",
        "host/check/commands.py",  # the endpoint that is tested
        "host/gateway/commands.py",  # the gateway and its engines
        "controller/bundle/download.py",  # docs/security.md
    }

"""How a gateway finds out whether a worker is the expected engine."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from minimax_metal.host.engine_plugin.minimax_metal_engine import Guard, Settings
from minimax_metal.host.engine_plugin.minimax_metal_engine.identity import Identity
from minimax_metal.host.gateway import identity as gateway_identity
from minimax_metal.host.gateway.client import Web
from minimax_metal.host.gateway.identity import Examiner, Judge, Seen
from minimax_metal.host.gateway.pool import published, read_configuration, read_withheld, write_withheld
from tests.support.asgi_client import Recorder, ask
from tests.unit.test_gateway_pool import configure, metal

KEY = "0123456789abcdef-clients"


@contextmanager
def listening(answer: Any) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A program at a port; ``answer`` returns status and body for a nonce and the URL."""
    headers: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers.append({name.lower(): value for name, value in self.headers.items()})
            nonce = parse_qs(urlsplit(self.path).query)["nonce"][0]
            status, body = answer(nonce, url)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield url, headers
        server.shutdown()


def proof(nonce: str, url: str, key: str = KEY) -> tuple[int, bytes]:
    return 200, json.dumps({"proof": Identity(key, url).proof(nonce)}).encode()


ANSWERS: dict[str, tuple[Any, Seen]] = {
    "the engine": (proof, Seen.PROVEN),
    "another key": (lambda nonce, url: proof(nonce, url, "another-key-of-16"), Seen.FOREIGN),
    "another engine's answer": (lambda nonce, _: proof(nonce, "http://gpu02:8000"), Seen.FOREIGN),
    "an earlier answer": (lambda _, url: proof("0" * 64, url), Seen.FOREIGN),
    "200 to everything": (lambda *_: (200, b"{}"), Seen.FOREIGN),
    "not JSON": (lambda *_: (200, b"<html>"), Seen.FOREIGN),
    "not text": (lambda *_: (200, b'{"proof": 5}'), Seen.FOREIGN),
    "a letter beyond ASCII": (lambda *_: (200, '{"proof": "ä"}'.encode()), Seen.FOREIGN),
    "an engine without a guard": (lambda *_: (404, b"{}"), Seen.FOREIGN),
    "the proof, and 500": (lambda nonce, url: (500, proof(nonce, url)[1]), Seen.FOREIGN),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_only_the_engine_behind_that_address_proves_itself_and_no_key_is_shown(name: str) -> None:
    answer, expected = ANSWERS[name]
    with listening(answer) as (url, headers):
        assert Examiner(KEY, Web(None, None)).ask(url) is expected
    assert headers
    assert not any("authorization" in one or KEY in str(one) for one in headers)


def test_the_guard_answers_what_the_gateway_expects_without_a_key() -> None:
    url = "http://gpu01:8000"
    engine = Recorder()
    application = Guard(engine, None, Settings(user_key=KEY, identity=url))

    def get(query: bytes, method: str = "GET") -> Any:
        async def asked(scope: Any, receive: Any, send: Any) -> None:
            await application({**scope, "query_string": query}, receive, send)

        return ask(asked, method, "/metal/identity")

    assert get(b"nonce=" + b"ab" * 32).json == {
        "proof": Identity(KEY, url).proof("ab" * 32),
        "proofs": [Identity(KEY, url).proof("ab" * 32)],
        "managers": [],
    }
    for query in (b"", b"nonce=", b"nonce=xyz", b"nonce=" + b"A" * 64, b"nonce=" + b"a" * 200, b"\xff",
                  b"nonce=" + b"ab" * 32 + b"&nonce=" + b"cd" * 32):  # fmt: skip
        assert get(query).status == 400
    assert get(b"nonce=" + b"ab" * 32, "POST").status == 401
    assert engine.seen == []
    without = Guard(engine, None, Settings(identity=url))
    assert ask(without, "GET", "/metal/identity").status == 404


def test_nobody_there_is_down_and_an_answer_without_end_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_identity, "LOOK_SECONDS", 2.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections and says nothing
        silent = f"http://127.0.0.1:{mute.getsockname()[1]}"
        began = time.monotonic()
        examiner = Examiner(KEY, Web(None, None))
        assert examiner.ask_all([closed, silent]) == {closed: Seen.DOWN, silent: Seen.SILENT}
        assert time.monotonic() - began < 30  # an end at all; a busy machine takes its time
        assert examiner.ask_all([silent]) == {silent: Seen.SILENT}


def test_a_silent_worker_stays_what_it_was_but_not_for_ever() -> None:
    judge = Judge()
    assert judge.withheld([], {"a": Seen.PROVEN, "b": Seen.DOWN, "c": Seen.FOREIGN}) == {"b", "c"}
    assert judge.withheld(["b"], {"a": Seen.SILENT, "b": Seen.SILENT}) == {"b"}
    assert judge.withheld(["b"], {"a": Seen.SILENT, "b": Seen.PROVEN}) == frozenset()
    assert judge.withheld([], {"a": Seen.SILENT, "b": Seen.PROVEN}) == {"a"}
    assert judge.withheld(["a"], {"a": Seen.PROVEN, "b": Seen.PROVEN}) == frozenset()


def test_what_was_never_asked_is_not_published(tmp_path: Path) -> None:
    key = tmp_path / "api_key"
    key.write_text(KEY)
    workers = [
        {"url": "http://gpu01:8000", "host": "gpu01", "proves": True},
        {"url": "http://gpu02:8000", "host": "gpu02"},
    ]
    path = configure(tmp_path, api_key_file=str(key), workers=workers)
    assert metal(path, "sync", "--no-wait") == 0
    configuration = read_configuration(path)
    assert published(configuration.manifest) == {"http://gpu02:8000"}
    assert read_withheld(configuration) == {"http://gpu01:8000"}
    write_withheld(configuration, [])
    assert metal(path, "sync", "--no-wait") == 0
    assert published(configuration.manifest) == {"http://gpu01:8000", "http://gpu02:8000"}
    # One more worker: it has to prove itself, the others stay.
    workers.append({"url": "http://gpu03:8000", "host": "gpu03", "proves": True})
    path = configure(tmp_path, api_key_file=str(key), workers=workers)
    assert read_withheld(read_configuration(path)) == {"http://gpu03:8000"}
    # Half a file lets nobody in.
    (tmp_path / "state/withheld.json").write_text('{"asked": [')
    assert read_withheld(read_configuration(path)) == {"http://gpu01:8000", "http://gpu03:8000"}


def test_a_look_publishes_who_proved_itself_and_nothing_once_the_configuration_changed(
    tmp_path: Path,
) -> None:
    from minimax_metal.host.gateway.commands import Pool

    key = tmp_path / "api_key"
    key.write_text(KEY)
    with listening(proof) as (url, _), listening(lambda *_: (200, b"{}")) as (other, _):
        workers = [{"url": one, "host": "gpu01", "proves": True} for one in (url, other)]
        path = configure(tmp_path, api_key_file=str(key), workers=workers)
        pool = Pool(read_configuration(path), path)
        assert pool.look() == {other}
        assert published(pool.configuration.manifest) == {url}
        pool.configuration.manifest.unlink()
        configure(tmp_path, api_key_file=str(key), workers=workers[:1])
        pool.look()
        assert not pool.configuration.manifest.exists()


def test_the_post_check_shows_no_key_to_what_is_not_the_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from minimax_metal.cli import main

    key = tmp_path / "api_key"
    key.write_text(KEY)
    with listening(lambda *_: (200, b"{}")) as (url, headers):
        words = ["--model", "m", "--api-key-file", str(key), "--identity", "http://gpu01:8000"]
        assert main(["check", url, *words]) == 2
    assert "is not the engine of http://gpu01:8000" in capsys.readouterr().err
    assert len(headers) == 1
    assert not any(KEY in str(one) for one in headers)


def test_an_engine_is_asked_here_for_the_address_it_is_known_by() -> None:
    with listening(lambda nonce, _: proof(nonce, "http://gpu01:8000")) as (url, _):
        examiner = Examiner(KEY, Web(None, None))
        assert examiner.ask(url, "http://gpu01:8000") is Seen.PROVEN
        assert examiner.ask(url) is Seen.FOREIGN

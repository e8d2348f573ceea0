"""Answers of hubs, mirrors and proxies: ranges by header, refusals by their sender.

Third-party texts are from public reports, named next to each.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimax_metal.common.text import has_controls
from minimax_metal.host.weights import redirects
from minimax_metal.host.weights.answers import RangeError, Refusal, Span, patience, read_json, span_of
from minimax_metal.host.weights.errors import SourceError
from minimax_metal.host.weights.web import DOCUMENT_BYTES, Web
from tests.support.answering import Answer, Asked, answering

CONTENT = bytes(range(256)) * 400
SIZE = len(CONTENT)

# WhatWaf issue 178: what Zscaler sends in the place of a page that it blocks.
ZSCALER = (
    b'<!--# Id: security.html -->\n<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 4.01 Transitional//EN">\n<html>'
    b"<head><title>Internet Security by Zscaler</title></head><body></body></html>"
)


def span(status: int = 206, offset: int = 100, end: int | None = None, **headers: str) -> Span:
    return span_of(
        "hub", status, {key.replace("_", "-"): value for key, value in headers.items()}, offset, end
    )


# modelscope/modelscope_hub issue 50: 200, Content-Length of the slice, a right Content-Range.
@pytest.mark.parametrize("status", [200, 206])
def test_a_range_is_judged_by_its_header_not_by_the_status(status: int) -> None:
    found = span(status, Content_Range="bytes 100-199/4915962496", Content_Length="100")
    assert found == Span(100, 200, 4915962496)
    assert span(status, Content_Range="bytes 50-199/*") == Span(50, 200, None)
    assert span(status, end=150, Content_Range="Bytes 100-199/1000") == Span(100, 200, 1000)


def test_an_answer_without_a_range_is_the_whole_file() -> None:
    assert span(200, Content_Length="5000") == Span(0, 5000, 5000)
    assert span(200) == Span(0, None, None), "chunked: the end says how long it was"


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({}, "without a Content-Range"),
        ({"Content_Range": "bytes */5000"}, "which names no range"),
        ({"Content_Range": "bytes 100-"}, "which names no range"),
        ({"Content_Range": "items 100-199/5000"}, "which names no range"),
        ({"Content_Range": "bytes \u0661\u0660\u0660-199/5000"}, "which names no range"),
        ({"Content_Range": "bytes 199-100/5000"}, "which is impossible"),
        ({"Content_Range": "bytes 100-5000/5000"}, "which is impossible"),
        ({"Content_Range": "bytes 100-199/5000", "Content_Length": "5000"}, "sends 5000 bytes of a file as"),
        ({"Content_Range": "bytes 0-99/5000"}, "bytes from 100 on were requested"),
        ({"Content_Range": "bytes 101-199/5000"}, "bytes from 100 on were requested"),
        ({"Content_Type": "multipart/byteranges; boundary=x"}, "several parts"),
    ],
)
def test_a_part_that_is_not_the_one_asked_for(headers: dict[str, Any], words: str) -> None:
    with pytest.raises(RangeError, match=words):
        span(206, **headers)


@pytest.mark.parametrize("encoding", ["gzip", "br", "x\x1b[31m"])
def test_an_encoded_body_is_refused(encoding: str) -> None:
    with pytest.raises(SourceError, match="was not requested") as caught:
        span(200, Content_Encoding=encoding)
    assert "\x1b" not in str(caught.value)


NAMES = [
    "Content-Range",
    "Content-Length",
    "Content-Type",
    "Content-Encoding",
    "Retry-After",
    "Date",
    "RateLimit",
]
HEADERS = st.dictionaries(
    st.sampled_from(NAMES),
    st.one_of(
        st.text(max_size=30),
        st.from_regex(r"bytes [0-9]{1,20}-[0-9]{1,20}/([0-9]{1,20}|\*)", fullmatch=True),
        st.integers(-5, 10**30).map(str),
        st.sampled_from(["Wed, 21 Oct 99999 07:28:00 GMT", "Sat, 1 Jan 0001 00:00:00 +1400", '"a";t=9999']),
    ),
)


@given(st.sampled_from([200, 206]), HEADERS, st.integers(0, 1 << 50), st.none() | st.integers(1, 1 << 51))
@settings(max_examples=400, deadline=None)
def test_any_headers_are_understood_or_refused(
    status: int, headers: dict[str, str], offset: int, end: int | None
) -> None:
    wait = patience(headers)
    assert wait is None or 0 <= wait <= 7 * 86_400
    found = None
    with contextlib.suppress(SourceError):
        found = span_of("hub", status, headers, offset, end)
    if found is None:
        return
    assert 0 <= found.start <= offset
    assert found.stop is None or found.total is None or found.stop <= found.total


# Who says no ----------------------------------------------------------------------------------------------


def refusal(status: int, body: bytes = b"", elsewhere: bool = False, **headers: str) -> SourceError:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return Refusal("hub", status, named, body, "cdn.example", "main", elsewhere).error()


@pytest.mark.parametrize(
    ("status", "body", "headers", "words", "permanent"),
    [
        # Hugging Face's own word.
        (403, b"", {"X_Error_Code": "GatedRepo"}, "accept its licence", True),
        (401, b'{"error": "Invalid username or password."}', {}, "needs a token", True),
        (403, b'{"error": "Forbidden"}', {"Content_Type": "application/json"}, "it says: Forbidden", True),
        (404, b"", {"X_Error_Code": "RevisionNotFound"}, "has no revision main", True),
        # ModelScope's and Artifactory's forms (devopshq/artifactory issue 46).
        (
            403,
            b'{"Code": 10010202403, "Message": "no right", "Success": false}',
            {},
            "it says: no right",
            True,
        ),
        (403, b'{"errors": [{"status": 403, "message": "no permission"}]}', {}, "says: no permission", True),
        # Something in between: no word of the hub's, and maybe gone in an hour.
        (403, ZSCALER, {"Content_Type": "text/html"}, 'page "Internet Security by Zscaler"', False),
        (403, b"  <html><title>Attention Required! | Cloudflare</title>", {}, "in between", False),
        (401, b"<html><h1>401 Authorization Required</h1>", {"Content_Type": "text/html"}, "login", False),
        (404, b"<html><title>404 Not Found</title></html>", {}, "it is not a model hub", False),
        (403, b"", {}, "may refuse", False),
        (403, b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", {}, "not in a hub's format", False),
        (407, b"", {}, "HTTPS_PROXY", False),
        (511, b"<html>", {}, "captive portal", False),
        (503, ZSCALER, {"Retry_After": "7"}, "answered 503 with an HTML page", False),
        (520, b"", {}, "answered 520", False),
        (418, b"", {}, "answered 418", True),
    ],
)
def test_who_says_no(status: int, body: bytes, headers: dict[str, Any], words: str, permanent: bool) -> None:
    found = refusal(status, body, **headers)
    assert words in str(found)
    assert found.permanent is permanent
    if not permanent:
        assert "licence" not in str(found)


def test_a_signed_address_that_ran_out_is_asked_for_again() -> None:
    assert not refusal(403, b"<?xml?><Error/>", elsewhere=True).permanent


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "120"}, 120),
        ({"Retry-After": "\u00b2"}, None),
        ({"Retry-After": "9" * 30}, None),
        ({"Retry-After": "999999999"}, 7 * 86_400),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "Wed, 21 Oct 99999 07:28:00 GMT"}, None),
        ({"RateLimit": '"api";r=0;t=55'}, 55),
    ],
)
def test_patience_has_a_bound(headers: dict[str, str], seconds: float | None) -> None:
    assert patience(headers) == seconds


@given(st.integers(400, 599), st.binary(max_size=200), HEADERS, st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_refusal_is_one_line(status: int, body: bytes, headers: dict[str, str], elsewhere: bool) -> None:
    found = Refusal("hub", status, headers, body, "x", "main", elsewhere).error()
    assert not has_controls(str(found))


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"size": NaN}',
        b"9" * 10_000,
        b'{"n": 1' + b"0" * 30 + b"}",
        b"\xff",
    ],
)
def test_json_that_is_not_read(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_json(content)


# Over the wire --------------------------------------------------------------------------------------------


def read(url: str, offset: int = 0, end: int | None = None, web: Web | None = None) -> tuple[int, bytes]:
    with (web or Web("hub", stall=5)).open(url, offset=offset, end=end) as body:
        return body.start, b"".join(body.blocks)


def test_slices_with_status_200_are_read(tmp_path: Path) -> None:
    def answer(asked: Asked) -> Answer:
        first, end = asked.span(SIZE) or (0, SIZE)
        return Answer(200, {"Content-Range": f"bytes {first}-{end - 1}/{SIZE}"}, CONTENT[first:end])

    with answering(answer) as server:
        assert read(f"{server.url}/f", 1000) == (1000, CONTENT[1000:])
        assert read(f"{server.url}/f", 1000, 3000) == (1000, CONTENT[1000:3000])


@pytest.mark.parametrize("wrong", ["multipart", "other", "without", "416", "contradicting"])
def test_where_ranges_are_answered_wrongly_the_whole_file_is_read(wrong: str) -> None:
    def answer(asked: Asked) -> Answer:
        if asked.span(SIZE) is None:
            return Answer(200, {}, CONTENT)
        return {
            "multipart": Answer(206, {"Content-Type": "multipart/byteranges; boundary=x"}, b"--x\r\n"),
            "other": Answer(206, {"Content-Range": f"bytes 5000-5999/{SIZE}"}, CONTENT[5000:6000]),
            "without": Answer(206, {}, CONTENT[1000:]),
            "416": Answer(416, {"Content-Range": f"bytes */{SIZE}"}),
            "contradicting": Answer(206, {"Content-Range": f"bytes 1000-1999/{SIZE}"}, CONTENT),
        }[wrong]

    with answering(answer) as server:
        web = Web("hub", stall=5)
        with pytest.raises(RangeError):
            read(f"{server.url}/f", 1000, web=web)
        assert read(f"{server.url}/f", 1000, web=web) == (0, CONTENT)
        assert "range" not in server.asked[-1].headers


def test_a_chunked_body_ends_where_it_ends() -> None:
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (SIZE, CONTENT)
    with answering(lambda _: Answer(200, {"Transfer-Encoding": "chunked"}, body)) as server:
        assert read(f"{server.url}/f") == (0, CONTENT)
    cut = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s" % (SIZE, CONTENT[:100])
    with answering(lambda _: Answer(raw=cut)) as server, pytest.raises(SourceError):
        read(f"{server.url}/f")


def test_more_bytes_than_stated_are_refused() -> None:
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (SIZE, CONTENT)
    headers = {"Transfer-Encoding": "chunked", "Content-Range": f"bytes 0-99/{SIZE}"}
    more = pytest.raises(SourceError, match="more bytes than announced")
    with answering(lambda _: Answer(206, headers, body)) as server, more:
        read(f"{server.url}/f", 0, 100)


@pytest.mark.parametrize(
    ("body", "words", "permanent"),
    [
        (ZSCALER, 'HTML page "Internet Security by Zscaler".*captive portal', False),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><title>Sign in</title>", 'HTML page "Sign in"', False),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git-LFS pointer", True),
    ],
)
def test_something_else_in_the_place_of_a_file(body: bytes, words: str, permanent: bool) -> None:
    page = answering(lambda _: Answer(200, {"Content-Type": "text/html"}, body))
    with page as server, pytest.raises(SourceError, match=words) as caught:
        read(f"{server.url}/model-00001-of-00002.safetensors")
    assert caught.value.permanent is permanent


def test_a_login_page_for_a_description_is_not_final() -> None:
    def answer(asked: Asked) -> Answer:
        if asked.path == "/login":
            return Answer(200, {"Content-Type": "text/html"}, b"<html><title>Log in</title></html>")
        return Answer(302, {"Location": "/login"})

    with (
        answering(answer) as server,
        pytest.raises(SourceError, match=r'page "Log in".*login page') as caught,
    ):
        Web("hub", stall=5).json(f"{server.url}/api/models/a/b")
    assert not caught.value.permanent


def test_a_description_that_a_proxy_compressed_is_read() -> None:
    packed = gzip.compress(b'{"a": 1}')
    with answering(lambda _: Answer(200, {"Content-Encoding": "gzip"}, packed)) as server:
        assert Web("hub", stall=5).json(server.url) == {"a": 1}
    bomb = gzip.compress(b" " * (20 * DOCUMENT_BYTES))
    with answering(lambda _: Answer(200, {"Content-Encoding": "gzip"}, bomb)) as server:
        tracemalloc.start()
        with pytest.raises(SourceError, match="can't be read"):
            Web("hub", stall=5).json(server.url)
        assert tracemalloc.get_traced_memory()[1] < 6 * DOCUMENT_BYTES
        tracemalloc.stop()


@pytest.fixture
def endless() -> Iterator[tuple[str, list[bytes]]]:
    """A server that sends a beginning, then the same piece for ever."""
    listener = socket.create_server(("127.0.0.1", 0))
    pieces: list[bytes] = [b"", b"", b"0"]
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            try:
                made, _ = listener.accept()
            except OSError:
                return
            with made:
                try:
                    made.recv(65_536)
                    made.sendall(pieces[0])
                    while not stop.wait(float(pieces[2])):
                        made.sendall(pieces[1])
                except OSError:
                    continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", pieces
    stop.set()
    listener.close()


def test_an_endless_description_costs_neither_memory_nor_time(endless: tuple[str, list[bytes]]) -> None:
    """Before, 2.5 GB of memory in 25 seconds."""
    url, pieces = endless
    pieces[:2] = [b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n[", b"[]," * 20_000]
    tracemalloc.start()
    with pytest.raises(SourceError, match="more than 8 MiB to a request for a description"):
        Web("hub", stall=5).json(url)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * DOCUMENT_BYTES


def test_headers_that_do_not_end_are_not_waited_for(endless: tuple[str, list[bytes]]) -> None:
    url, pieces = endless
    pieces[:] = [b"HTTP/1.1 200 OK\r\nX: ", b"y", b"0.2"]
    begun = time.monotonic()
    with pytest.raises(SourceError, match=r"timed out|no data"):
        Web("hub", stall=1).json(url)
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize("status", ["200 OK", "403 Forbidden"])
def test_trailers_that_do_not_end_are_not_waited_for(
    status: str, endless: tuple[str, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the HTTP library reads by itself between two blocks has a time limit, too."""
    url, pieces = endless
    beginning = f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n"
    pieces[:] = [beginning.encode(), b"X: y\r\n" * 1000, b"0"]
    monkeypatch.setattr("minimax_metal.host.weights.web.DOCUMENT_SECONDS", 1.0)
    begun = time.monotonic()
    with pytest.raises(SourceError):
        Web("hub", stall=2).json(url)
    assert time.monotonic() - begun < 20


def test_endless_headers_and_interim_answers_end(endless: tuple[str, list[bytes]]) -> None:
    url, pieces = endless
    for beginning, piece in (
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1000),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ):
        pieces[:] = [beginning, piece, b"0"]
        with pytest.raises(SourceError):
            Web("hub", stall=1).json(url)


# Redirects ------------------------------------------------------------------------------------------------


def redirecting(location: str) -> Any:
    return answering(
        lambda asked: Answer(302, {"Location": location}) if asked.path == "/f" else Answer(200, {}, b"x")
    )


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("http://169.254.169.254/latest/meta-data/", "169.254.169.254.*reserved"),
        ("http://[::ffff:169.254.169.254]/", "reserved"),
        ("http://169.254.7.7/", "link-local"),
        ("file:///etc/passwd", "expected a URL with http"),
        ("ftp://127.0.0.1/x", "expected a URL with http"),
        ("http://user:secret@127.0.0.1/x", "with a name or a password"),
        ("http://[::1", "not a URL"),
        ("http://127.0.0.1:x/", "not a URL"),
        ("http://127.0.0.1\\@169.254.169.254/", "not a URL|with a name"),
        ("http://127.0.0.1\\.evil.example/", "not a URL"),
        ("", "redirects more than"),
    ],
)
def test_redirects_that_are_not_followed(location: str, words: str) -> None:
    begun = time.monotonic()
    with redirecting(location or "/f") as server, pytest.raises(SourceError, match=words) as caught:
        read(f"{server.url}/f")
    assert str(caught.value).isprintable()
    assert "secret" not in str(caught.value)
    assert time.monotonic() - begun < 10, "refused before anything is asked there"


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("8.8.8.8", "public"),
        ("2606:4700::1", "public"),
        ("10.1.2.3", "private"),
        ("100.64.1.1", "private"),
        ("fd00::1", "private"),
        ("127.9.9.9", "loopback"),
        ("0.0.0.0", "loopback"),  # noqa: S104  not bound to
        ("::ffff:127.0.0.1", "loopback"),
        ("64:ff9b::7f00:1", "loopback"),
        ("169.254.1.1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("169.254.169.254", "reserved"),
        ("168.63.129.16", "reserved"),
        ("224.0.0.1", "reserved"),
    ],
)
def test_kinds_of_addresses(address: str, kind: str) -> None:
    assert redirects.kind_of(address) == kind


@pytest.mark.parametrize(
    ("home", "allowed"),
    [
        ("public", {"public"}),
        ("private", {"public", "private"}),
        ("loopback", {"public", "private", "loopback"}),
        ("link-local", {"public", "link-local"}),
    ],
)
def test_where_a_source_may_send(home: str, allowed: set[str]) -> None:
    kinds = {"public", "private", "loopback", "link-local", "reserved"}
    assert {kind for kind in kinds if redirects.may_go({home}, kind)} == allowed


def test_a_name_is_judged_by_the_address_that_was_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attacker's name points inside the network; only the connection shows it, before a byte is sent."""
    with answering(lambda _: Answer(200, {}, b"inside")) as inside:
        port = int(inside.url.rpartition(":")[2])

        def resolved(host: str, *_: object, **__: object) -> list[Any]:
            where = port if host == "inside.example" else int(server.url.rpartition(":")[2])
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", where))]

        with redirecting(f"http://inside.example:{port}/x") as server:
            web = Web("hub", stall=5)
            # As if the source had been reached on the internet.
            monkeypatch.setattr(web, "_first", lambda _address: web.home.add("public"))
            monkeypatch.setattr(socket, "getaddrinfo", resolved)
            with pytest.raises(SourceError, match=r"inside.example \(127.0.0.1\), a loopback address"):
                read(f"http://hub.example:{server.url.rpartition(':')[2]}/f", web=web)
        assert inside.asked == []


def test_the_body_of_a_redirect_is_not_read_for_ever(endless: tuple[str, list[bytes]]) -> None:
    url, pieces = endless
    pieces[:2] = [b"HTTP/1.1 302 Found\r\nLocation: file:///x\r\n\r\n", b"x" * 60_000]
    with pytest.raises(SourceError, match="expected a URL with http"):
        Web("hub", stall=2).json(url)


def test_https_to_http_is_refused() -> None:
    with pytest.raises(SourceError, match="from https to http") as caught:
        redirects.following("hub", "https://huggingface.co/x", "http://cdn.example/x?signature=secret")
    assert caught.value.permanent
    assert "secret" not in str(caught.value)
    assert redirects.following("hub", "http://a/x", "https://b/y") == "https://b/y"
    assert redirects.following("hub", "https://a/x", "//b/y") == "https://b/y"


def test_neither_token_nor_netrc_goes_to_another_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(
        "machine 127.0.0.1 login me password canary\nmachine localhost login me password canary\n"
    )
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with answering(lambda _: Answer(200, {}, b"x")) as other:
        for location in (other.url, other.url.replace("127.0.0.1", "localhost")):
            for token in (None, "canary-token"):
                with redirecting(f"{location}/x") as server:
                    read(f"{server.url}/f", web=Web("hub", token=token, stall=5))
                    wanted = None if token is None else f"Bearer {token}"
                    assert server.asked[0].headers.get("authorization") == wanted
        assert len(other.asked) == 4
        assert all("authorization" not in asked.headers for asked in other.asked)
        assert all("cookie" not in asked.headers for asked in other.asked)


def test_a_token_is_not_sent_in_clear_over_the_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolved(*_: object, **__: object) -> list[Any]:
        return [(2, 1, 6, "", ("93.184.216.34", 80))]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    with pytest.raises(SourceError, match=r"the token is not sent to hub\.example over http"):
        read("http://hub.example/f", web=Web("hub", token="canary", stall=2))


def test_what_a_hub_says_does_not_reach_a_terminal_as_it_is() -> None:
    body = json.dumps({"error": "\x1b]0;owned\x07\x9b31mred\u202egnp\r\nsecond line"}).encode()
    hub = answering(lambda _: Answer(400, {"X-Error-Code": "\x9b31m"}, body))
    with hub as server, pytest.raises(SourceError) as caught:
        Web("hub", stall=5).json(server.url)
    assert str(caught.value).isprintable()


def test_a_policy_of_a_repository_manager_is_not_a_licence() -> None:
    # JFrog Curation's words (jfrog-cli docs, "curation-audit"): it was called a gated model
    body = (
        b'{"errors":[{"status":403,"message":"Package was blocked by JFrog Packages Curation service due to '
        b'the following policies violated"}]}'
    )
    said = str(Refusal("m", 403, {"Content-Type": "application/json"}, body, "hub.example.net").error())
    assert "its own policy" in said
    assert "licence" not in said

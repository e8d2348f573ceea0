"""What the engine would open for a client, and how much of it the guard allows."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minimax_metal.host.engine_plugin.minimax_metal_engine import Guard, Settings
from minimax_metal.host.engine_plugin.minimax_metal_engine.errors import Refused
from minimax_metal.host.engine_plugin.minimax_metal_engine.fetch import (
    LOOKUPS_AT_ONCE,
    Fetcher,
    is_public,
    taken_apart,
)
from minimax_metal.host.engine_plugin.minimax_metal_engine.images import ImageError, pixels
from minimax_metal.host.engine_plugin.minimax_metal_engine.media import DESCRIBES, KINDS, OPAQUE, Check
from tests.support.asgi_client import Answer, Recorder, ask


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


FILM = b"\x00\x00\x00\x18ftypisom" + b"\x00" * 12
SOUND = b"RIFF\x24\x00\x00\x00WAVEfmt "
SMALL = f"data:image/png;base64,{b64(png(2, 2))}"


def chat(part: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "see http://a/x.png"}, part]}]}


def source(value: Any) -> Any:
    return {"type": "image", "source": value}


SHAPES: dict[str, tuple[str, Any]] = {
    "chat": ("/v1/chat/completions", lambda u: chat({"type": "image_url", "image_url": {"url": u}})),
    "chat, bare": ("/v1/chat/completions", lambda u: chat({"type": "input_image", "image_url": u})),
    "chat, video": ("/v1/chat/completions", lambda u: chat({"type": "video_url", "video_url": {"url": u}})),
    "chat, audio": ("/v1/chat/completions", lambda u: chat({"type": "audio_url", "audio_url": {"url": u}})),
    "chat, of another library": ("/v1/chat/completions", lambda u: chat({"type": "image", "url": u})),
    "chat, a tool's answer": (
        "/v1/chat/completions",
        lambda u: {"messages": [{"role": "tool", "content": [{"type": "image_url", "image_url": u}]}]},
    ),
    "invocations": ("/invocations", lambda u: chat({"type": "image_url", "image_url": {"url": u}})),
    "messages": ("/v1/messages", lambda u: chat(source({"type": "url", "url": u}))),
    "messages, no type": ("/v1/messages", lambda u: chat(source({"url": u}))),
    "messages, counted": ("/v1/messages/count_tokens", lambda u: chat(source({"type": "url", "url": u}))),
    "messages, a tool's answer": (
        "/v1/messages",
        lambda u: chat({"type": "tool_result", "content": [source({"type": "url", "url": u})]}),
    ),
    "messages, system": ("/v1/messages", lambda u: {"system": [source({"type": "url", "url": u})]}),
    "messages, a document": (
        "/v1/messages", lambda u: chat({"type": "document", "source": {"type": "url", "url": u}})
    ),
    "responses": (
        "/v1/responses",
        lambda u: {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": u}]}]},
    ),
    "responses, a file": (
        "/v1/responses",
        lambda u: {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": u}]}]},
    ),
    "responses, a computer's screen": (
        "/v1/responses",
        lambda u: {"input": [{"type": "computer_call_output", "output": {"image_url": u}}]},
    ),
    "responses, a call's answer": (
        "/v1/responses",
        lambda u: {"input": [{"type": "function_call_output", "output": [{"image_url": u}]}]},
    ),
    "generate": ("/generate", lambda u: {"text": "x", "image_data": u}),
    "generate, a list": ("/generate", lambda u: {"text": "x", "image_data": [[SMALL], [u]]}),
    "generate, a dictionary": ("/generate", lambda u: {"image_data": [{"url": u, "detail": "low"}]}),
    "generate, another key": ("/generate", lambda u: {"text": "x", "image_data": {"image": u}}),
    "generate, video": ("/generate", lambda u: {"text": "x", "video_data": [u]}),
    "generate, audio": ("/generate", lambda u: {"text": "x", "audio_data": u}),
    "encode": ("/encode", lambda u: {"text": "x", "image_data": u}),
    "classify": ("/classify", lambda u: {"text": "x", "image_data": u}),
    "vertex": ("/vertex_generate", lambda u: {"instances": [{"text": "x", "image_data": u}]}),
    "vertex, parameters": (
        "/vertex_generate", lambda u: {"instances": [{"text": "x"}], "parameters": {"video_data": u}}
    ),
    "embeddings, as if a tool was called": (
        "/v1/embeddings", lambda u: {"type": "tool_use", "input": [{"text": "x", "image": u}]}
    ),
    "responses, as if a tool was called": (
        "/v1/responses",
        lambda u: {"type": "tool_use", "input": [{"role": "user", "content": [
            {"type": "input_image", "image_url": u}]}]},
    ),
    "responses, an item that says so": (
        "/v1/responses",
        lambda u: {"input": [{"type": "server_tool_use", "role": "user", "content": [
            {"type": "input_image", "image_url": u}]}]},
    ),
    "embeddings": ("/v1/embeddings", lambda u: {"input": [{"text": "x", "image": u}]}),
    "rerank": (
        "/v1/rerank",
        lambda u: {"query": "x", "documents": [[{"type": "image_url", "image_url": {"url": u}}]]},
    ),
    "score": ("/v1/score", lambda u: {"query": [{"type": "video_url", "video_url": {"url": u}}]}),
    "decisions": ("/v1/decisions", lambda u: {"images": [u]}),
    "systemone": ("/v1/systemone", lambda u: {"images": [{"url": u}]}),
    "ollama": ("/api/chat", lambda u: {"messages": [{"role": "user", "content": "x", "images": [u]}]}),
    "ollama, generate": ("/api/generate", lambda u: {"prompt": "x", "images": [u]}),
}  # fmt: skip
FILMED = {name for name in SHAPES if "video" in name or "audio" in name} | {"vertex, parameters", "score"}
EVIL = [
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "/etc/passwd",
    "etc/shadow",
    "../../secrets/api_key.png",
    "~/x.png",
    "http://169.254.169.254/latest/meta-data/",
    "http://metadata.google.internal/x.png",
    "https://intranet/x.png",
    "http://[::1]:8000/x.png",
    "ftp://a.example/x.png",
    " data:image/png;base64,AAAA",
    "DATA:image/png;base64,AAAA",
    "\tfile:///etc/passwd",
    "video:/etc/passwd",
    b64(png(2, 2)),
    "//a.example/x.png",
]


def sent(path: str, body: Any, settings: Settings | None = None) -> tuple[Answer, Recorder]:
    engine = Recorder()
    application = Guard(engine, None, settings or Settings())
    return ask(application, "POST", path, body), engine


@pytest.mark.parametrize("name", SHAPES)
def test_media_passes_as_data_and_in_no_other_way(name: str) -> None:
    path, shape = SHAPES[name]
    data = SMALL if name not in FILMED else f"data:video/mp4;base64,{b64(FILM)}"
    answer, engine = sent(path, shape(data))
    assert (answer.status, len(engine.seen)) == (200, 1), answer
    for text in EVIL:
        answer, engine = sent(path, shape(text))
        assert (answer.status, engine.seen) == (400, []), text
        assert "metal_allowed_media_domains" in answer.body.decode()
    error = (
        answer.json["error"] if path.startswith(("/v1/messages", "/v1/responses", "/api/")) else answer.json
    )
    assert error


HARMLESS = [
    # A tool whose argument is called as media is, a schema of one, a call of it, words about it.
    chat({"type": "text", "text": "file:///etc/passwd"})
    | {
        "tools": [
            {"type": "function", "function": {"name": "look", "parameters": {"properties": {
                "image_url": {"type": "string", "description": "where the image is", "examples": ["file:///x"]}}}}},
        ],
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"properties": {"image": {
            "type": "string", "description": "a path"}}}}},
    },
    {"messages": [{"role": "assistant", "content": None, "audio": {"id": "audio_abc"}, "tool_calls": [
        {"function": {"name": "look", "arguments": '{"image_url": "file:///x"}'}}]}],
     "audio": {"voice": "alloy", "format": "wav"}, "metadata": {"image_url": "my own note"}},
    chat({"type": "tool_use", "name": "look", "input": {"image_url": "https://a.example/x.png"}}),
    chat({"type": "search_result", "source": "https://docs.example/page", "title": "x", "content": []}),
    chat({"type": "search_result", "source": {"url": "https://docs.example/page"}, "content": []}),
    chat({"type": "document", "source": {"type": "text", "data": "see /etc/passwd"}}),
    chat({"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "words"}]}}),
    chat(source({"type": "base64", "media_type": "image/png", "data": b64(png(2, 2))})),
    chat({"type": "image_url", "image_url": {"url": SMALL, "detail": "high", "content_hash": "ab"}}),
    chat({"type": "input_audio", "input_audio": {"data": b64(SOUND), "format": "wav"}}),
]  # fmt: skip


@pytest.mark.parametrize("body", HARMLESS)
def test_what_is_never_opened_is_left_alone(body: Any) -> None:
    answer, engine = sent("/v1/chat/completions", body)
    assert answer.status == 200, answer
    assert json.loads(engine.bodies[0]) == body


def test_a_request_that_is_nested_without_end_is_refused() -> None:
    body: Any = {"url": "file:///x"}
    for _ in range(400):
        body = {"content": [body]}
    answer, engine = sent("/v1/chat/completions", body)
    assert (answer.status, engine.seen) == (400, [])


def test_a_request_of_millions_of_parts_is_refused_before_it_is_walked() -> None:
    began = time.process_time()
    with pytest.raises(Refused, match="lists and objects"):
        Check(frozenset(), 10**6).remote({"messages": [{}] * 20_000_000})
    assert time.process_time() - began < 10


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://169.254.169.254/a.ts\n"
SESSION = b"v=0\no=- 0 0 IN IP4 10.0.0.1\ns=x\nc=IN IP4 10.0.0.1\nm=video 9 RTP/AVP 96\n"
LISTS = {  # what FFmpeg opens more for (libavformat: hls.c, dashdec.c, concatdec.c, sdp in rtsp.c)
    "hls": PLAYLIST,
    "dash": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011">',
    "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "sdp": SESSION,
    "hls behind a tag": b"ID3\x04\x00\x00\x00\x00\x00\x00" + PLAYLIST,
    "hls behind many tags": b"ID3\x04\x00\x00\x00\x00\x00\x00" * 500_000 + PLAYLIST,
    "sdp behind a frame": b"\xff\xfb\x90\x00\n" + SESSION,
    "sdp in packets": b"G" + b"\n" * 187 + b"G" + b"\n" * 187 + b"G" + SESSION,
    "nothing": b"",
    "text": b"just words",
}


@pytest.mark.parametrize("name", LISTS)
def test_a_video_or_a_sound_is_no_list_of_addresses(name: str) -> None:
    text = b64(LISTS[name])
    for part in (
        {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{text}"}},
        {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{text}"}},
        {"type": "input_audio", "input_audio": {"data": text or "!", "format": "wav"}},
    ):
        answer, engine = sent("/v1/chat/completions", chat(part))
        assert (answer.status, engine.seen) == (400, []), part["type"]


SOUNDS = {
    "wav": SOUND,
    "mp3": b"\xff\xfb\x90\x64" + b"\x00" * 20,
    "mp3 behind a tag": b"ID3\x04\x00\x00\x00\x00\x00\x05abcde\xff\xfb\x90\x64",
    "aac": b"\xff\xf1\x50\x80" + b"\x00" * 20,
    "flac": b"fLaC\x00",
    "ogg": b"OggS\x00",
    "mp4": FILM,
}
FILMS = {
    "mp4": FILM,
    "webm": b"\x1aE\xdf\xa3\x01",
    "avi": b"RIFF\x00\x00\x00\x00AVI LIST",
    "ts": (b"G" + b"\x00" * 187) * 4,
    "ps": b"\x00\x00\x01\xba\x44",
}


def test_videos_and_sounds_pass() -> None:
    for kind, known in (("video", FILMS), ("audio", SOUNDS)):
        for name, data in known.items():
            part = {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:{kind}/x;base64,{b64(data)}"}}
            assert sent("/v1/chat/completions", chat(part))[0].status == 200, (kind, name)


def jpeg(*sizes: tuple[int, int]) -> bytes:
    frames = b"".join(
        b"\xff\xc0" + struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\x01\x11\x00"
        for width, height in sizes
    )
    return b"\xff\xd8\xff\xe0\x00\x04ab" + frames + b"\xff\xda\x00\x02"


def gif(width: int, height: int, frame: tuple[int, int]) -> bytes:
    extension = b"\x21\xf9\x04\x00\x00\x00\x00\x00"
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\x00" * 6
    return b"GIF89a" + screen + extension + b"\x2c" + struct.pack("<HHHHB", 0, 0, *frame, 0)


def webp(kind: bytes, rest: bytes) -> bytes:
    return b"RIFF\x00\x00\x00\x00WEBP" + kind + b"\x00\x00\x00\x00" + rest


IMAGES = {
    "png": (png(30_000, 20_000), 600_000_000),
    "jpeg": (jpeg((30_000, 20_000)), 600_000_000),
    "jpeg, two frames": (jpeg((30_000, 20_000), (1, 1)), 600_000_000),
    "gif": (gif(10, 10, (10, 10)), 100),
    "gif, a frame beyond the screen": (gif(1, 1, (60_000, 10_000)), 600_000_000),
    "webp": (webp(b"VP8X", b"\x00" * 4 + b"\x2f\x75\x00" + b"\x1f\x4e\x00"), 600_000_000),
    "webp, lossless": (webp(b"VP8L", b"\x2f" + (9_999 | 9_999 << 14).to_bytes(4, "little")), 100_000_000),
    "webp, lossy": (webp(b"VP8 ", b"\x00" * 6 + struct.pack("<HH", 9_000, 10_000)), 90_000_000),
    "bmp": (b"BM" + b"\x00" * 12 + struct.pack("<Iii", 40, 20_000, -30_000), 600_000_000),
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_the_size_of_an_image_is_read_off_its_header(name: str) -> None:
    data, expected = IMAGES[name]
    assert pixels(data) == expected
    for cut in range(len(data)):  # cut anywhere: a size or an error of ours
        try:
            pixels(data[:cut])
        except ImageError:
            continue
    body = chat({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64(data)}"}})
    answer, _ = sent("/v1/chat/completions", body, Settings(max_image_pixels=80_000_000))
    assert answer.status == (200 if expected < 80_000_000 else 400), answer


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8" + b"\xff" * 20_000_000,
        b"\xff\xd8" + b"\xff\xd0" * 10_000_000,
        b"\xff\xd8" + b"\xff\xe0\x00\x02" * 5_000_000,
        b"GIF89a\x01\x00\x01\x00\x00\x00\x00\x21\xf9" + b"\x01\x01" * 10_000_000,
        b"GIF89a\x01\x00\x01\x00\x00\x00\x00" + b"\x21\xf9\x00" * 5_000_000,
    ],
    ids=["padding", "marks", "empty parts", "blocks", "extensions"],
)
def test_a_header_without_end_takes_no_time(data: bytes) -> None:
    began = time.process_time()
    with pytest.raises(ImageError):
        pixels(data)
    assert time.process_time() - began < 0.5


def test_a_request_with_thousands_of_images_is_refused() -> None:
    check = Check(frozenset(), 10**9)
    with pytest.raises(Refused, match="more than 1000 images"):
        check.remote({"image_data": [SMALL] * 2000})


def test_images_count_together_and_what_is_no_image_is_refused() -> None:
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64(png(1000, 1000))}"}}
    body = chat(part)
    body["messages"][0]["content"] += [part] * 4
    settings = Settings(max_image_pixels=4_999_999)
    assert sent("/v1/chat/completions", body, settings)[0].status == 400
    assert sent("/v1/chat/completions", body, Settings(max_image_pixels=5_000_000))[0].status == 200
    for data in (b"%!PS-Adobe-3.0 EPSF-3.0", b"II*\x00", b"<svg/>", b""):
        for inner in (
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64(data)}"}},
            source({"type": "base64", "media_type": "image/png", "data": b64(data) or "!"}),
        ):
            answer, engine = sent("/v1/messages", chat(inner))
            assert (answer.status, engine.seen) == (400, [])
            assert answer.json["error"]["type"] == "invalid_request_error"


ADDRESSES = {
    "93.184.215.14": True,
    "2606:2800:21f:cb07:6820:80da:af6b:8b2c": True,
    "127.0.0.1": False,
    "0.0.0.0": False,  # noqa: S104
    "10.1.2.3": False,
    "172.16.0.1": False,
    "192.168.1.1": False,
    "100.64.0.1": False,
    "100.100.100.200": False,
    "169.254.169.254": False,
    "168.63.129.16": False,
    "192.0.0.192": False,
    "224.0.0.1": False,
    "240.0.0.1": False,
    "::1": False,
    "::": False,
    "fe80::1": False,
    "fe80::1%eth0": False,
    "fc00::1": False,
    "fd00:ec2::254": False,
    "::ffff:127.0.0.1": False,
    "::ffff:169.254.169.254": False,
    "::ffff:93.184.215.14": True,
    "::127.0.0.1": False,
    "64:ff9b::a9fe:a9fe": False,
    "2002:a9fe:a9fe::1": False,
    "2002:7f00:1::": False,
    "nonsense": False,
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_only_the_internets_addresses_are_public(address: str) -> None:
    assert is_public(address) == ADDRESSES[address]


class Site(BaseHTTPRequestHandler):
    """A public site, or an attacker's replacement."""

    def do_GET(self) -> None:
        path = self.path
        if path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", path[4:])
            self.end_headers()
            return
        if path == "/headers":  # never done with its headers
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            for _ in range(100):
                time.sleep(0.05)
                self.wfile.write(b"X-More: 1\r\n")
            return
        self.send_response(404 if path == "/none" else 200)
        self.send_header("Content-Type", "text/html" if path == "/page" else "image/png; charset=x")
        if path == "/short":
            self.send_header("Content-Length", "500")
        self.end_headers()
        while path in {"/endless", "/drip"}:
            self.wfile.write(b"x" * (65536 if path == "/endless" else 1))
            time.sleep(0 if path == "/endless" else 0.05)
        self.wfile.write(png(2, 2))

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that leaves is what is tested
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def fetcher(
    port: int, answers: dict[str, list[str]] | None = None, **options: Any
) -> tuple[Fetcher, list[str]]:
    """A fetcher whose names resolve as the test decides, and whose public addresses are the site."""
    asked: list[str] = []
    known = answers or {"pics.example": ["93.184.215.14"], "cdn.example": ["93.184.215.15"]}

    def resolve(host: str, _port: int) -> list[str]:
        return known[host]

    def connect(address: str, _port: int, seconds: float) -> socket.socket:
        asked.append(address)
        return socket.create_connection(("127.0.0.1", port), seconds)

    chosen = {"most_bytes": 10**6, "seconds": 1.0} | options
    return Fetcher(frozenset(known), resolve=resolve, connect=connect, **chosen), asked


def test_media_of_an_allowed_domain_is_fetched_from_the_address_that_was_judged(site: int) -> None:
    one, asked = fetcher(site)
    assert one.fetch("http://pics.example/a.png") == ("image/png", png(2, 2))
    assert one.fetch("http://PICS.example:80/to?http://cdn.example/b.png")[0] == "image/png"
    assert one.fetch("http://pics.example/to?/b.png")[0] == "image/png"
    assert asked == ["93.184.215.14"] * 2 + ["93.184.215.15"] + ["93.184.215.14"] * 2


@pytest.mark.parametrize(
    "url",
    [
        "http://pics.example/to?http://169.254.169.254/latest",
        "http://pics.example/to?http://other.example/x.png",
        "http://pics.example/to?file:///etc/passwd",
        "http://pics.example/to?//127.0.0.1/x",
        "http://pics.example/to?/to?/to?/to?/x",
        "http://pics.example/to?",
        "http://pics.example:8000/x",
        "http://pics.example/page",
        "http://pics.example/none",
        "http://pics.example/short",
        "http://pics.example/endless",
        "http://pics.example/drip",
        "http://pics.example/headers",
        "http://user@pics.example/x",
        "http://pics.example@127.0.0.1/x",
        "http://pics.example\\@127.0.0.1/x",
        "http://pics.example#@127.0.0.1/x",
        "http://pics.example%2f@127.0.0.1/x",
        "http://pics.example /x",
        "http://pics.example/x\r\nHost: y",
        "http://p\u0131cs.example/x",
        "http://sub.pics.example/x",
        "http://93.184.215.14/x",
        "http://0x7f000001/x",
    ],
)
def test_a_fetch_that_leads_elsewhere_or_never_ends_is_refused(site: int, url: str) -> None:
    one, _ = fetcher(site, seconds=0.5)
    began = time.monotonic()
    with pytest.raises(Refused) as refused:
        one.fetch(url)
    assert refused.value.status == 400
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("address", [address for address, public in ADDRESSES.items() if not public])
def test_an_allowed_name_that_leads_inside_is_refused_with_all_its_addresses(site: int, address: str) -> None:
    for found in ([address], ["93.184.215.14", address], []):
        one, asked = fetcher(site, {"pics.example": found})
        with pytest.raises(Refused, match="not public"):
            one.fetch("http://pics.example/a.png")
        assert asked == []


def test_a_resolver_that_hangs_holds_nobody_up_and_takes_no_threads_without_end(site: int) -> None:
    over = threading.Event()
    asked: list[str] = []

    def hanging(host: str, _port: int) -> list[str]:
        asked.append(host)
        over.wait(30)
        return ["93.184.215.14"]

    one, connected = fetcher(site, seconds=0.1)
    one.resolve = hanging
    try:
        for _ in range(LOOKUPS_AT_ONCE + 3):
            began = time.monotonic()
            with pytest.raises(Refused, match=r"pics\.example did not arrive within 0\.1 s"):
                one.fetch("http://pics.example/a.png")
            assert time.monotonic() - began < 2
        assert len(asked) == LOOKUPS_AT_ONCE
        assert connected == []
    finally:
        over.set()
    # The places are free again when the resolver answers at last.
    other, _ = fetcher(site, seconds=5.0)
    for _ in range(LOOKUPS_AT_ONCE + 3):
        assert other.fetch("http://pics.example/a.png")[0] == "image/png"


def test_a_name_that_nobody_knows_is_refused_and_gives_its_place_back(site: int) -> None:
    def unknown(host: str, _port: int) -> list[str]:
        raise (
            UnicodeError("label too long") if host == "cdn.example" else socket.gaierror(-2, "Name not known")
        )

    one, _ = fetcher(site)
    one.resolve = unknown
    for _ in range(LOOKUPS_AT_ONCE + 3):
        for host, words in (("pics.example", "gaierror"), ("cdn.example", "UnicodeError")):
            with pytest.raises(Refused, match=f"{host} can't be fetched: {words}"):
                one.fetch(f"http://{host}/a.png")


def test_the_engine_gets_the_bytes_and_never_the_address(site: int) -> None:
    engine = Recorder()
    application = Guard(engine, None, Settings(media_domains=frozenset({"pics.example", "cdn.example"})))
    application.fetcher, _ = fetcher(site)
    body = chat({"type": "image_url", "image_url": {"url": "http://pics.example/a.png"}})
    answer = ask(application, "POST", "/v1/chat/completions", body)
    assert answer.status == 200, answer
    got = json.loads(engine.bodies[0])
    assert got == chat({"type": "image_url", "image_url": {"url": SMALL}})
    assert engine.headers[0]["content-length"] == str(len(engine.bodies[0]))
    for text in ("file:///etc/passwd", "http://other.example/x.png", "https://169.254.169.254/"):
        body = chat({"type": "image_url", "image_url": {"url": text}})
        assert ask(application, "POST", "/v1/chat/completions", body).status == 400
    assert len(engine.seen) == 1


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
NAMES = st.sampled_from(
    [*KINDS, *DESCRIBES, *OPAQUE, "source", "url", "path", "type", "content", "data", "input", "text"]
)
JSON = st.recursive(
    SCALARS | st.sampled_from(["image", "tool_use", "document", "search_result", "data:,", "/etc/passwd"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=25,
)


@given(JSON)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_body_is_let_through_or_refused_and_nothing_else(body: Any) -> None:
    wanted: list[Any] = []
    with contextlib.suppress(Refused):
        wanted = Check(frozenset({"a.example"}), 10**6).remote(body)
    assert all(item.text.startswith(("http://", "https://")) for item in wanted)


@given(
    st.binary(max_size=200),
    st.sampled_from([data[:size] for data, _ in IMAGES.values() for size in (2, 12, 30)]),
)
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes_have_a_size_or_are_no_image(rest: bytes, head: bytes) -> None:
    with contextlib.suppress(ImageError):
        assert pixels(head + rest) > 0


@given(
    st.text(max_size=40),
    st.sampled_from(["", "http://", "https://", "http://a.example", "http://a.example:80/"]),
)
@settings(max_examples=500, deadline=None)
def test_any_url_is_one_of_an_allowed_domain_or_refused(rest: str, head: str) -> None:
    try:
        _, host, port, target = taken_apart(head + rest, frozenset({"a.example"}))
    except Refused:
        return
    assert (host, port in {80, 443}, target[:1]) == ("a.example", True, "/")
    assert not set(target) & set(" \\\r\n\t#")

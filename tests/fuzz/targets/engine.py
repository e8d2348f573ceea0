"""Readers of what clients send: the guard inside the engine."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import MutableMapping
from dataclasses import replace
from typing import Any, Final

from minimax_metal.host.engine_plugin.minimax_metal_engine import fetch, images, media, routes, settings
from minimax_metal.host.engine_plugin.minimax_metal_engine.errors import Refused
from minimax_metal.host.engine_plugin.minimax_metal_engine.guard import Guard
from minimax_metal.host.engine_plugin.minimax_metal_engine.keys import carries, given_keys
from tests.fuzz.target import Form, Target, of_json, of_text

PNG: Final = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + struct.pack(">II", 4, 4) + b"\x08\x06\x00\x00\x00"
GIF: Final = (
    b"GIF89a" + struct.pack("<HH", 4, 4) + b"\x80\x00\x00" + bytes(6) + b"!\xf9\x04\x00\x00\x00\x00\x00,"
)
JPEG: Final = b"\xff\xd8\xff\xe0\x00\x04ab\xff\xc0\x00\x0b\x08\x00\x04\x00\x04\x01\x01\x11\x00\xff\xda"
WEBP: Final = b"RIFF\x00\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x03\x00\x00"
BMP: Final = b"BM" + bytes(12) + struct.pack("<Iii", 40, 4, 4)
CHAT: Final = json.dumps(
    {"model": "m", "messages": [{"role": "user", "content": [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(PNG).decode()}},
        {"type": "input_audio", "input_audio": {"data": "aa", "format": "wav"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PNG).decode()}},
    ]}], "tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "object"}}}]}
).encode()  # fmt: skip
SETTINGS: Final = replace(
    settings.read_settings({"METAL_MEDIA_DOMAINS": "a.example"}, ["--served-model-name", "m"]), user_key="k"
)


async def _engine(_scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


def _asked(scope: MutableMapping[str, Any], bodies: list[bytes]) -> list[MutableMapping[str, Any]]:
    """The guard's answer to one request."""
    sent: list[MutableMapping[str, Any]] = []
    left = list(bodies)

    async def receive() -> dict[str, Any]:
        if scope["type"] == "websocket":
            return {"type": "websocket.connect"}
        if not left:
            return {"type": "http.disconnect"}
        body = left.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    guard = Guard(_engine, None, SETTINGS)
    guard.fetch = lambda *_: None  # type: ignore[method-assign]  # nothing leaves this machine
    asyncio.run(guard(scope, receive, send))
    return sent


def _scope(
    path: str, headers: list[tuple[bytes, bytes]], kind: str = "http", method: str = "POST"
) -> dict[str, Any]:
    return {"type": kind, "method": method, "path": path, "raw_path": path.encode("utf-8", "replace"),
            "query_string": b"", "headers": headers, "root_path": "", "scheme": "http"}  # fmt: skip


KEY: Final = (b"authorization", b"Bearer k")


def _body(content: bytes) -> object:
    for path in ("/v1/chat/completions", "/v1/messages", "/generate", "/vertex_generate", "/api/chat"):
        sent = _asked(_scope(path, [KEY]), [content[:1000], content[1000:]])
        if not sent:
            raise AssertionError("no answer")
    return None


def _path(text: str) -> object:
    routes.access_to(text)
    for kind, method in (
        ("http", "GET"),
        ("http", "POST"),
        ("http", "OPTIONS"),
        ("http", text[:20]),
        ("websocket", "GET"),
    ):
        _asked(_scope(text, [KEY], kind, method), [b"{}"])
    return None


def _headers(content: bytes) -> object:
    headers = [
        (name.strip(), value.strip())
        for name, _, value in (line.partition(b":") for line in content.splitlines())
    ]
    given_keys(headers)
    carries(headers, "k")
    _asked(_scope("/v1/chat/completions", headers), [CHAT])
    _asked(_scope("/metal/identity", headers, method="GET") | {"query_string": content}, [b""])
    return None


def _media(value: Any) -> object:
    check = media.Check(frozenset({"a.example"}), 10**6)
    return [item.text[:10] for item in check.remote(value)] and None


def _image(content: bytes) -> object:
    return images.pixels(content)


def _url(text: str) -> object:
    fetch.is_public(text)
    return fetch.taken_apart(text, frozenset({"a.example"}))


TARGETS: Final = (
    Target("guard-body", _body, (CHAT,), Form.JSON, ()),
    Target("guard-body-bytes", _body, (CHAT,), Form.BYTES, ()),
    Target("guard-path", of_text(_path), (
        b"/v1/chat/completions", b"/v1/responses/abc/cancel", b"/server_info", b"/generate", b"/v1/realtime",
    ), expects=()),
    Target("guard-headers", _headers, (
        b"Authorization: Bearer k\nContent-Length: 12\nx-api-key: k\nContent-Type: application/json\n",
        b"nonce=" + b"a" * 64,
    ), Form.BYTES, ()),
    Target("guard-media", of_json(_media), (CHAT,), Form.JSON, (Refused,)),
    Target("guard-images", _image, (PNG, GIF, JPEG, WEBP, BMP), Form.BYTES, (images.ImageError,)),
    Target("guard-urls", of_text(_url), (
        b"https://a.example/a.png", b"http://[::ffff:10.0.0.1]:80/x", b"169.254.169.254", b"https://u@a.example:99999/",
    ), expects=(Refused,)),
)  # fmt: skip

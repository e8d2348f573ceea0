"""Ways to fail that hubs, mirrors and the lines to them have, switched while the hub runs.

A file of JSON, read anew whenever it changes::

    [{"match": "model-0001", "fault": "cut", "after": 1000000, "times": 1}, ...]

The first rule that matches a request acts on it. ``match`` is a regular expression searched in path and query
(default: everything), ``method`` the only method it is for (default GET), ``times`` how many requests it acts
on (default: all). By ``fault``:

==================  =================================================================================
``page``            answers ``status`` with a page of HTML, as what stands in between does: 403 of a WAF
                    (Zscaler, Ekultek/WhatWaf issue 178), 200 of a captive portal
``login``           redirects to a page of HTML with 200, as a single sign-on does
``pointer``         serves a git-LFS pointer in the place of the file (git-lfs docs/spec.md)
``empty``           answers 200 without a byte
``no-part``         answers a range with 206 and no Content-Range
``other-part``      answers a range with another one than was asked for
``multipart``       answers a range as multipart/byteranges (RFC 9110, section 14.6)
``busy``            answers ``status`` (429, 503, ...), with ``Retry-After: <retry_after>`` where given
``cut``             ends the connection after ``after`` bytes of the answer's body
``stall``           sends nothing more after ``after`` bytes, and keeps the connection
``throttle``        sends ``rate`` bytes a second
``corrupt``         changes the byte at offset ``after`` of the file
``truncate``        serves the file as if it had ``after`` bytes
``ignore-ranges``   answers 200 and the whole file, whatever range was asked for
==================  =================================================================================

``rate`` may stand beside any of them. What a rule did is in the access log, as ``fault``.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOGIN = "/login"
PIECE = 16 << 10
"""Bytes sent at a time where a rule counts bytes or time."""

KINDS = frozenset(
    {"busy", "cut", "stall", "throttle", "corrupt", "truncate", "ignore-ranges", "page", "login", "pointer"}
    | {"empty", "no-part", "other-part", "multipart"}
)
PAGE = """<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 4.01 Transitional//EN">
<html><head><title>Internet Security by Zscaler</title></head><body>This site is blocked.</body></html>
"""
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{0:064}\nsize 4995584792\n"


@dataclass
class Rule:
    """One line of the file; ``left``: requests it will still act on, None for all."""

    fault: str
    match: re.Pattern[str]
    method: str = "GET"
    after: int = 0
    rate: float = 0.0
    status: int = 503
    retry_after: str | None = None
    left: int | None = None

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Rule:
        """Read a rule; raises KeyError or ValueError when it is none."""
        if raw["fault"] not in KINDS:
            raise ValueError(f"fault {raw['fault']!r} is unknown; expected one of {', '.join(sorted(KINDS))}")
        after = raw.get("retry_after")
        return cls(
            raw["fault"],
            re.compile(raw.get("match", "")),
            raw.get("method", "GET"),
            int(raw.get("after", 0)),
            float(raw.get("rate", 0)),
            int(raw.get("status", 503)),
            None if after is None else str(after),
            raw.get("times"),
        )


@dataclass
class Faults:
    """Applies the rules of ``file`` around ``app``; without a file, or with an empty one, it does nothing."""

    app: ASGIApp
    file: Path | None
    rules: list[Rule] = field(default_factory=list)
    seen: tuple[int, int] | None = None

    def _rule(self, scope: Scope) -> Rule | None:
        if self.file is None:
            return None
        try:
            status = self.file.stat()
        except FileNotFoundError:
            self.rules, self.seen = [], None
            return None
        if (status.st_ino, status.st_mtime_ns) != self.seen:
            self.rules = [Rule.parse(raw) for raw in json.loads(self.file.read_text() or "[]")]
            self.seen = (status.st_ino, status.st_mtime_ns)
        where = f"{scope['path']}?{scope['query_string'].decode('latin-1')}"
        for rule in self.rules:
            if rule.left != 0 and rule.method == scope["method"] and rule.match.search(where):
                return rule
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, spoiled by the first rule that matches."""
        rule = self._rule(scope) if scope["type"] == "http" else None
        if rule is None:
            await self.app(scope, receive, send)
            return
        if rule.left is not None:
            rule.left -= 1
        scope["lab.fault"] = rule.fault
        if rule.fault == "busy":
            headers = {} if rule.retry_after is None else {"Retry-After": rule.retry_after}
            await PlainTextResponse("not now\n", rule.status, headers)(scope, receive, send)
            return
        if instead := _instead(rule, scope):
            await instead(scope, receive, send)
            return
        if rule.fault == "ignore-ranges":
            scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != b"range"]}
        spoiled = _Spoiled(rule, Headers(scope=scope).get("range"), receive, send)
        try:
            await self.app(scope, receive, spoiled.send)
        except ConnectionAbortedError:
            # Returning without the rest of the body makes the server drop the connection.
            return


def _instead(rule: Rule, scope: Scope) -> Response | None:
    """Return what is answered in the place of the hub's answer, for the rules that do that."""
    ranged = Headers(scope=scope).get("range") is not None
    if rule.fault == "page":
        return HTMLResponse(PAGE, rule.status)
    if rule.fault == "login":
        if scope["path"] == LOGIN:
            return HTMLResponse("<html><head><title>Sign in</title></head></html>")
        return RedirectResponse(LOGIN, 302)
    if rule.fault == "pointer":
        return PlainTextResponse(POINTER)
    if rule.fault == "empty":
        return Response(b"")
    if rule.fault == "multipart" and ranged:
        return Response(b"--x\r\n\r\n--x--\r\n", 206, media_type="multipart/byteranges; boundary=x")
    if rule.fault == "no-part" and ranged:
        return Response(b"x" * 100, 206)
    if rule.fault == "other-part" and ranged:
        return Response(b"x" * 100, 206, {"Content-Range": "bytes 1000000000-1000000099/4915962496"})
    return None


@dataclass
class _Spoiled:
    """The way of one answer to the client."""

    rule: Rule
    range: str | None
    receive: Receive
    forward: Send
    first: int = 0
    sent: int = 0
    limit: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._start(message)
            return
        if message["type"] != "http.response.body":
            await self.forward(message)
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        for begin in range(0, max(1, len(body)), PIECE):
            piece = body[begin : begin + PIECE]
            last = not more and begin + PIECE >= len(body)
            await self._piece(piece, last)

    async def _start(self, message: Message) -> None:
        headers = MutableHeaders(raw=message["headers"])
        part = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", headers.get("content-range", ""))
        self.first = int(part[1]) if part else 0
        if self.rule.fault == "truncate" and message["status"] in {200, 206}:
            self.limit = max(0, self.rule.after - self.first)
            length = min(int(headers["content-length"]), self.limit)
            headers["content-length"] = str(length)
            if part and length == 0:
                message = {**message, "status": 416}
                headers["content-range"] = f"bytes */{self.rule.after}"
            elif part:
                headers["content-range"] = f"bytes {self.first}-{self.first + length - 1}/{self.rule.after}"
        await self.forward(message)

    async def _piece(self, piece: bytes, last: bool) -> None:
        rule = self.rule
        if rule.fault in {"cut", "stall"} and self.sent + len(piece) > rule.after:
            piece = piece[: rule.after - self.sent]
            if piece:
                await self._forward(piece, False)
            if rule.fault == "stall":
                while (await self.receive())["type"] != "http.disconnect":
                    pass
            raise ConnectionAbortedError("the lab's fault")
        if rule.fault == "corrupt":
            at = rule.after - self.first - self.sent
            if 0 <= at < len(piece):
                piece = piece[:at] + bytes([piece[at] ^ 0xFF]) + piece[at + 1 :]
        if self.limit is not None:
            piece = piece[: max(0, self.limit - self.sent)]
        await self._forward(piece, last)

    async def _forward(self, piece: bytes, last: bool) -> None:
        await self.forward({"type": "http.response.body", "body": piece, "more_body": not last})
        self.sent += len(piece)
        if self.rule.rate > 0:
            await asyncio.sleep(len(piece) / self.rule.rate)

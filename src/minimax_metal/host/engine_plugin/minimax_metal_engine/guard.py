"""The layer around the engine's HTTP server: access by route and key, and what answers may contain."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from . import identity, media
from .body import Bodies, Body, ClientGoneError, again
from .drain import Drain
from .errors import Application, Message, Receive, Refused, Send, answer
from .fetch import Fetcher, as_data
from .keys import Accepted, Headers, carries, with_key
from .routes import SHOWS_KEYS, Access, access_to
from .settings import Settings

try:
    # The engine's own parser, if available: the guard must read what the engine reads.
    from orjson import dumps, loads  # type: ignore[import-not-found,unused-ignore]
except ImportError:

    def _never(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    def loads(text: bytes, /) -> Any:
        """Parse JSON as strictly as the engine does."""
        return json.loads(text.decode("utf-8"), parse_constant=_never)

    def dumps(value: Any, /) -> bytes:
        """Write JSON."""
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


QUEUE_FULL = (b"The request queue is full", b"aborted by a higher priority request")
"""The engine's message for a full queue (0.5.23, managers/scheduler.py), sent with 503."""
DEFAULT_NAME = "default"
"""The engine's default model name (protocol.py), which its own clients send."""
RETRY_SECONDS = 1
LARGE = 2**20
"""Bodies from this size on are parsed in a thread, so that other requests continue."""
FETCHES_AT_ONCE = 8


class Guard:
    """The engine's application with the layer around it (ASGI)."""

    def __init__(self, application: Application, drain: Drain | None, settings: Settings) -> None:
        self.application = application
        self.drain = drain
        self.settings = settings
        self.bodies = Bodies(settings.max_request_bytes, settings.request_seconds)
        self.fetcher = Fetcher(settings.media_domains, settings.max_request_bytes)
        self.fetches = asyncio.Semaphore(FETCHES_AT_ONCE)
        named = settings.identity and settings.user_key
        self.identity = identity.Identities(settings.identity) if named else None  # type: ignore[arg-type]
        own = ((key,) if key else () for key in (settings.user_key, settings.admin_key))
        self.own = Accepted(*own)

    def keys(self) -> Accepted:
        """The keys that are valid now."""
        return self.settings.accepted.now() if self.settings.accepted else self.own

    def hidden(self) -> tuple[bytes, ...]:
        """Everything that no answer may contain, as encoded in JSON; longest first."""
        keys = self.keys()
        found = {*self.settings.secrets, *self.own.user, *self.own.admin, *keys.user, *keys.admin}
        return tuple(json.dumps(text)[1:-1].encode() for text in sorted(found, key=len, reverse=True))

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self.application(scope, receive, send)
        elif scope["type"] == "http":
            await self.http(scope, receive, send)
        elif scope["type"] == "websocket" and (await receive())["type"] == "websocket.connect":
            # No public route of the engine uses it: answered with 403.
            await send({"type": "websocket.close", "code": 1008})

    async def http(self, scope: Message, receive: Receive, send: Send) -> None:
        """Forward a request, or refuse it."""
        path = route_path(scope)
        body = Body(self.bodies)
        try:
            await self.let_through(path, body, scope, receive, send)
        except ClientGoneError:
            return
        finally:
            body.release()

    async def let_through(self, path: str, body: Body, scope: Message, receive: Receive, send: Send) -> None:
        """Forward a request with all its rights, or refuse it."""
        read = False
        if path == identity.PATH and scope["method"] == "GET" and self.identity is not None:
            await self.prove(self.identity, scope, send)
            return
        try:
            access, headers, trusted = self.admitted(path, scope)
            if _is_preflight(scope):
                await self.application(scope, receive, send)
                return
            scope = {**scope, "headers": headers}
            works = access is Access.CLIENTS and scope["method"] not in {"GET", "HEAD"}
            if works and self.drain is not None and self.drain.refusing:
                raise Refused(503, "this server is shutting down", retry=5)
            if not trusted:
                content = await self.bodies.read(headers, receive, body)
                read = True
                if works:
                    content, scope = await self.checked(path, content, scope)
                receive = again(content, receive, body)
        except Refused as refused:
            await answer(send, path, refused, close=not read)
            return
        if path in SHOWS_KEYS and (hidden := self.hidden()):
            send = redacting(send, hidden)
        elif works:
            send = back_pressure(send, path)
        await self.counted(works, scope, receive, send)

    def admitted(self, path: str, scope: Message) -> tuple[Access, Headers, bool]:
        """Return who may use the requested route, the headers for the engine, and whether the admin key was
        given.

        Raises:
            Refused: without the right key, or the route is closed.
        """
        headers: Headers = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
        settings = self.settings
        access, methods = access_to(path)
        if access is Access.OPEN or _is_preflight(scope):
            return access, headers, False
        keys = self.keys()
        wanted, allowed = settings.user_key, keys.user
        if access is Access.MANAGERS and settings.admin_key:
            wanted, allowed = settings.admin_key, keys.admin
        if wanted is not None:
            if access is Access.CLOSED:
                allowed = (*allowed, *keys.admin)
            if not carries(headers, allowed):
                raise Refused(401, "Unauthorized: expected a key in Authorization: Bearer, or in x-api-key")
            headers = with_key(headers, wanted)
        if access is Access.CLOSED:
            raise Refused(404, "Not Found")
        if scope["method"] not in methods:
            raise Refused(405, "Method Not Allowed")
        if any(name.lower() in {b"content-encoding", b"x-body-compressed"} for name, _ in headers):
            raise Refused(415, "compressed requests are not accepted; send it uncompressed")
        return access, headers, access is Access.MANAGERS and settings.admin_key is not None

    async def prove(self, own: identity.Identities, scope: Message, send: Send) -> None:
        """Answer a gateway's question whether this is the engine."""
        nonce = identity.asked(bytes(scope.get("query_string", b"")))
        if nonce is None:
            await answer(send, identity.PATH, Refused(400, "expected ?nonce= and 32 to 128 hex digits"))
            return
        keys = self.keys()
        # In a thread: a new key is stretched first.
        found = await asyncio.to_thread(own.answers, nonce, keys.user, keys.admin)
        await _send_whole(send, {"type": "http.response.start", "status": 200}, dumps(found))

    async def checked(self, path: str, body: bytes, scope: Message) -> tuple[bytes, Message]:
        """Return a client's body after all checks; with allowed media embedded instead of linked.

        Raises:
            Refused: a check failed.
        """
        if not body:
            return body, scope
        if len(body) < LARGE:
            content, wanted = self.looked_at(path, body)
        else:
            content, wanted = await asyncio.to_thread(self.looked_at, path, body)
        if not wanted:
            return body, scope
        async with self.fetches:
            await asyncio.to_thread(self.fetch, content, wanted)
        body = await asyncio.to_thread(dumps, content)
        kept = [
            pair
            for pair in scope["headers"]
            if pair[0].lower() not in {b"content-length", b"transfer-encoding"}
        ]
        return body, {**scope, "headers": [*kept, (b"content-length", str(len(body)).encode())]}

    def looked_at(self, path: str, body: bytes) -> tuple[Any, list[media.Media]]:
        """Return a body's content, and the media that must be downloaded."""
        try:
            content = loads(body)
        except (ValueError, RecursionError):
            raise Refused(400, "the request's body is not JSON") from None
        if path.startswith(("/v1/", "/api/", "/invocations")) and isinstance(content, dict):
            self.named(path, content)
        check = media.Check(self.settings.media_domains, self.settings.max_image_pixels)
        return content, check.remote(content, vertex=path == "/vertex_generate")

    def named(self, path: str, content: dict[str, Any]) -> None:
        """Check that the request names the served model, or none."""
        served = self.settings.served_name
        given = content.get("model", content.get("name") if path == "/api/show" else None)
        if served is None or not isinstance(given, str) or given in {served, DEFAULT_NAME}:
            return
        if self.settings.adapters and given.startswith(f"{served}:"):
            return
        if path.startswith("/api/") and given == f"{served}:latest":
            return
        raise Refused(
            404,
            f"The model {given[:200]!r} does not exist; this server serves {served!r}",
            code="model_not_found",
            param="model",
        )

    def fetch(self, content: Any, wanted: list[media.Media]) -> None:
        """Embed media in a request in place of its URL."""
        check = media.Check(self.settings.media_domains, self.settings.max_image_pixels)
        held = 0
        for item in wanted:
            kind, data = self.fetcher.fetch(item.text)
            held += len(data)
            if held > self.settings.max_request_bytes:
                raise Refused(
                    400, f"the media of a request is larger than {self.settings.max_request_bytes} bytes"
                )
            text = as_data(kind, data)
            check.decoded(item.kind, text)
            item.holder[item.place] = text

    async def counted(self, works: bool, scope: Message, receive: Receive, send: Send) -> None:
        """Serve a request; requests for work are counted while they run."""
        if not works or self.drain is None:
            await self.application(scope, receive, send)
            return
        self.drain.running += 1
        try:
            await self.application(scope, receive, send)
        finally:
            self.drain.running -= 1


def redacting(send: Send, hidden: tuple[bytes, ...]) -> Send:
    """Return a ``send`` that removes the keys from an answer."""

    async def whole(start: Message, body: bytes) -> None:
        for secret in hidden:
            body = body.replace(secret, b"***")
        await _send_whole(send, start, body)

    return _held_back(send, lambda _: True, whole)


def route_path(scope: Message) -> str:
    """Return the path as the engine's router compares it: without the prefix of ``--fastapi-root-path``.

    Like Starlette's own ``get_route_path`` (starlette/_utils.py).
    """
    path, root = str(scope["path"]), str(scope.get("root_path") or "")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in {"", "/"}:
        return path[len(root) :]
    return path


def back_pressure(send: Send, path: str) -> Send:
    """Return a ``send`` that answers 429 with ``Retry-After`` if the engine's queue is full.

    The engine sends 503, which a gateway takes for a failure of the worker (smg's circuit breaker: after 10
    of them the worker is out for a minute).
    """

    async def whole(start: Message, body: bytes) -> None:
        if any(words in body for words in QUEUE_FULL):
            refused = Refused(429, "The request queue is full; try again", retry=RETRY_SECONDS)
            await answer(send, path, refused)
        else:
            await _send_whole(send, start, body)

    return _held_back(send, lambda start: start["status"] == 503, whole)


def _held_back(send: Send, wanted: Any, whole: Any) -> Send:
    """Return a ``send`` that forwards matching answers as a whole, and others as they come."""
    start: Message = {}
    body = bytearray()

    async def hold(message: Message) -> None:
        if message["type"] == "http.response.start" and wanted(message):
            start.update(message)
        elif not start or message["type"] != "http.response.body":
            await send(message)
        else:
            body.extend(message.get("body", b""))
            if not message.get("more_body"):
                await whole(start, bytes(body))

    return hold


async def _send_whole(send: Send, start: Message, body: bytes) -> None:
    headers = [pair for pair in start.get("headers", ()) if bytes(pair[0]).lower() != b"content-length"]
    start["headers"] = [*headers, (b"content-length", str(len(body)).encode())]
    await send(start)
    await send({"type": "http.response.body", "body": body})


def _is_preflight(scope: Message) -> bool:
    """Return whether a request is a CORS preflight: the engine's CORS layer answers it before any route."""
    if scope["method"] != "OPTIONS":
        return False
    names = {bytes(name).lower() for name, _ in scope["headers"]}
    return {b"origin", b"access-control-request-method"} <= names

"""The simulated engine's server: uvicorn, as the real one's, so that plug-ins, TLS and signals are the same.

What it has of the engine beyond the answers: requests run, wait or are refused by ``--max-running-requests``
and ``--max-queued-requests``; a token takes its time; a stop lets what runs end. Every request is in the log:

    {"id": "load-17", "at": 1795319886.05, "event": "received", "path": "/v1/chat/completions"}
    {"id": "load-17", "at": …, "event": "first"}
    {"id": "load-17", "at": …, "event": "whole", "status": 200, "tokens": 40}

and ends in exactly one of ``whole``, ``refused`` (with its status) and ``aborted`` (the client left, or the
engine was ended). The id is the request's own ``user`` field, else its ``X-Request-Id``.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import uvicorn

if TYPE_CHECKING:  # the wheel takes it from there
    from tests.support.engine import Engine, Reply, from_anthropic
else:
    from sglang_simulated.answers import Engine, Reply, from_anthropic
from sglang_simulated.options import Options, read_options

QUEUE_FULL = "The request queue is full."
"""The engine's own words (0.5.23, scheduler)."""
FIRST_LATENCY = "time_to_first_token_seconds"
NEXT_LATENCY = "inter_token_latency_seconds"
UNSIMULATED = frozenset(
    {
        "abort_ignored",
        "drops_under_load",
        "hangs",
        "messages_missing",
        "messages_open",
        "messages_stream_breaks",
        "mixes_answers",
        "no_json",
        "slow",
        "stream_breaks",
    }
)
"""Faults of the threaded server in tests/support that this one has no part of."""


class QueueFullError(Exception):
    """Neither running nor waiting is there room for a request."""


class ClientGoneError(Exception):
    """Whoever asked has left."""


class Log:
    """One line for each thing that happens to a request; whole lines, whoever reads meanwhile."""

    def __init__(self, options: Options) -> None:
        self.file = (
            os.open(options.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644) if options.log else None
        )

    def line(self, identity: str, event: str, **more: Any) -> None:
        """Say what happened to a request."""
        if self.file is not None:
            entry = {"id": identity, "at": round(time.time(), 4), "event": event, **more}
            os.write(self.file, (json.dumps(entry) + "\n").encode())


class Server:
    """The ASGI application."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.engine = Engine(
            family=options.family,
            tool_parser=options.tool_parser,
            reasoning_parser=options.reasoning_parser,
            faults=options.faults,
            api_key=options.api_key,
            metrics=options.metrics,
            starts_for=options.start_seconds,
            pace=0.0,
            model_path=options.model_path,
            served_name=options.served_name,
        )
        self.log = Log(options)
        self.room = asyncio.Semaphore(options.most_running or 4096)
        self.served = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection's request."""
        if scope["type"] != "http":
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        to_client = send

        async def send_counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.engine.responded(scope["path"], scope["method"], message["status"])
            await to_client(message)

        send = send_counted
        if scope["method"] == "GET":
            status, body, kind = self.engine.get(scope["path"], headers.get("authorization"))
            await answer(send, status, body, kind)
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        await self.work(scope["path"], headers, json.loads(body or b"{}"), receive, send)

    async def work(self, path: str, headers: dict[str, str], request: Any, receive: Any, send: Any) -> None:
        """A request that asks for tokens: logged from its arrival to its end."""
        identity = str(request.get("user") or headers.get("x-request-id") or "")
        if path not in {"/v1/chat/completions", "/v1/completions", "/v1/messages"}:
            await answer(send, 404, b'{"detail":"Not Found"}', "application/json")
            return
        self.log.line(identity, "received", path=path)
        tokens = 0

        def counted(number: int) -> None:
            nonlocal tokens
            if tokens == 0:
                self.log.line(identity, "first")
            tokens += number

        gone = asyncio.create_task(left(receive))
        job = asyncio.create_task(self.serve(path, headers, request, send, counted))
        try:
            await asyncio.wait({gone, job}, return_when=asyncio.FIRST_COMPLETED)
            if not job.done():
                raise ClientGoneError
            status = job.result()
            if status == 200:
                self.log.line(identity, "whole", status=status, tokens=tokens)
            else:
                self.log.line(identity, "refused", status=status)
        except BaseException:
            self.log.line(identity, "aborted", tokens=tokens)
            self.engine.add("num_aborted_requests_total", 1.0)
            if not job.done() or job.exception():
                return
            raise
        finally:
            gone.cancel()
            job.cancel()

    async def serve(self, path: str, headers: dict[str, str], request: Any, send: Any, counted: Any) -> int:
        """Answer a request; return the status it got."""
        authorization = headers.get("authorization")
        anthropic = path == "/v1/messages"
        if not self.engine.authorised(authorization):
            return await refuse(send, anthropic, 401, "Unauthorized")
        if path == "/v1/completions":
            request = {**request, "messages": [{"role": "user", "content": str(request.get("prompt"))}]}
        if anthropic:
            request = from_anthropic(request, self.engine.has("messages_image_dropped"))
        self.served += 1
        arrived = time.monotonic()
        if self.options.late_errors is not None and self.served > self.options.late_errors:
            return await refuse(send, anthropic, 500, "CUDA error: an illegal memory access was encountered")
        refusal = self.engine.refusal(request, authorization)
        if self.engine.dead:
            os._exit(139)
        if refusal is not None:
            return await refuse(send, anthropic, *refusal)
        try:
            async with self.running():
                reply = self.engine.reply(request)
                if request.get("stream"):
                    await self.stream(request, reply, send, counted, arrived)
                else:
                    await self.plain(request, reply, send, counted, arrived)
        except QueueFullError:
            return await refuse(send, anthropic, 503, QUEUE_FULL)
        return 200

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Wait for room to run, unless too many wait already."""
        engine, most = self.engine, self.options.most_waiting
        if self.room.locked() and most is not None and engine.waiting >= most:
            raise QueueFullError
        engine.waiting += 1
        try:
            await self.room.acquire()
        finally:
            engine.waiting -= 1
        engine.running += 1
        try:
            yield
        finally:
            engine.running -= 1
            self.room.release()

    async def plain(self, request: Any, reply: Reply, send: Any, counted: Any, arrived: float) -> None:
        """Answer at once, after the time its tokens take."""
        number = request["max_tokens"] if request.get("ignore_eos") else 7
        began = time.monotonic()
        await asyncio.sleep(number * self.options.token_seconds)
        token = (time.monotonic() - began) / number
        self.engine.observe(FIRST_LATENCY, began + token - arrived)
        self.engine.observe(NEXT_LATENCY, token, number - 1)
        make = self.engine.message if request.get("anthropic") else self.engine.completion
        counted(number)
        await answer(send, 200, json.dumps(make(request, reply)).encode(), "application/json")

    async def stream(self, request: Any, reply: Reply, send: Any, counted: Any, arrived: float) -> None:
        """Answer piece by piece."""
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        make = self.engine.events if request.get("anthropic") else self.engine.chunks
        pieces: Iterator[dict[str, Any]] = make(request, reply)
        latency, before = FIRST_LATENCY, arrived
        for piece in pieces:
            await asyncio.sleep(self.options.token_seconds)
            now = time.monotonic()
            self.engine.observe(latency, now - before)
            latency, before = NEXT_LATENCY, now
            counted(1)
            event = f"event: {piece['type']}\n" if "type" in piece else ""
            body = f"{event}data: {json.dumps(piece)}\n\n".encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})
        last = b"" if request.get("anthropic") else b"data: [DONE]\n\n"
        await send({"type": "http.response.body", "body": last})


async def left(receive: Any) -> None:
    """Return when the client has."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def answer(send: Any, status: int, body: bytes, kind: str = "text/plain") -> None:
    """Send a whole answer."""
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def refuse(send: Any, anthropic: bool, status: int, message: str) -> int:
    """Send an error as the interface has it; return its status."""
    error: dict[str, Any] = {"object": "error", "message": message, "type": "BadRequestError", "code": status}
    if anthropic:
        error = {"type": "error", "error": {"type": "invalid_request_error", "message": message}}
    if status == 401:
        error = {"error": message}
    await answer(send, status, json.dumps(error).encode(), "application/json")
    return status


def main() -> None:
    """Start as the engine does: plug-ins first, then the server; SIGTERM lets what runs end."""
    options = read_options(sys.argv[1:], os.environ)
    print("simulated engine, in the place of SGLang 0.5.23: see lab/engine/README.md", flush=True)
    if "no_start" in options.faults:
        print("RuntimeError: simulated: the engine does not start", flush=True)
        sys.exit(1)
    if unknown := options.faults & UNSIMULATED:
        sys.exit(f"SIMULATED_FAULTS: no part of this server: {', '.join(sorted(unknown))}")
    for entry in entry_points(group="sglang.srt.plugins"):
        entry.load()()
    uvicorn.run(
        Server(options),
        host=options.host,
        port=options.port,
        ssl_certfile=options.certificate,
        ssl_keyfile=options.certificate_key,
        log_level="warning",
        timeout_keep_alive=5,  # the engine's own
    )


if __name__ == "__main__":
    main()

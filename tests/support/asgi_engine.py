"""A small engine with the real one's HTTP server (uvicorn) and plug-in interface, to test the supervisor.

Stands in for SGLang if a test needs faults on request: it loads plug-ins by the same entry points, serves
``/health``, ``/metrics`` (the engine's names), ``/server_info`` (with its keys, like the engine) and a stream
of the requested length. It computes nothing, and knows no other path.

    python asgi_engine.py PORT [MODE]

Modes: ``good``; ``stall`` (after a request for a stream, works endlessly without progress); ``deaf`` (answers
nothing after a request for ``/slow_down``); ``unhealthy`` (breaks off all requests at SIGTERM, as the engine
does after a failed health call).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from importlib.metadata import entry_points
from typing import Any

import uvicorn

STATE: dict[str, Any] = {"running": 0, "tokens": 0, "deaf": False, "stalled": False}


async def answer(send: Any, body: bytes, status: int = 200) -> None:
    await send(
        {"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]}
    )
    await send({"type": "http.response.body", "body": body})


async def stream(send: Any, seconds: float) -> None:
    STATE["running"] += 1
    try:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        deadline = time.monotonic() + seconds
        number = 0
        while time.monotonic() < deadline or STATE["stalled"]:
            if not STATE["stalled"]:
                number += 1
                STATE["tokens"] += 1
                await send({"type": "http.response.body", "body": f"{number}\n".encode(), "more_body": True})
            await asyncio.sleep(0.05)
        await send({"type": "http.response.body", "body": b"end\n"})
    finally:
        STATE["running"] -= 1


async def application(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    path = scope["path"]
    if STATE["deaf"]:
        await asyncio.sleep(3600)
    if path == "/health":
        if STATE["stalled"]:
            await asyncio.sleep(0.5)
            await answer(send, b"", 503)
            return
        await answer(send, b"")
    elif path == "/metrics":
        lines = [
            f'sglang:num_running_reqs{{tp_rank="0"}} {float(STATE["running"])}',
            "sglang:num_queue_reqs 0.0",
            f'sglang:generation_tokens_total{{model_name="m"}} {float(STATE["tokens"])}',
        ]
        await answer(send, "\n".join(lines).encode())
    elif path == "/server_info":
        await answer(send, json.dumps({"api_key": os.environ.get("CANARY"), "tp_size": 4}).encode())
    elif path == "/generate" and scope["method"] == "POST":
        STATE["stalled"] = MODE == "stall"
        await stream(send, float(scope["query_string"] or b"1"))
    elif path == "/slow_down":
        STATE["deaf"] = True
        await answer(send, b"")
    else:
        await answer(send, b"", 404)


def main() -> None:
    print(f"server_args={{'api_key': '{os.environ.get('CANARY')}'}}", flush=True)
    for entry in entry_points(group="sglang.srt.plugins"):
        entry.load()()
    server = uvicorn.Server(uvicorn.Config(application, host="127.0.0.1", port=PORT, log_level="warning"))
    if MODE == "unhealthy":
        server.handle_exit = lambda *_: os._exit(0)  # type: ignore[method-assign]  # as the engine does
    server.run()


if __name__ == "__main__":
    PORT, MODE = int(sys.argv[1]), (sys.argv[2:] or ["good"])[0]
    main()

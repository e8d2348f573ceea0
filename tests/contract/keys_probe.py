"""Ask the installed engine for its routes, with the guard; run with the engine environment's Python.

Reads keys and requests from standard input and writes one JSON object: every path and method of the server,
including WebSockets, and the guard's answers to the requests in front of the engine's own application.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any


def served(routes: Iterable[Any]) -> Iterator[tuple[str, str, str]]:
    """Every path and method with the engine's own level, including those of included routers."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from served(inner.routes)
            continue
        level = getattr(getattr(route, "endpoint", None), "_auth_level", None)
        methods = getattr(route, "methods", None)
        if methods is None:
            methods = ["WEBSOCKET" if "WebSocket" in type(route).__name__ else "MOUNT"]
        for method in methods:
            yield route.path, method, level.value if level else "normal"


def ask(application: Any, question: dict[str, Any]) -> dict[str, Any]:
    """Send one request to an ASGI application."""
    answer: dict[str, Any] = {"status": None, "body": ""}

    async def receive() -> Any:
        if question.get("kind") == "websocket":
            return {"type": "websocket.connect"}
        return {"type": "http.request", "body": question.get("body", "").encode(), "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer["status"] = message["status"]
        elif message["type"] == "http.response.body":
            answer["body"] += message.get("body", b"").decode("utf-8", "replace")
        else:
            answer["status"] = message["type"]

    scope = {
        "type": question.get("kind", "http"),
        "method": question.get("method", "POST"),
        "path": question["path"],
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "server": ("127.0.0.1", 8000),
        "headers": [(name.encode(), value.encode()) for name, value in question.get("headers", [])],
    }
    try:
        asyncio.run(asyncio.wait_for(application(scope, receive, send), 20))
    except Exception as error:
        # The engine's handlers want a running engine: what they raise shows that they were reached.
        answer["status"] = answer["status"] or f"reached: {type(error).__name__}"
    return answer


def main() -> None:
    """Answer on the original standard output of the process, whatever the engine prints."""
    question = json.load(sys.stdin)
    answer_to = os.dup(1)
    os.dup2(2, 1)
    from sglang.srt.plugins import load_plugins

    load_plugins()
    import uvicorn
    from sglang.srt.entrypoints.http_server import app
    from sglang.srt.utils.auth import add_api_key_middleware
    from sglang.srt.utils.common import add_prometheus_middleware

    routes = sorted(set(served(app.routes)))
    os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", question["directory"])
    add_prometheus_middleware(app)
    add_api_key_middleware(app, api_key=question["api_key"], admin_api_key=question["admin_api_key"])
    config = uvicorn.Config(app)
    config.load()
    answers = [
        {"guarded": ask(config.loaded_app, one), "alone": ask(app, one) if one.get("alone") else None}
        for one in question["requests"]
    ]
    with os.fdopen(answer_to, "w") as out:
        json.dump({"routes": routes, "guard": type(config.loaded_app).__name__, "answers": answers}, out)


if __name__ == "__main__":
    main()

"""Asks the installed engine who may call what; run with the engine environment's Python.

Reads ``{"keys": {name: key}, "api_key": ..., "admin_api_key": ...}`` from standard input and writes a list of
``{"path", "method", "level", "allowed": {name: bool}}``, one for each path and method the server has.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any


def served(routes: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Every path and method, those of included routers too."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from served(inner.routes)
        else:
            yield from ((route.path, method) for method in getattr(route, "methods", None) or ())


def main() -> None:
    """Answer on the standard output of the process that was started, whatever the engine prints."""
    question = json.load(sys.stdin)
    answer_to = os.dup(1)
    os.dup2(2, 1)
    from sglang.srt.plugins import load_plugins

    load_plugins()
    from sglang.srt.entrypoints.http_server import app
    from sglang.srt.utils.auth import _get_auth_level_from_app_and_scope, decide_request_auth

    answer = []
    for path, method in sorted(served(app.routes)):
        # As the engine's own middleware finds it: a route that it does not find is an ordinary one.
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "root_path": "",
            "headers": [],
            "query_string": b"",
        }
        level = _get_auth_level_from_app_and_scope(app, scope)
        answer.append(
            {
                "path": path,
                "method": method,
                "level": level.value,
                "allowed": {
                    name: decide_request_auth(
                        method=method,
                        path=path,
                        authorization_header=f"Bearer {key}" if key else None,
                        api_key=question["api_key"],
                        admin_api_key=question["admin_api_key"],
                        auth_level=level,
                    ).allowed
                    for name, key in question["keys"].items()
                },
            }
        )
    with os.fdopen(answer_to, "w") as out:
        json.dump(answer, out)


if __name__ == "__main__":
    main()

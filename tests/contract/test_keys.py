"""Every route of the installed engine, and the guard's answers to requests for its own application."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lab.engine.environment import environment
from minimax_metal.host.engine.drain import PLUGIN
from minimax_metal.host.engine_plugin.minimax_metal_engine.routes import CLIENTS, CLOSED, MANAGERS, OPEN

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

USER, ADMIN = "0key-for-clients", "0key-for-managers"
EARLIER = {"/get_load": {"GET"}}
"""Routes of releases before 0.5.23 that the guard knows."""
LAUNCH = {"/metrics": {"GET"}, "/metrics/": {"GET"}}
"""Added by the engine at launch, as a separate application."""
OURS = {"/get_hicache_l3_cache_layout", "/is_scaling_elastic_ep", "/scale_elastic_ep"}
"""Admin routes that the engine's own check leaves to the clients' key."""

CHAT = json.dumps({"model": "default", "messages": [{"role": "user", "content": "hi"}]})
REQUESTS: dict[str, dict[str, Any]] = {
    "no key": {"path": "/v1/chat/completions", "body": CHAT, "alone": True},
    "a Host that holds a path": {
        "path": "/v1/chat/completions", "body": CHAT,
        "headers": [("host", "x/health?"), ("content-type", "application/json")],
    },
    "the same, for managers": {"path": "/pause_generation", "headers": [("host", "x/health?")]},
    "a WebSocket": {"path": "/v1/realtime", "kind": "websocket", "alone": True},
    "x-api-key": {
        "path": "/v1/chat/completions", "body": CHAT, "alone": True,
        "headers": [("x-api-key", USER), ("content-type", "application/json")],
    },
    "elastic, by a client": {
        "path": "/is_scaling_elastic_ep", "method": "GET", "alone": True,
        "headers": [("authorization", f"Bearer {USER}")],
    },
    "docs": {"path": "/openapi.json", "method": "GET", "headers": [("authorization", f"Bearer {USER}")]},
    "a file": {
        "path": "/generate", "body": json.dumps({"text": "x", "image_data": "/etc/passwd"}),
        "headers": [("authorization", f"Bearer {USER}"), ("content-type", "application/json")],
    },
    "preflight": {
        "path": "/v1/chat/completions", "method": "OPTIONS",
        "headers": [("origin", "https://a.example"), ("access-control-request-method", "POST")],
    },
}  # fmt: skip


@cache
def told() -> dict[str, Any]:
    """The engine's routes and answers, queried once."""
    with tempfile.TemporaryDirectory() as directory:
        for name, key in (("api_key", USER), ("admin_api_key", ADMIN)):
            Path(directory, name).write_text(key)
        done = subprocess.run(
            [str(environment()), str(Path(__file__).with_name("keys_probe.py"))],
            input=json.dumps(
                {
                    "directory": directory,
                    "api_key": USER,
                    "admin_api_key": ADMIN,
                    "requests": list(REQUESTS.values()),
                }
            ),
            env={**os.environ, "PYTHONPATH": str(PLUGIN), "METAL_SECRETS": directory},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["guard"] == "Guard"
    return found


def answers(name: str) -> tuple[Any, Any]:
    """The answers of the guard, and of the engine alone."""
    one = told()["answers"][list(REQUESTS).index(name)]
    return one["guarded"]["status"], (one["alone"] or {}).get("status")


def test_every_route_has_a_class_and_every_class_its_routes() -> None:
    found: dict[str, set[str]] = {}
    for path, method, _ in told()["routes"]:
        found.setdefault(path, set()).add(method)
    tables = (OPEN, CLIENTS, MANAGERS, CLOSED)
    known = {path: set(methods) for table in tables for path, methods in table.items()}
    assert sum(map(len, tables)) == len(known)
    # HEAD beside GET is the guard's own rule.
    bare = {path: methods - {"HEAD"} for path, methods in found.items()}
    assert bare == {path: ways for path, ways in known.items() if path not in EARLIER | LAUNCH}


def test_what_the_engine_keeps_for_managers_the_guard_keeps_for_them() -> None:
    kept = {path for path, _, level in told()["routes"] if level != "normal"}
    assert kept <= set(MANAGERS)
    assert set(MANAGERS) - kept <= OURS


def test_the_guard_closes_what_the_engine_leaves_open() -> None:
    """Each of these passes the engine's own check; if a release closes one, its line here can go."""
    assert answers("no key") == (401, 401)
    for name in ("a Host that holds a path", "the same, for managers"):
        assert answers(name)[0] == 401
    assert answers("a WebSocket")[0] == "websocket.close"
    assert str(answers("a WebSocket")[1]).startswith("reached"), answers("a WebSocket")
    guarded, alone = answers("elastic, by a client")
    assert (guarded, alone != 401) == (401, True)
    assert answers("docs")[0] == 404
    assert answers("a file")[0] == 400


def test_the_guard_opens_what_clients_send() -> None:
    guarded, alone = answers("x-api-key")
    assert (guarded != 401, alone) == (True, 401)
    assert answers("preflight")[0] == 200

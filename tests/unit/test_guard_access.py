"""The guard around the engine: who may call which route how often, and the form of its refusals."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.host.engine_plugin.minimax_metal_engine import Drain, Guard, Settings, read_settings
from minimax_metal.host.engine_plugin.minimax_metal_engine.routes import CLIENTS, CLOSED, MANAGERS, OPEN
from tests.support.asgi_client import Recorder, ask

USER, ADMIN, SERVED = "0key-for-clients", "0key-for-managers", "MiniMaxAI/MiniMax-M2.5"
KEYED = Settings(user_key=USER, admin_key=ADMIN, secrets=(ADMIN, USER), served_name=SERVED)
CHAT = {"model": SERVED, "messages": [{"role": "user", "content": "hi"}]}
MESSAGES = "/v1/messages"


def bearer(key: str) -> tuple[str, str]:
    return "Authorization", f"Bearer {key}"


def guard(settings: Settings = KEYED, **answer: Any) -> tuple[Guard, Recorder]:
    engine = Recorder(**answer)
    return Guard(engine, None, settings), engine


def example(path: str) -> str:
    return path.replace("{model:path}", "some/model").replace("{response_id}", "resp_1")


EVERY = [
    (path, method)
    for table in (OPEN, CLIENTS, MANAGERS, CLOSED)
    for path, methods in table.items()
    for method in methods
    if method != "WEBSOCKET"
]


@pytest.mark.parametrize(("path", "method"), EVERY)
def test_each_route_is_open_to_its_own_callers_only(path: str, method: str) -> None:
    who = {
        "none": (),
        "user": (bearer(USER),),
        "admin": (bearer(ADMIN),),
        "wrong": (bearer("0key-of-nobody"),),
    }
    allowed = {name for name, headers in who.items() if reached(example(path), method, headers)}
    expected = {"none", "user", "admin", "wrong"} if path in OPEN else set()
    expected |= {"user"} if path in CLIENTS else {"admin"} if path in MANAGERS else set()
    assert allowed == expected


def reached(path: str, method: str, headers: Any) -> bool:
    application, engine = guard()
    answer = ask(application, method, path, None, headers)
    assert bool(engine.seen) == (answer.status == 200), answer
    return bool(engine.seen)


VARIANTS = [
    "/pause_generation/",
    "//pause_generation",
    "/Pause_generation",
    "/pause_generation;x",
    "/pause_generation/.",
    "/v1/../pause_generation",
    "/pause%5fgeneration",  # as a server hands on what was encoded twice
    "/pause_generation\n",
    "/pause_generation?x",
    "/health/../pause_generation",
    "/healthy",
    "/metricsx",
    "/v1/chat/completions/",
    "/v1//chat/completions",
    "/docs/",
    "/dumper/start",
    "",
]


@pytest.mark.parametrize("path", VARIANTS)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "PATCH"])
@pytest.mark.parametrize("key", [USER, ADMIN, None])
def test_no_spelling_of_a_path_gets_around_its_class(path: str, method: str, key: str | None) -> None:
    application, engine = guard()
    answer = ask(application, method, path, None, [bearer(key)] if key else [])
    assert (answer.status, engine.seen) == (404 if key else 401, [])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/llm/v1/models", 200),
        ("/v1/models", 200),
        ("/llm", 404),
        ("/llmv1/models", 404),
        ("/llm/llm/v1/models", 404),
        ("/llm/pause_generation", 401),
        ("/llm/health", 200),
    ],
)
def test_a_prefix_of_the_servers_own_is_taken_off_as_its_router_does(path: str, expected: int) -> None:
    application, _ = guard()

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        await application({**scope, "root_path": "/llm"}, receive, send)

    method = "POST" if "pause" in path else "GET"
    assert ask(behind, method, path, None, [bearer(USER)]).status == expected


def test_another_method_than_the_routes_own_is_refused_and_head_goes_where_get_does() -> None:
    application, engine = guard()
    assert ask(application, "DELETE", "/v1/models", None, [bearer(USER)]).status == 405
    assert ask(application, "OPTIONS", "/v1/models", None, [bearer(USER)]).status == 405
    assert ask(application, "OPTIONS", "/pause_generation").status == 401
    assert engine.seen == []
    assert ask(application, "HEAD", "/v1/models", None, [bearer(USER)]).status == 200
    asked = [("Origin", "https://a.example"), ("Access-Control-Request-Method", "POST")]
    assert ask(application, "OPTIONS", "/v1/chat/completions", None, asked).status == 200
    assert engine.seen == [("HEAD", "/v1/models"), ("OPTIONS", "/v1/chat/completions")]


def test_a_host_header_that_holds_a_path_opens_nothing() -> None:
    """The engine's own check takes the path from a URL made of Host and path (0.5.23, utils/auth.py)."""
    application, engine = guard()
    forged = [("Host", "x/health?")]
    assert ask(application, "POST", "/pause_generation", None, forged).status == 401
    assert ask(application, "POST", "/v1/chat/completions", CHAT, forged).status == 401
    assert engine.seen == []


@pytest.mark.parametrize("key", [USER, ADMIN, None])
def test_a_websocket_is_never_let_through(key: str | None) -> None:
    application, engine = guard()
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
    for path in ("/v1/realtime", "/v1/chat/completions"):
        asyncio.run(application({"type": "websocket", "path": path, "headers": headers}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}] * 2
    asyncio.run(application({"type": "webtransport", "path": "/", "headers": []}, receive, send))
    assert engine.kinds == []
    asyncio.run(application({"type": "lifespan"}, receive, send))
    assert engine.kinds == ["lifespan"]


@pytest.mark.parametrize(
    "headers",
    [
        [bearer(USER)],
        [("authorization", f"bearer {USER}")],
        [("x-api-key", USER)],
        [("X-Api-Key", USER), bearer("not-a-key-of-ours")],
        [("x-api-key", "none"), bearer(USER)],
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", MESSAGES])
def test_the_key_counts_in_either_header_and_the_engine_sees_one(path: str, headers: Any) -> None:
    application, engine = guard()
    assert ask(application, "POST", path, CHAT, headers).status == 200
    assert engine.headers[0]["authorization"] == f"Bearer {USER}"
    assert "x-api-key" not in engine.headers[0]


@pytest.mark.parametrize("key", [f"{USER}x", USER[:-1], "", USER.upper(), f"Bearer {USER}", ADMIN])
@pytest.mark.parametrize("name", ["x-api-key", "authorization"])
def test_a_key_that_is_not_whole_counts_nowhere(key: str, name: str) -> None:
    application, engine = guard()
    value = f"Bearer {key}" if name == "authorization" else key
    answer = ask(application, "POST", "/v1/chat/completions", CHAT, [(name, value)])
    assert (answer.status, engine.seen) == (401, [])


def test_without_keys_clients_and_managers_are_let_in_as_the_engine_does() -> None:
    application, engine = guard(Settings())
    for path in ("/v1/models", "/flush_cache"):
        assert ask(application, "GET", path).status == 200
    assert ask(application, "GET", "/docs").status == 404
    assert len(engine.seen) == 2


WRONG = ["gpt-4o", SERVED.upper(), f"{SERVED} ", "", f"{SERVED}:adapter", "MiniMax-M2.5", "../" + SERVED]


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize(
    "path",
    ["/v1/chat/completions", "/v1/completions", MESSAGES, "/v1/responses", "/v1/embeddings", "/invocations"],
)
def test_a_model_that_is_not_served_is_refused_by_name(path: str, name: str) -> None:
    application, engine = guard()
    answer = ask(application, "POST", path, CHAT | {"model": name}, [bearer(USER)])
    assert (answer.status, engine.seen) == (404, [])
    if path == MESSAGES:
        assert answer.json["type"] == "error"
        assert answer.json["error"]["type"] == "not_found_error"
    else:
        assert answer.json["error"]["code"] == "model_not_found"
        assert answer.json["error"]["type"] == "invalid_request_error"
    assert SERVED in answer.json["error"]["message"]


def test_the_served_name_the_engines_word_for_it_and_none_are_answered() -> None:
    application, _ = guard()
    for body in (CHAT, CHAT | {"model": "default"}, {"messages": CHAT["messages"]}):
        assert ask(application, "POST", "/v1/chat/completions", body, [bearer(USER)]).status == 200
    assert (
        ask(application, "POST", "/api/chat", CHAT | {"model": f"{SERVED}:latest"}, [bearer(USER)]).status
        == 200
    )
    refused = ask(application, "POST", "/api/show", {"name": "llama3"}, [bearer(USER)])
    assert refused.json == {"error": f"The model 'llama3' does not exist; this server serves '{SERVED}'"}
    adapters = Settings(served_name=SERVED, adapters=True)
    application, _ = guard(adapters)
    assert ask(application, "POST", "/v1/completions", {"model": f"{SERVED}:mine"}).status == 200


def test_the_largest_body_is_bounded_whether_its_length_is_said_or_not() -> None:
    settings = Settings(max_request_bytes=1000)
    for headers, pieces in (
        ([("Content-Length", "300000000")], [b"{"]),
        ([("Content-Length", "9" * 400)], [b"{"]),
        ([("Content-Length", "-1")], [b"{"]),
        ([("Transfer-Encoding", "chunked")], [b"x" * 400] * 3),
    ):
        application, engine = guard(settings)
        answer = ask(application, "POST", MESSAGES, None, headers, pieces=pieces)
        assert (answer.status, engine.seen) == (413, [])
        assert answer.json["error"]["type"] == "request_too_large"
        assert answer.headers["connection"] == "close"
        assert application.bodies.held == 0
    application, engine = guard(settings)
    assert ask(application, "POST", "/v1/completions", pieces=[b'{"a":', b"1}"]).status == 200
    assert engine.bodies == [b'{"a":1}']
    assert application.bodies.held == 0


def test_a_manager_may_send_weights_of_any_size_and_nobody_else_may() -> None:
    path, body = "/update_weights_from_tensor", b"x" * 5000
    application, _ = guard(Settings(user_key=USER, admin_key=ADMIN, max_request_bytes=1000))
    assert ask(application, "POST", path, body, [bearer(ADMIN)]).status == 200
    application, _ = guard(Settings(max_request_bytes=1000))
    assert ask(application, "POST", path, body).status == 413


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    application, engine = guard(Settings(request_seconds=0.2))
    answer = ask(application, "POST", "/v1/completions", pieces=[b"{"] * 50, pause=0.1)
    assert (answer.status, engine.seen) == (408, [])
    assert application.bodies.held == 0


def test_bodies_of_many_requests_have_a_bound_together() -> None:
    application, _ = guard(Settings(max_request_bytes=1000))
    application.bodies.held = 16_000
    answer = ask(application, "POST", "/v1/completions", {"prompt": "x"})
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")


@pytest.mark.parametrize(
    "body", [b"{", b"\xff\xfe{\x00}\x00", b'{"a": NaN}', b"[" * 100_000, b"image_url=file:///x"]
)
def test_what_the_guard_can_not_read_the_engine_does_not_get(body: bytes) -> None:
    application, engine = guard(Settings())
    assert ask(application, "POST", "/v1/chat/completions", body).status == 400
    assert engine.seen == []


@pytest.mark.parametrize("name", ["content-encoding", "x-body-compressed"])
def test_a_compressed_body_is_not_taken(name: str) -> None:
    application, engine = guard(Settings())
    assert ask(application, "POST", "/v1/completions", b"\x28\xb5", [(name, "zstd")]).status == 415
    assert engine.seen == []


@pytest.mark.parametrize("body", [b"null", b"5", b'"file:///etc/passwd"', b"[]", b"true"])
def test_a_body_that_is_not_an_object_is_the_engines_to_refuse(body: bytes) -> None:
    application, engine = guard(Settings())
    assert ask(application, "POST", "/v1/completions", body).status == 200
    assert engine.bodies == [body]


FULL = json.dumps({"object": "error", "message": "The request queue is full.", "code": 503}).encode()


def test_a_full_queue_is_said_as_what_it_is() -> None:
    application, _ = guard(Settings(), status=503, body=FULL)
    answer = ask(application, "POST", "/v1/chat/completions", {"messages": []})
    assert (answer.status, answer.headers["retry-after"]) == (429, "1")
    assert answer.json["type"] == "RateLimitError"
    answer = ask(application, "POST", MESSAGES, {"messages": []})
    assert answer.json["error"]["type"] == "rate_limit_error"


def test_any_other_503_stays_one() -> None:
    application, _ = guard(Settings(), status=503, body=b'{"message": "worker lost"}')
    answer = ask(application, "POST", "/v1/completions", {"prompt": "The request queue is full"})
    assert (answer.status, answer.body) == (503, b'{"message": "worker lost"}')
    application, _ = guard(Settings(), status=200, body=FULL)
    assert ask(application, "POST", "/v1/completions", {"prompt": "x"}).status == 200
    application, _ = guard(Settings(), status=503, body=FULL)
    assert ask(application, "GET", "/health").status == 503


def test_a_drain_refuses_every_kind_of_work_and_counts_what_runs(tmp_path: Path) -> None:
    drain = Drain(tmp_path / "drain")
    engine = Recorder()
    application = Guard(engine, drain, Settings())
    assert ask(application, "PUT", "/generate", {"text": "x"}).status == 200
    drain.file.touch()
    drain.tick()
    for method, path in (("POST", "/v1/messages"), ("PUT", "/generate")):
        refused = ask(application, method, path, {"text": "x"})
        assert (refused.status, refused.headers["retry-after"]) == (503, "5")
    assert ask(application, "GET", "/v1/models").status == 200
    assert drain.account.read_text() == "0\n"


def test_settings_come_from_environment_keys_and_command_line(tmp_path: Path) -> None:
    (tmp_path / "api_key").write_text(f"{USER}\n")
    (tmp_path / "admin_api_key").write_text(ADMIN)
    found = read_settings(
        {
            "METAL_SECRETS": str(tmp_path),
            "METAL_MEDIA_DOMAINS": "A.example, b.example",
            "METAL_MAX_REQUEST_BYTES": "5",
        },
        ["serve", "--served-model-name", SERVED, "--enable-lora"],
    )
    assert (found.user_key, found.admin_key, found.secrets) == (USER, ADMIN, (ADMIN, USER))
    assert (found.media_domains, found.max_request_bytes) == (frozenset({"a.example", "b.example"}), 5)
    assert (found.served_name, found.adapters) == (SERVED, True)
    assert read_settings({}, []) == Settings()
    with pytest.raises(ValueError, match="METAL_REQUEST_SECONDS is -1"):
        read_settings({"METAL_REQUEST_SECONDS": "-1"}, [])

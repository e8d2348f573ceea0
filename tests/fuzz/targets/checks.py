"""Readers of an endpoint's answers to the post-check."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, Final

from minimax_metal.host.check import answer, endpoint, leaving, report
from minimax_metal.host.check.outcome import FailedError, SkippedError
from tests.fuzz.target import Form, Target, of_text
from tests.fuzz.targets.host import METRICS

_JUDGED: Final = (FailedError, SkippedError)
INFO: Final = json.dumps(
    {"reasoning_parser": "minimax-append-think", "tool_call_parser": "minimax-m2", "has_image_understanding": True,
     "model_path": "/srv/models/a", "max_req_input_len": 1000, "max_running_requests": 8, "version": "0.5.23",
     "sampling_defaults": "model", "data": [{"id": "m", "max_model_len": 4096}], "loads": [
         {"num_running_reqs": 1, "num_waiting_reqs": 2}]}
).encode()  # fmt: skip
COMPLETION: Final = json.dumps(
    {"id": "1", "object": "chat.completion", "created": 1, "model": "m",
     "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
     "choices": [{"index": 0, "finish_reason": "tool_calls", "message": {
         "role": "assistant", "content": "<think>a</think>b", "reasoning_content": "a",
         "tool_calls": [{"id": "c", "type": "function", "function": {"name": "get_weather",
                                                                   "arguments": "{\"city\": \"Paris\"}"}}]}}]}
).encode()  # fmt: skip
MESSAGE: Final = json.dumps(
    {"id": "1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "tool_use", "stop_sequence": None,
     "content": [{"type": "thinking", "thinking": "a", "signature": ""}, {"type": "text", "text": "b"},
                 {"type": "tool_use", "id": "t", "name": "get_weather", "input": {"city": "Paris"}}],
     "usage": {"input_tokens": 5, "output_tokens": 7}}
).encode()  # fmt: skip
CHUNK: Final = json.dumps(
    {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "usage": None,
     "choices": [{"index": 0, "finish_reason": None, "delta": {
         "role": "assistant", "content": "a", "reasoning_content": "b", "tool_calls": [
             {"index": 0, "id": "c", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}]}}]}
).encode()  # fmt: skip


def _transport(content: bytes, kind: str = "application/json") -> Any:
    import httpx2 as httpx

    return httpx.MockTransport(lambda _: httpx.Response(200, content=content, headers={"content-type": kind}))


class _Endpoint:
    """The real endpoint's clients, with every answer of the same content."""

    def __init__(self) -> None:
        self.one = endpoint.Endpoint("http://127.0.0.1:9", "m", None, 5.0)

    def answering(self, content: bytes, kind: str = "application/json") -> Any:
        import httpx2 as httpx

        client = httpx.Client(transport=_transport(content, kind))
        self.one.http = client
        self.one.openai = self.one.openai.with_options(http_client=client, max_retries=0)
        self.one.anthropic = self.one.anthropic.with_options(http_client=client, max_retries=0)
        self.one.__dict__.pop("facts", None)
        return self.one


_ENDPOINT: Final = _Endpoint()


def _facts(content: bytes) -> object:
    return _ENDPOINT.answering(content).facts


def _running(content: bytes) -> object:
    return leaving._running(SimpleNamespace(endpoint=_ENDPOINT.answering(content)))  # type: ignore[arg-type]


def _judged(content: bytes, ask: Any) -> object:
    """Run a check as the suite does: an exception of a client's library is the check's failure."""
    try:
        found = ask()
    except _JUDGED as error:
        return report.shorten(str(error))
    except Exception as error:
        # The clients' libraries raise what they like for an answer of another form; the suite takes it all.
        if _in_project(error):
            raise
        return SKIP
    answer.judge_calls(found, "auto", None)
    return SKIP


SKIP: Final = "read"


def _in_project(error: BaseException) -> bool:
    import traceback

    return "minimax_metal" in traceback.extract_tb(error.__traceback__)[-1].filename


def _chat(content: bytes) -> object:
    one = _ENDPOINT.answering(content)
    return _judged(content, lambda: one.chat([{"role": "user", "content": "a"}]))


def _stream(content: bytes) -> object:
    lines = b"".join(b"data: " + line + b"\n\n" for line in content.splitlines())
    one = _ENDPOINT.answering(lines + b"data: [DONE]\n\n", "text/event-stream")
    return _judged(content, lambda: one.stream([{"role": "user", "content": "a"}]))


def _message(content: bytes) -> object:
    one = _ENDPOINT.answering(content)
    return _judged(content, lambda: one.message([{"role": "user", "content": "a"}], max_tokens=5)[0])


TARGETS: Final = (
    Target("server-info", _facts, (INFO,), Form.JSON),
    Target("check-loads", _running, (INFO, *METRICS), Form.JSON, _JUDGED),
    Target("check-metrics", _running, METRICS, Form.TEXT, _JUDGED),
    Target("chat-answer", _chat, (COMPLETION,), Form.JSON, _JUDGED),
    Target("chat-stream", _stream, (CHUNK,), Form.JSON, _JUDGED),
    Target("message-answer", _message, (MESSAGE,), Form.JSON, _JUDGED),
    Target("check-shortened", of_text(report.shorten), (COMPLETION,), shown=True),
)  # fmt: skip

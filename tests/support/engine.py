"""A simulated engine: SGLang's HTTP surface in front of canned answers, with faults to plant.

It stands for a SGLang server that serves MiniMax-M2.5 or MiniMax-M3, as seen on real servers of release
0.5.23: the parsers' ways with a thought and a tool call, the markup that leaks when they do not fit the
model, streaming, usage, pictures, 503 while starting, ``/v1/models`` answering before that is over.

It cannot show: that a model says true things, that a parser copes with what a model really writes, speed,
memory, concurrency, what the engine does under load, or anything about GPUs. Those need the real engine.
"""

from __future__ import annotations

import base64
import json
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from minimax_metal.checks import questions

NAMES = {"m2": "MiniMaxAI/MiniMax-M2.5", "m3": "MiniMaxAI/MiniMax-M3"}
NAMESPACE = "]<]minimax[>["
CALL = {
    "m2": '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="location">Beijing</parameter>\n'
    '<parameter name="unit">celsius</parameter>\n</invoke>\n</minimax:tool_call>',
    "m3": f'{NAMESPACE}<tool_call>\n{NAMESPACE}<invoke name="get_weather">{NAMESPACE}<location>Beijing'
    f"{NAMESPACE}</location>{NAMESPACE}<unit>celsius{NAMESPACE}</unit>{NAMESPACE}</invoke>\n"
    f"{NAMESPACE}</tool_call>",
}
ARGUMENTS = '{"location": "Beijing", "unit": "celsius"}'

FAULTS = frozenset(
    {
        "wrong_name",
        "models_empty",
        "error_500",
        "empty_answer",
        "runs_on",
        "no_usage",
        "no_choices",
        "no_json",
        "slow",
        "wrong_answer",
        "parts_ignored",
        "one_chunk",
        "counts_wrong",
        "no_stream_usage",
        "stream_breaks",
        "no_tool_parser",
        "wrong_tool",
        "wrong_unit",
        "wrong_place",
        "broken_arguments",
        "call_ends_with_stop",
        "stream_loses_arguments",
        "colour_blind",
        "image_error",
        "image_ignored",
        "no_reasoning_parser",
        "special_token",
    }
)


@dataclass
class Engine:
    """How the simulated engine is set up; ``faults`` from :data:`FAULTS`."""

    family: str = "m2"
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    faults: frozenset[str] = frozenset()
    api_key: str | None = None
    starts_for: float = 0.0
    born: float = field(default_factory=time.monotonic)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        unknown = self.faults - FAULTS
        if unknown:
            raise ValueError(f"no such fault: {unknown}")
        fitting = {"m2": ("minimax-m2", "minimax-append-think"), "m3": ("minimax-m3", "minimax-m3")}[
            self.family
        ]
        self.tool_parser = self.tool_parser or fitting[0]
        self.reasoning_parser = self.reasoning_parser or fitting[1]
        if "no_tool_parser" in self.faults:
            self.tool_parser = None
        if "no_reasoning_parser" in self.faults:
            self.reasoning_parser = None

    @property
    def name(self) -> str:
        return "Someone/Else" if "wrong_name" in self.faults else NAMES[self.family]

    @property
    def starting(self) -> bool:
        return time.monotonic() - self.born < self.starts_for

    # What the "model" writes -----------------------------------------------------------------------------

    def raw(self, thought: str, answer: str) -> str:
        """Text as the model writes it: M2's template opens the thought, M3 opens it itself."""
        if self.family == "m3":
            return f"<mm:think>{thought}</mm:think>{answer}"
        return f"{thought}</think>{answer}"

    def reply(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return content, reasoning, calls (name, arguments) and finish reason."""
        message = request["messages"][-1]
        parts = message["content"] if isinstance(message["content"], list) else None
        text = message["content"] if parts is None else "".join(part.get("text", "") for part in parts)
        pictures = [part for part in parts or [] if part["type"] == "image_url"]
        if request.get("tools") and text in {questions.TOOL_QUESTION, questions.TOOL_QUESTION_GUIDE}:
            return self.call(request)
        if pictures:
            colour = "red" if "colour_blind" in self.faults else colour_of(pictures[0]["image_url"]["url"])
            answer = f"The image is {colour}."
        elif text == questions.GUIDE_QUESTION:
            answer = "The Los Angeles Dodgers won."
            if "wrong_answer" in self.faults or ("parts_ignored" in self.faults and parts is not None):
                answer = "What is your question?"
        elif text == questions.COUNT_QUESTION:
            answer = "one, two, three, four, five"
            if "counts_wrong" in self.faults:
                answer = "five, four, three, two, one"
        else:
            answer = "" if "empty_answer" in self.faults else "Hello from the simulated engine."
        if "special_token" in self.faults:
            answer += "[e~["
        content, reasoning = self.parse_reasoning(self.raw("think", answer))
        finish = "length" if "runs_on" in self.faults else "stop"
        return {"content": content, "reasoning": reasoning, "calls": [], "finish": finish}

    def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the reply that calls the tool, as the parsers at work leave it."""
        arguments = ARGUMENTS
        if "wrong_unit" in self.faults:
            arguments = arguments.replace("celsius", "fahrenheit")
        if "wrong_place" in self.faults:
            arguments = arguments.replace("Beijing", "Boston")
        if "broken_arguments" in self.faults:
            arguments = arguments[:-3]
        name = "get_time" if "wrong_tool" in self.faults else "get_weather"
        if request.get("tool_choice", "auto") != "auto":
            # A forced call is JSON from its first character on; minimax-append-think leaves it as content.
            text = json.dumps([{"name": name, "parameters": json.loads(ARGUMENTS)}])
            if self.reasoning_parser == "minimax-append-think":
                return {"content": f"<think>{text}", "reasoning": None, "calls": [], "finish": "stop"}
            return {"content": None, "reasoning": None, "calls": [(name, arguments)], "finish": "stop"}
        content, reasoning = self.parse_reasoning(self.raw("need the tool", CALL[self.family]))
        reads = {"minimax-m2": "m2", "minimax-m3": "m3"}.get(self.tool_parser or "")
        if reads != self.family:
            return {"content": content, "reasoning": reasoning, "calls": [], "finish": "stop"}
        content = content.replace(CALL[self.family], "")
        finish = "stop" if "call_ends_with_stop" in self.faults else "tool_calls"
        return {
            "content": content or None,
            "reasoning": reasoning,
            "calls": [(name, arguments)],
            "finish": finish,
        }

    def parse_reasoning(self, raw: str) -> tuple[str, str | None]:
        """Split or mark the thought as the reasoning parser does."""
        if self.reasoning_parser == "minimax-append-think":
            return f"<think>{raw}", None
        end = {"minimax": "</think>", "minimax-m3": "</mm:think>"}.get(self.reasoning_parser or "")
        if end and end in raw:
            thought, _, answer = raw.partition(end)
            return answer, thought.removeprefix("<mm:think>")
        return raw, None

    # What goes over the wire -----------------------------------------------------------------------------

    def completion(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the body of a plain chat completion."""
        reply = self.reply(request)
        calls = [
            {
                "id": f"call_{index}",
                "index": index,
                "type": "function",
                "function": {"name": n, "arguments": a},
            }
            for index, (n, a) in enumerate(reply["calls"])
        ]
        message = {
            "role": "assistant",
            "content": reply["content"],
            "reasoning_content": reply["reasoning"],
            "tool_calls": calls or None,
        }
        choice = {"index": 0, "message": message, "finish_reason": reply["finish"], "logprobs": None}
        return {
            **self.head("chat.completion"),
            "choices": [] if "no_choices" in self.faults else [choice],
            "usage": None if "no_usage" in self.faults else usage(),
        }

    def chunks(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the chunks of a streamed chat completion."""
        reply = self.reply(request)

        def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return {**self.head("chat.completion.chunk"), "choices": [choice], "usage": None}

        yield chunk({"role": "assistant", "content": ""})
        for key, text in (("reasoning_content", reply["reasoning"]), ("content", reply["content"])):
            size = len(text or "") if "one_chunk" in self.faults else 6
            for start in range(0, len(text or ""), size or 1):
                yield chunk({key: text[start : start + size]})
        for index, (name, arguments) in enumerate(reply["calls"]):
            yield chunk({"tool_calls": [call_delta(index, name, "")]})
            pieces = [arguments[start : start + 7] for start in range(0, len(arguments), 7)]
            if "stream_loses_arguments" in self.faults:
                pieces = pieces[:-1]
            for piece in pieces:
                yield chunk({"tool_calls": [call_delta(index, None, piece)]})
        yield chunk({}, reply["finish"])
        if request.get("stream_options", {}).get("include_usage") and "no_stream_usage" not in self.faults:
            yield {**self.head("chat.completion.chunk"), "choices": [], "usage": usage()}

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": "1", "object": kind, "created": 1, "model": self.name}


def usage() -> dict[str, int]:
    return {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16, "reasoning_tokens": 2}


def call_delta(index: int, name: str | None, arguments: str) -> dict[str, Any]:
    return {
        "index": index,
        "id": f"call_{index}" if name else None,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def colour_of(url: str) -> str:
    """Look at the first pixel of a PNG as the checks draw it."""
    data = base64.b64decode(url.partition(",")[2])
    body = data.index(b"IDAT") + 4
    size = int.from_bytes(data[body - 8 : body - 4], "big")
    pixel = tuple(zlib.decompress(data[body : body + size])[1:4])
    return next(name for name, rgb in questions.COLOURS.items() if rgb == pixel)


class Handler(BaseHTTPRequestHandler):
    """The endpoints that were seen to answer on a real server."""

    protocol_version = "HTTP/1.1"
    engine: Engine

    def do_GET(self) -> None:
        engine = self.engine
        engine.asked.append(self.path)
        if self.path in {"/health", "/health_generate", "/ready", "/ping"}:
            self.answer(503 if engine.starting else 200, b"")
        elif not self.authorised():
            self.answer_json(401, {"error": {"message": "Unauthorized"}})
        elif self.path == "/v1/models":
            data = [{"id": engine.name, "object": "model", "owned_by": "sglang", "max_model_len": 196608}]
            self.answer_json(200, {"object": "list", "data": [] if "models_empty" in engine.faults else data})
        elif self.path == "/model_info":
            self.answer_json(200, {"model_path": engine.name, "is_generation": True})
        else:
            self.answer_json(404, {"error": {"message": "Not Found"}})

    def do_POST(self) -> None:
        engine = self.engine
        engine.asked.append(self.path)
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        pictures = "image_url" in json.dumps(request["messages"])
        if not self.authorised():
            self.answer_json(401, {"error": {"message": "Unauthorized"}})
        elif "error_500" in engine.faults or ("image_error" in engine.faults and pictures):
            self.answer_json(500, {"error": {"message": "CUDA out of memory", "code": 500}})
        elif pictures and engine.family == "m2" and "image_ignored" not in engine.faults:
            self.answer_json(400, {"error": {"message": "This model does not support images", "code": 400}})
        elif "slow" in engine.faults:
            time.sleep(4)
            self.close_connection = True
        elif "no_json" in engine.faults:
            self.answer(200, b"<html>a proxy's page</html>", "application/json")
        elif request.get("stream"):
            self.answer_stream(request)
        else:
            self.answer_json(200, engine.completion(request))

    def authorised(self) -> bool:
        return self.engine.api_key is None or self.headers["Authorization"] == f"Bearer {self.engine.api_key}"

    def answer_stream(self, request: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, chunk in enumerate(self.engine.chunks(request)):
            if "stream_breaks" in self.engine.faults and number == 2:
                self.close_connection = True
                return
            self.piece(f"data: {json.dumps(chunk)}\n\n".encode())
        self.piece(b"data: [DONE]\n\n")
        self.piece(b"")

    def piece(self, body: bytes) -> None:
        self.wfile.write(f"{len(body):x}\r\n".encode() + body + b"\r\n")

    def answer_json(self, status: int, body: Any) -> None:
        self.answer(status, json.dumps(body).encode(), "application/json")

    def answer(self, status: int, body: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Tests read ``Engine.asked`` instead."""


@contextmanager
def serve(engine: Engine) -> Iterator[str]:
    """Serve an engine on a free loopback port; yield its URL."""
    handler = type("BoundHandler", (Handler,), {"engine": engine})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""A simulated engine: SGLang's HTTP surface in front of canned answers, with faults to plant.

It stands for a SGLang server that serves MiniMax-M2.5 or MiniMax-M3, as seen on real servers of release
0.5.23 and read in its source: the parsers' ways with a thought and a tool call, the markup that leaks when
they do not fit the model, streaming, usage, pictures, prompts over the limit, ``/v1/messages``, keys, the
number of running requests, 503 while starting, ``/v1/models`` answering before that is over.

It cannot show: that a model says true things, that a parser copes with what a model really writes, speed,
memory, what the engine does under load, or anything about GPUs. Those need the real engine.
"""

from __future__ import annotations

import base64
import json
import socket
import ssl
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from minimax_metal.host.check import questions

NAMES = {"m2": "MiniMaxAI/MiniMax-M2.5", "m3": "MiniMaxAI/MiniMax-M3"}
LIMIT = 4096
NAMESPACE = "]<]minimax[>["
PACE = 0.002
"""Seconds per token of an answer that ignores the end token: some 6 s for the longest requested one."""

GUIDES_MISTAKE = [
    "reasoning",
    "turns",
    "tool_call",
    "tool_call_stream",
    "tool_required",
    "tool_named",
    "tool_several",
    "tool_parallel",
    "messages_turns",
    "messages_tool",
    "messages_tool_stream",
    "messages_tool_any",
    "markup",
]
"""What fails on M3 with its guide's parsers, simulated and real (tests/contract)."""

FAULTS = frozenset(
    {
        "abort_ignored",
        "choices_ignored",
        "logprobs_missing",
        "marker_refused",
        "messages_turns_lost",
        "parallel_same_id",
        "queue_keeps_the_gone",
        "schema_ignored",
        "effort_refused",
        "seed_refused",
        "stop_ignored",
        "system_cut",
        "turns_leak",
        "turns_lost",
        "unicode_cut",
        "broken_arguments",
        "call_ends_with_stop",
        "colour_blind",
        "counts_wrong",
        "drops_under_load",
        "echoes_key",
        "empty_answer",
        "error_500",
        "hangs",
        "ignore_eos_refused",
        "image_error",
        "image_ignored",
        "image_kills",
        "key_ignored",
        "keyless_open",
        "loads_stand_still",
        "long_prompt_error",
        "messages_any_ignored",
        "messages_empty",
        "messages_image_dropped",
        "messages_missing",
        "messages_no_stream_usage",
        "messages_no_usage",
        "messages_one_event",
        "messages_open",
        "messages_runs_on",
        "messages_stream_breaks",
        "messages_stream_error",
        "messages_stream_loses_input",
        "messages_tool_as_text",
        "metrics_foreign",
        "mixes_answers",
        "models_empty",
        "named_ignored",
        "no_choices",
        "no_defaults",
        "no_json",
        "no_reasoning_parser",
        "no_stream_usage",
        "no_tool_parser",
        "no_usage",
        "one_call_only",
        "one_chunk",
        "over_limit_500",
        "over_limit_kills",
        "parts_ignored",
        "prompt_uncounted",
        "required_ignored",
        "result_unread",
        "runs_on",
        "sampling_openai",
        "slow",
        "special_token",
        "stream_breaks",
        "stream_choiceless",
        "stream_loses_arguments",
        "thought_lost",
        "truncates",
        "wrong_answer",
        "wrong_model_500",
        "wrong_name",
        "wrong_place",
        "wrong_tool",
        "wrong_unit",
    }
)


def markup(family: str, calls: list[tuple[str, dict[str, str]]]) -> str:
    """Return tool calls as the model writes them."""
    if family == "m3":
        invokes = "".join(
            f'{NAMESPACE}<invoke name="{name}">'
            + "".join(f"{NAMESPACE}<{k}>{v}{NAMESPACE}</{k}>" for k, v in arguments.items())
            + f"{NAMESPACE}</invoke>\n"
            for name, arguments in calls
        )
        return f"{NAMESPACE}<tool_call>\n{invokes}{NAMESPACE}</tool_call>"
    invokes = "\n".join(
        f'<invoke name="{name}">\n'
        + "\n".join(f'<parameter name="{k}">{v}</parameter>' for k, v in arguments.items())
        + "\n</invoke>"
        for name, arguments in calls
    )
    return f"<minimax:tool_call>\n{invokes}\n</minimax:tool_call>"


@dataclass
class Reply:
    """The parsers' result for the model's output; ``calls`` are names and arguments as JSON text."""

    content: str
    reasoning: str | None = None
    calls: list[tuple[str, str]] = field(default_factory=list)
    finish: str = "stop"


@dataclass
class Engine:
    """The configuration of the simulated engine; ``faults`` from :data:`FAULTS`."""

    family: str = "m2"
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    faults: frozenset[str] = frozenset()
    api_key: str | None = None
    metrics: bool = True
    gateway: bool = False
    """Only the paths of the two interfaces: those that a router in front of the engine forwards."""
    starts_for: float = 0.0
    pace: float = PACE
    model_path: str = "/srv/models/nowhere"
    served_name: str | None = None
    born: float = field(default_factory=time.monotonic)
    asked: list[str] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    running_limit: int | None = 4
    """``--max-running-requests``: further requests wait."""
    running: int = 0
    waiting: int = 0
    dead: bool = False
    responses: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    """Started answers, by path, method and status: counted like in the engine's middleware."""
    observed: dict[str, float] = field(default_factory=dict)
    """Other counters of ``/metrics``: aborted requests, and sums and counts of latencies."""
    lock: threading.Lock = field(default_factory=threading.Lock)

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

    def has(self, fault: str) -> bool:
        return fault in self.faults

    @property
    def name(self) -> str:
        return "Someone/Else" if self.has("wrong_name") else self.served_name or NAMES[self.family]

    @property
    def starting(self) -> bool:
        return time.monotonic() - self.born < self.starts_for

    @contextmanager
    def generating(self, left: Callable[[], bool] = lambda: False) -> Iterator[int]:
        """Count a request as running, after its turn in the queue; yield how many run with it.

        ``left`` tells whether its client has gone: the engine checks that for a waiting request.
        """
        with self.lock:
            queued = self.running_limit is not None and self.running >= self.running_limit
            self.waiting += queued
            self.running += not queued
            now = self.running
        while queued:
            time.sleep(0.005)
            with self.lock:
                if left() and not self.has("queue_keeps_the_gone"):
                    self.waiting -= 1
                    raise ConnectionError("the client has left the queue")
                if self.running < (self.running_limit or 0):
                    self.waiting -= 1
                    self.running += 1
                    now, queued = self.running, False
        try:
            yield now
        finally:
            with self.lock:
                self.running -= 1

    def responded(self, path: str, method: str, status: int) -> None:
        """Count an answer when it starts."""
        with self.lock:
            self.responses[path.partition("?")[0], method, status] += 1

    def observe(self, name: str, seconds: float, times: int = 1) -> None:
        """Count a latency, repeated if given a number."""
        self.add(f"{name}_sum", seconds * times)
        self.add(f"{name}_count", float(times))

    def add(self, counter: str, value: float) -> None:
        """Increase a counter of ``/metrics``."""
        self.observed[counter] = self.observed.get(counter, 0.0) + value

    # What the "model" writes -----------------------------------------------------------------------------

    def raw(self, thought: str, answer: str) -> str:
        """Text as the model writes it: M2's template opens the reasoning, M3 opens it itself."""
        if self.family == "m3":
            return f"<mm:think>{thought}</mm:think>{answer}"
        return f"{thought}</think>{answer}"

    def reply(self, request: dict[str, Any]) -> Reply:
        """Answer a request of the OpenAI interface."""
        message = request["messages"][-1]
        parts = message["content"] if isinstance(message["content"], list) else None
        text = message["content"] if parts is None else "".join(part.get("text", "") for part in parts)
        pictures = [part for part in parts or [] if part["type"] == "image_url"]
        if request.get("tools") and message["role"] == "user":
            if text in {questions.TOOL_QUESTION, questions.TOOL_QUESTION_GUIDE}:
                return self.call(request, ["Beijing"])
            if text == questions.TOOL_QUESTION_SEVERAL:
                return self.call(request, ["Beijing", "Shanghai"][: 1 if self.has("one_call_only") else 2])
        results = [one["content"] for one in request["messages"] if one["role"] == "tool"]
        if message["role"] == "tool" and len(results) == 2:
            answer = "21 degrees in Beijing, 25 degrees in Shanghai."
        elif message["role"] == "tool":
            read = message["content"] == questions.TOOL_RESULT and not self.has("result_unread")
            answer = "It is 21 degrees in Beijing." if read else "I can't know the weather."
        elif pictures:
            colour = "red" if self.has("colour_blind") else colour_of(pictures[0]["image_url"]["url"])
            answer = f"The image is {colour}."
        elif text == questions.GUIDE_QUESTION:
            answer = "The Los Angeles Dodgers won."
            if self.has("wrong_answer") or (self.has("parts_ignored") and parts is not None):
                answer = "What is your question?"
        elif text == questions.UNICODE_QUESTION:
            answer = "你好,世\ufffd🙂" if self.has("unicode_cut") else "你好,世界 🙂"
        elif "response_format" in request and not self.has("schema_ignored"):
            answer = '{"city": "Beijing", "sunny": true}'
        elif self.loses_the_thread(request):
            answer = "Hello again."
        elif text.startswith(questions.COUNT_QUESTION):
            answer = "one, two, three, four, five"
            if self.has("counts_wrong"):
                answer = "five, four, three, two, one"
        else:
            answer = "" if self.has("empty_answer") else "Hello from the simulated engine."
        if self.has("special_token"):
            answer += "[e~["
        if self.has("turns_leak") and len(request["messages"]) > 2 and "tools" not in request:
            answer = {"m2": "</think>", "m3": "</mm:think>"}[self.family] + answer
        content, reasoning = self.parse_reasoning(self.raw("think", answer))
        for stop in request.get("stop") or () if not self.has("stop_ignored") else ():
            content, reasoning = content.split(stop)[0], reasoning.split(stop)[0] if reasoning else None
        return Reply(content, reasoning, finish="length" if self.has("runs_on") else "stop")

    def loses_the_thread(self, request: dict[str, Any]) -> bool:
        """Whether the second question of a conversation is answered like the first."""
        second = len(request["messages"]) > 2 and "tools" not in request
        return second and self.has("messages_turns_lost" if request.get("anthropic") else "turns_lost")

    def call(self, request: dict[str, Any], places: list[str]) -> Reply:
        """Return the reply that calls the tool, as the active parsers return it."""
        name = "get_time" if self.has("wrong_tool") else "get_weather"
        unit = "fahrenheit" if self.has("wrong_unit") else "celsius"
        places = ["Boston" if self.has("wrong_place") else place for place in places]
        written = [(name, {"location": place, "unit": unit}) for place in places]
        calls = [(name, json.dumps(arguments)) for name, arguments in written]
        if self.has("broken_arguments"):
            calls = [(name, arguments[:-3]) for name, arguments in calls]
        choice = request.get("tool_choice", "auto")
        reads = {"minimax-m2": "m2", "minimax-m3": "m3"}.get(self.tool_parser or "")
        if choice != "auto" and reads == self.family:
            # A forced call is JSON; minimax-append-think leaves it as content, after the thought.
            text = json.dumps([{"name": name, "parameters": arguments} for name, arguments in written])
            if self.reasoning_parser == "minimax-append-think":
                return Reply(f"<think>use the tool</think>{text}")
            ignored = "named_ignored" if isinstance(choice, dict) else "required_ignored"
            if self.has(ignored) or (self.has("messages_any_ignored") and request.get("anthropic")):
                return Reply(text)
            return Reply("", None, calls, "tool_calls")
        content, reasoning = self.parse_reasoning(self.raw("use the tool", markup(self.family, written)))
        as_text = self.has("messages_tool_as_text") and request.get("anthropic")
        if reads != self.family or as_text:
            return Reply(content, reasoning)
        content = content.replace(markup(self.family, written), "")
        return Reply(content, reasoning, calls, "stop" if self.has("call_ends_with_stop") else "tool_calls")

    def parse_reasoning(self, raw: str) -> tuple[str, str | None]:
        """Split or mark the reasoning like the reasoning parser."""
        if self.reasoning_parser == "minimax-append-think":
            return f"<think>{raw}", None
        end = {"minimax": "</think>", "minimax-m3": "</mm:think>"}.get(self.reasoning_parser or "")
        if end and end in raw:
            thought, _, answer = raw.partition(end)
            return answer, None if self.has("thought_lost") else thought.removeprefix("<mm:think>")
        return raw, None

    # What goes over the wire -----------------------------------------------------------------------------

    def completion(self, request: dict[str, Any], reply: Reply) -> dict[str, Any]:
        """Return the body of a plain chat completion."""
        message = {
            "role": "assistant",
            "content": reply.content,
            "reasoning_content": reply.reasoning,
            "tool_calls": [
                {
                    "id": self.call_id(index),
                    "index": index,
                    "type": "function",
                    "function": {"name": name, "arguments": arguments},
                }
                for index, (name, arguments) in enumerate(reply.calls)
            ]
            or None,
        }
        choices = [
            {"index": index, "message": message, "finish_reason": reply.finish, "logprobs": None}
            for index in range(1 if self.has("choices_ignored") else request.get("n") or 1)
        ]
        if request.get("logprobs") and not self.has("logprobs_missing"):
            top = [{"token": "a", "logprob": -0.5, "bytes": [97]}] * request["top_logprobs"]
            choices[0]["logprobs"] = {"content": [{**top[0], "top_logprobs": top}] * 7}
        return {
            **self.head("chat.completion", request),
            "choices": [] if self.has("no_choices") else choices,
            "usage": None if self.has("no_usage") else self.usage(request),
        }

    def chunks(self, request: dict[str, Any], reply: Reply) -> Iterator[dict[str, Any]]:
        """Yield the chunks of a streamed chat completion."""

        def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return {**self.head("chat.completion.chunk", request), "choices": [choice], "usage": None}

        yield chunk({"role": "assistant", "content": ""})
        if request.get("ignore_eos"):
            for _ in range(request["max_tokens"]):
                time.sleep(self.pace)
                yield chunk({"content": "one "})
            reply = Reply("", finish="length")
        for key, text in (("reasoning_content", reply.reasoning), ("content", reply.content)):
            size = len(text or "") if self.has("one_chunk") else 6
            for start in range(0, len(text or ""), size or 1):
                yield chunk({key: (text or "")[start : start + size]})
        for index, (name, arguments) in enumerate(reply.calls):
            yield chunk({"tool_calls": [{**call_delta(index, name, ""), "id": self.call_id(index)}]})
            pieces = [arguments[start : start + 7] for start in range(0, len(arguments), 7)]
            if self.has("stream_loses_arguments"):
                pieces = pieces[:-1]
            for piece in pieces:
                yield chunk({"tool_calls": [call_delta(index, None, piece)]})
        yield chunk({}, reply.finish)
        wanted = request.get("stream_options", {}).get("include_usage") or self.has("stream_choiceless")
        if wanted and not self.has("no_stream_usage"):
            yield {**self.head("chat.completion.chunk", request), "choices": [], "usage": self.usage(request)}

    def call_id(self, index: int) -> str:
        return "call" if self.has("parallel_same_id") else f"call_{index}"

    def head(self, kind: str, request: dict[str, Any]) -> dict[str, Any]:
        return {"id": "1", "object": kind, "created": 1, "model": request["model"]}

    def usage(self, request: dict[str, Any]) -> dict[str, int]:
        prompt = 9 if self.has("prompt_uncounted") else self.prompt_tokens(request)
        said = request["max_tokens"] if request.get("ignore_eos") else 7
        return {
            "prompt_tokens": prompt,
            "completion_tokens": said,
            "total_tokens": prompt + said,
            "reasoning_tokens": 2,
        }

    def prompt_tokens(self, request: dict[str, Any]) -> int:
        """Count words, and cut the prompt off if that is the fault."""
        words = len(json.dumps(request["messages"]).split())
        if self.has("system_cut") and request["messages"][0]["role"] == "system":
            return min(words, 200)
        return min(words, 1000) if self.has("truncates") else words

    # What it says of itself -------------------------------------------------------------------------------

    def authorised(self, sent: str | None) -> bool:
        if self.api_key is None or self.has("key_ignored"):
            return True
        if self.has("keyless_open") and sent is None:
            return True
        return bool(sent == f"Bearer {self.api_key}")

    def get(self, path: str, authorization: str | None) -> tuple[int, bytes, str]:
        """Return status, body and content type of a GET."""
        if path in {"/health", "/health_generate", "/ready", "/ping"}:
            return 503 if self.starting else 200, b"", "text/plain"
        if path == "/metrics":
            return self.figures()
        status, body = (
            self.inform(path) if self.authorised(authorization) else (401, {"error": "Unauthorized"})
        )
        return status, json.dumps(body).encode(), "application/json"

    def inform(self, path: str) -> tuple[int, Any]:
        """Return status and body of the paths that require a key."""
        if path == "/v1/models":
            entry = {"id": self.name, "object": "model", "owned_by": "sglang", "max_model_len": LIMIT}
            return 200, {"object": "list", "data": [] if self.has("models_empty") else [entry]}
        if path == "/model_info" and not self.gateway:
            return 200, {
                "model_path": self.model_path,
                "is_generation": True,
                "preferred_sampling_params": None,
                "reasoning_parser": self.reasoning_parser,
                "tool_call_parser": self.tool_parser,
                "has_image_understanding": self.family == "m3",
            }
        if path == "/server_info" and not self.gateway:
            # The key in clear, as the engine has it here.
            says = "openai" if self.has("sampling_openai") else "model"
            info = {"api_key": self.api_key, "sampling_defaults": says, "version": "0.5.23"}
            return 200, {**info, "max_req_input_len": LIMIT - 6, "max_running_requests": self.running_limit}
        if path == "/v1/loads" and not self.gateway:
            running = 0 if self.has("loads_stand_still") else self.running
            return 200, {"loads": [{"num_running_reqs": running, "num_waiting_reqs": self.waiting}]}
        return 404, {"detail": "Not Found"}

    def figures(self) -> tuple[int, bytes, str]:
        """Return the answer of ``/metrics``."""
        if not self.metrics:
            return 404, b'{"detail":"Not Found"}', "application/json"
        if self.has("metrics_foreign"):
            return 200, b"node_load1 0.5\n", "text/plain"
        values = dict.fromkeys(("token_usage", "prompt_tokens_total", "generation_tokens_total"), 0)
        values = {"num_running_reqs": self.running, "num_queue_reqs": self.waiting} | values
        lines = [f'sglang:{name}{{model_name="m",tp_rank="0"}} {value}.0' for name, value in values.items()]
        lines += [f'sglang:{name}{{model_name="m"}} {value}' for name, value in self.observed.items()]
        with self.lock:
            # The labels of 0.5.23 (http_request_metrics.py), in the order in which they are written out.
            lines += [
                f'sglang:http_responses_total{{endpoint="{path}",method="{method}",status_code="{status}"}} '
                f"{count}.0"
                for (path, method, status), count in self.responses.items()
            ]
        return 200, ("\n".join(lines) + "\n").encode(), "text/plain; version=0.0.4"

    def refusal(self, request: dict[str, Any], authorization: str | None) -> tuple[int, str] | None:
        """Return status and message of a request that is not answered, and die if that is the fault."""
        pictures = "image_url" in json.dumps(request["messages"])
        tokens = len(json.dumps(request["messages"]).split())
        if self.has("echoes_key"):
            return 400, f"bad header: {authorization}"
        if self.has("error_500") or (self.has("image_error") and pictures):
            return 500, "CUDA out of memory"
        if self.has("no_defaults") and "temperature" not in request:
            return 500, "temperature is None"
        if self.has("wrong_model_500") and request["model"] not in NAMES.values():
            return 500, "no such adapter"
        if self.has("effort_refused") and request.get("reasoning_effort") not in {None, "low"}:
            return 400, "reasoning_effort: Input should be 'low'"
        if self.has("seed_refused") and "seed" in request:
            return 500, "seed is None"
        if self.has("marker_refused") and pictures and "<image>" in json.dumps(request["messages"]):
            return 400, "The number of image tokens does not match the number of images."
        if self.has("ignore_eos_refused") and request.get("ignore_eos"):
            return 400, "unknown field ignore_eos"
        if pictures and self.family == "m2" and not self.has("image_ignored"):
            self.dead = self.has("image_kills")
            return 400, "Model only supports text input; received unsupported content type 'image_url'."
        if tokens > LIMIT and not self.has("truncates"):
            self.dead = self.has("over_limit_kills")
            said = f"The input ({tokens} tokens) is longer than the model's context length ({LIMIT} tokens)."
            return (500, "CUDA error") if self.has("over_limit_500") else (400, said)
        if tokens > LIMIT // 3 and self.has("long_prompt_error"):
            return 500, "CUDA error: an illegal memory access was encountered"
        return None

    # /v1/messages ----------------------------------------------------------------------------------------

    def message(self, request: dict[str, Any], reply: Reply) -> dict[str, Any]:
        """Return the body of a plain message."""
        blocks: list[dict[str, Any]] = []
        if reply.reasoning:
            blocks.append({"type": "thinking", "thinking": reply.reasoning})
        if reply.content or not (reply.reasoning or reply.calls):
            blocks.append({"type": "text", "text": reply.content})
        for index, (name, arguments) in enumerate(reply.calls):
            try:
                given = json.loads(arguments)
            except ValueError:
                given = {}
            blocks.append({"type": "tool_use", "id": f"call_{index}", "name": name, "input": given})
        usage = {"input_tokens": self.prompt_tokens(request), "output_tokens": 7}
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "content": [] if self.has("messages_empty") else blocks,
            "model": request["model"],
            "stop_reason": "max_tokens" if self.has("messages_runs_on") else STOP[reply.finish],
            "usage": None if self.has("messages_no_usage") else usage,
        }

    def events(self, request: dict[str, Any], reply: Reply) -> Iterator[dict[str, Any]]:
        """Yield the events of a streamed message."""
        body = self.message(request, reply)
        tokens = 0 if self.has("messages_no_stream_usage") else 7
        start = {**body, "content": [], "usage": {"input_tokens": 9, "output_tokens": 0}}
        del start["stop_reason"]
        yield {"type": "message_start", "message": start}
        empty: dict[str, dict[str, Any]] = {
            "text": {"text": ""},
            "thinking": {"thinking": ""},
            "tool_use": {"input": {}},
        }
        if self.has("messages_stream_error"):
            # As the engine ends a stream that it can't go on with.
            error = {"type": "api_error", "message": "Internal server error"}
            yield {"type": "error", "error": error}
            yield {"type": "message_stop"}
            return
        for index, block in enumerate(body["content"]):
            kind = block["type"]
            yield {"type": "content_block_start", "index": index, "content_block": {**block, **empty[kind]}}
            key, text, delta = {
                "text": ("text", block.get("text", ""), "text_delta"),
                "thinking": ("thinking", block.get("thinking", ""), "thinking_delta"),
                "tool_use": ("partial_json", json.dumps(block.get("input")), "input_json_delta"),
            }[kind]
            size = len(text) or 1 if self.has("messages_one_event") else 6
            pieces = [text[at : at + size] for at in range(0, len(text), size)]
            if kind == "tool_use" and self.has("messages_stream_loses_input"):
                pieces = ['{"location": "Beijing"}']
            for piece in pieces:
                yield {"type": "content_block_delta", "index": index, "delta": {"type": delta, key: piece}}
            yield {"type": "content_block_stop", "index": index}
        yield {
            "type": "message_delta",
            "delta": {"stop_reason": body["stop_reason"]},
            "usage": {"input_tokens": 9, "output_tokens": tokens},
        }
        yield {"type": "message_stop"}


STOP = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def from_anthropic(request: dict[str, Any], drop_images: bool) -> dict[str, Any]:
    """Return a request of ``/v1/messages`` as the engine converts it to the OpenAI interface."""
    messages: list[dict[str, Any]] = []
    for message in request["messages"]:
        if isinstance(message["content"], str):
            messages.append(message)
            continue
        parts: list[dict[str, Any]] = []
        for block in message["content"]:
            if block["type"] == "text":
                parts.append(block)
            elif block["type"] == "image" and not drop_images:
                source = block["source"]
                url = f"data:{source['media_type']};base64,{source['data']}"
                parts.append({"type": "image_url", "image_url": {"url": url}})
            elif block["type"] == "tool_result":
                messages.append({"role": "tool", "content": block["content"]})
        if parts:
            messages.append({"role": message["role"], "content": parts})
    choice = {"any": "required", "auto": "auto"}[request.get("tool_choice", {"type": "auto"})["type"]]
    return {**request, "messages": messages, "tool_choice": choice, "anthropic": True}


def call_delta(index: int, name: str | None, arguments: str) -> dict[str, Any]:
    return {
        "index": index,
        "id": f"call_{index}" if name else None,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def colour_of(url: str) -> str:
    """Read the first pixel of a PNG drawn by the checks."""
    data = base64.b64decode(url.partition(",")[2])
    body = data.index(b"IDAT") + 4
    size = int.from_bytes(data[body - 8 : body - 4], "big")
    pixel = tuple(zlib.decompress(data[body : body + size])[1:4])
    return next(name for name, rgb in questions.COLOURS.items() if rgb == pixel)


class Handler(BaseHTTPRequestHandler):
    """The endpoints that a real server was seen to answer."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # header and body are two writes: 40 ms a request otherwise
    engine: Engine

    def handle(self) -> None:
        with suppress(ConnectionError, ssl.SSLError):  # clients leave when they like
            super().handle()

    def do_GET(self) -> None:
        engine = self.engine
        engine.asked.append(self.path)
        if self.gone():
            return
        self.answer(*engine.get(self.path, self.headers["Authorization"]))

    def do_POST(self) -> None:
        engine = self.engine
        engine.asked.append(self.path)
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        engine.requests.append(request)
        if self.gone():
            return
        anthropic = self.path == "/v1/messages"
        if not engine.authorised(self.headers["Authorization"]) and not (
            anthropic and engine.has("messages_open")
        ):
            self.unauthorised()
        elif anthropic and engine.has("messages_missing"):
            self.answer_json(404, {"detail": "Not Found"})
        elif engine.has("hangs"):
            time.sleep(8)
            self.close_connection = True
        else:
            if anthropic:
                request = from_anthropic(request, engine.has("messages_image_dropped"))
            refusal = engine.refusal(request, self.headers["Authorization"])
            if refusal is not None:
                self.refuse(anthropic, *refusal)
            else:
                self.generate(request)

    def send_response(self, code: int, message: str | None = None) -> None:
        self.engine.responded(self.path, self.command, code)
        super().send_response(code, message)

    def generate(self, request: dict[str, Any]) -> None:
        engine = self.engine
        with engine.generating(self.left) as running:
            if engine.has("drops_under_load") or engine.has("mixes_answers"):
                time.sleep(0.1)  # so that what was sent at once overlaps
            if engine.has("drops_under_load") and running > 1:
                self.answer_json(
                    503, {"object": "error", "message": "The request queue is full.", "code": 503}
                )
                return
            reply = engine.reply(request)
            if engine.has("mixes_answers") and running > 1:
                reply = Reply("<think>think</think>Hello from the simulated engine.")
            if engine.has("slow"):
                time.sleep(8)
            if engine.has("no_json"):
                self.answer(200, b"<html>a proxy's page</html>", "application/json")
            elif request.get("anthropic"):
                if request.get("stream"):
                    self.answer_stream(engine.events(request, reply), "messages_stream_breaks")
                else:
                    self.answer_json(200, engine.message(request, reply))
            elif request.get("stream"):
                self.answer_stream(engine.chunks(request, reply), "stream_breaks")
            else:
                self.answer_json(200, engine.completion(request, reply))

    def left(self) -> bool:
        """Return whether the client has closed the connection."""
        try:
            return not self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def gone(self) -> bool:
        """Close the connection without an answer if the engine is dead."""
        if self.engine.dead:
            self.close_connection = True
        return self.engine.dead

    def unauthorised(self) -> None:
        self.answer_json(401, {"error": "Unauthorized"})

    def refuse(self, anthropic: bool, status: int, message: str) -> None:
        if anthropic:
            error = {"type": "invalid_request_error", "message": message}
            self.answer_json(status, {"type": "error", "error": error})
        else:
            self.answer_json(
                status, {"object": "error", "message": message, "type": "BadRequestError", "code": status}
            )

    def answer_stream(self, pieces: Iterator[dict[str, Any]], breaks: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, piece in enumerate(pieces):
            if self.engine.has(breaks) and number == 2:
                self.close_connection = True
                return
            event = f"event: {piece['type']}\n" if "type" in piece else ""
            try:
                self.piece(f"{event}data: {json.dumps(piece)}\n\n".encode())
            except OSError:
                # The client has left; the engine frees the slot, unless that is the fault.
                self.close_connection = True
                if not self.engine.has("abort_ignored"):
                    return
        if self.close_connection:
            return
        if breaks == "stream_breaks":
            self.piece(b"data: [DONE]\n\n")
        self.piece(b"")

    def piece(self, body: bytes) -> None:
        if not self.close_connection:
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
def serve(engine: Engine, certificate: Path | None = None) -> Iterator[str]:
    """Serve an engine on a free loopback port, with TLS if given a certificate; yield its URL."""
    handler = type("BoundHandler", (Handler,), {"engine": engine})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if certificate is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate)
        # The handshake is each connection's own: one that fails must not end the others.
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http{'s' if certificate else ''}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

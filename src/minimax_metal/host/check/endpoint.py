"""The endpoint under test: the official clients, plain requests, and its own information."""

from __future__ import annotations

import ipaddress
import json
import os
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, wraps
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar, cast
from urllib.parse import urlsplit

import anthropic
import openai

from minimax_metal.host.check.answer import Answer, Call
from minimax_metal.host.check.bounds import Bounds
from minimax_metal.host.check.outcome import FailedError, SkippedError
from minimax_metal.host.check.report import shorten

NO_KEY: Final = "EMPTY"
"""The guides' placeholder for the key of an endpoint without one."""

WRONG_KEY: Final = "metal-check-wrong-key"
CONNECT_SECONDS: Final = 10.0
FINISH: Final = {
    "end_turn": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
}
"""``stop_reason`` of ``/v1/messages`` in terms of the OpenAI interface."""

NO_PROXIES: Final = {"all://": None, "http://": None, "https://": None}
STATUS_ERRORS: Final = (openai.APIStatusError, anthropic.APIStatusError)
TIMEOUT_ERRORS: Final = (openai.APITimeoutError, anthropic.APITimeoutError)
CONNECTION_ERRORS: Final = (openai.APIConnectionError, anthropic.APIConnectionError)
CLIENT_ERRORS: Final = (openai.OpenAIError, anthropic.AnthropicError)


@dataclass(frozen=True)
class Facts:
    """The engine's own information; every field is None if the endpoint does not report it.

    Read from ``/model_info``, ``/server_info`` and ``/v1/models`` (SGLang 0.5.23). ``/server_info`` contains
    the engine's key in clear: three fields of it are used and the rest is dropped.
    """

    reasoning_parser: str | None = None
    tool_call_parser: str | None = None
    says_parsers: bool = False
    images: bool | None = None
    limit: int | None = None
    prompt_limit: int | None = None
    running_limit: int | None = None
    sampling_defaults: str | None = None
    model_path: str | None = None
    version: str | None = None


P = ParamSpec("P")
R = TypeVar("R")


def _understood(ask: Callable[P, R]) -> Callable[P, R]:
    """Treat an answer in another format as the endpoint's failure, not this program's.

    The clients' libraries validate next to nothing: ``null`` for an answer is None.
    """

    @wraps(ask)
    def asked(*arguments: P.args, **more: P.kwargs) -> R:
        try:
            return ask(*arguments, **more)
        except (AttributeError, TypeError, LookupError, RecursionError) as error:
            said = f"{type(error).__name__}: {shorten(str(error))}"
            raise FailedError("an answer in the API's format", said) from error

    return asked


class Endpoint:
    """One endpoint with its clients.

    Retries are off: a check that passes on the second try has not passed. The environment's proxy is for the
    internet, not for this host or its network; the environment's settings for other providers (keys, headers,
    organisations) are not used for this endpoint.
    """

    def __init__(
        self, url: str, model: str, key: str | None, timeout: float, ca_file: Path | None = None
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1").rstrip("/")
        self.model = model
        self.key = key
        self.timeout = timeout
        near = _is_near(urlsplit(self.url).hostname or "")
        self.tls = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
        verify: Any = self.tls if ca_file else True
        self.bounds = Bounds(timeout)
        options: dict[str, Any] = {"trust_env": not near, "verify": verify, **self.bounds.options()}
        connect = min(CONNECT_SECONDS, timeout)
        with _without_other_providers():
            self.openai = openai.OpenAI(
                base_url=f"{self.url}/v1",
                api_key=key or NO_KEY,
                max_retries=0,
                timeout=openai.Timeout(timeout, connect=connect),
                http_client=openai.DefaultHttpxClient(**options),
            )
            # The engine reads "Authorization: Bearer" only, so the key is an auth_token, not an api_key.
            self.anthropic = anthropic.Anthropic(
                base_url=self.url,
                auth_token=key or NO_KEY,
                max_retries=0,
                timeout=anthropic.Timeout(timeout, connect=connect),
                # This client uses the environment's proxies itself, trust_env or not.
                http_client=anthropic.DefaultHttpxClient(**options, mounts=NO_PROXIES if near else {}),
            )
        self.http = openai.DefaultHttpxClient(**options, timeout=openai.Timeout(timeout, connect=connect))

    def close(self) -> None:
        """Close every connection."""
        self.openai.close()
        self.anthropic.close()
        self.http.close()

    def get(self, path: str, *, key: str | None = None, timeout: float = 30.0) -> Any:
        """Return the response to a plain GET; ``key`` None sends the endpoint's own, "" sends none."""
        bearer = self.key if key is None else key
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        return self.http.get(f"{self.url}{path}", headers=headers, timeout=min(timeout, self.timeout))

    def is_there(self) -> bool:
        """Return whether anything answers at the URL, with any status."""
        try:
            self.get("/v1/models", timeout=CONNECT_SECONDS)
        except Exception:
            return False
        return True

    @cached_property
    def facts(self) -> Facts:
        """The engine's own information, requested once."""
        info, server, models = (self._json(path) for path in ("/model_info", "/server_info", "/v1/models"))
        listed = [entry for entry in _list(models.get("data")) if isinstance(entry, dict)]
        served = next((entry for entry in listed if entry.get("id") == self.model), {})
        return Facts(
            reasoning_parser=_text(info.get("reasoning_parser")),
            tool_call_parser=_text(info.get("tool_call_parser")),
            says_parsers="reasoning_parser" in info,
            images=_bool(info.get("has_image_understanding")),
            limit=_int(served.get("max_model_len")),
            prompt_limit=_int(server.get("max_req_input_len")),
            running_limit=_int(server.get("max_running_requests")),
            sampling_defaults=_text(server.get("sampling_defaults")),
            model_path=_text(info.get("model_path")),
            version=_text(server.get("version")),
        )

    def _json(self, path: str) -> Mapping[str, Any]:
        """Return the JSON object at a path, or nothing: a gateway need not forward the engine's own paths."""
        try:
            response = self.get(path)
            body = response.json() if response.status_code == 200 else None
        except Exception:
            return {}
        return body if isinstance(body, dict) else {}

    # The OpenAI interface ---------------------------------------------------------------------------------

    @_understood
    def chat(
        self, messages: list[dict[str, Any]], *, client: openai.OpenAI | None = None, **more: Any
    ) -> Answer:
        """Ask without streaming; ``more`` are additional request parameters."""
        response: Any = (client or self.openai).chat.completions.create(
            **{"model": self.model, "messages": cast(Any, messages), **more}
        )
        if not response.choices:
            raise FailedError("a choice in the response", shorten(response.model_dump_json()))
        choice = response.choices[0]
        calls = tuple(
            Call(str(call.function.name), str(call.function.arguments or ""), str(call.id or ""))
            for call in choice.message.tool_calls or []
        )
        usage = response.usage
        return Answer(
            choice.message.content or "",
            _thought(choice.message),
            choice.finish_reason,
            calls,
            usage.completion_tokens if usage else None,
            usage.prompt_tokens if usage else None,
        )

    @_understood
    def stream(self, messages: list[dict[str, Any]], **more: Any) -> Answer:
        """Ask with streaming and usage; return the assembled answer."""
        begun = time.monotonic()
        content: list[str] = []
        reasoning: list[str] = []
        calls: dict[int, Call] = {}
        finish, usage, times = None, None, []
        chunks: Any = self.openai.chat.completions.create(
            model=self.model,
            messages=cast(Any, messages),
            stream=True,
            stream_options={"include_usage": True},
            **more,
        )
        for chunk in chunks:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                thought = _thought(choice.delta)
                if choice.delta.content or thought:
                    times.append(time.monotonic() - begun)
                content.append(choice.delta.content or "")
                reasoning.append(thought)
                finish = choice.finish_reason or finish
                for delta in choice.delta.tool_calls or []:
                    before = calls.get(delta.index, Call("", ""))
                    function = delta.function
                    calls[delta.index] = Call(
                        before.name + ((function.name or "") if function else ""),
                        before.arguments + ((function.arguments or "") if function else ""),
                        before.id or delta.id or "",
                    )
        return Answer(
            "".join(content),
            "".join(reasoning),
            finish,
            tuple(calls[index] for index in sorted(calls)),
            usage.completion_tokens if usage else None,
            usage.prompt_tokens if usage else None,
            len(times),
            times[0] if times else 0.0,
            times[-1] if times else 0.0,
        )

    @contextmanager
    def asking(self, more: Mapping[str, Any], question: str) -> Iterator[None]:
        """Send a question without waiting for the answer; the connection is closed when the block ends.

        Raises:
            SkippedError: no direct connection to the endpoint is possible (a proxy is in between).
        """
        parts = urlsplit(self.url)
        body = {"model": self.model, "messages": [{"role": "user", "content": question}], **more}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key or NO_KEY}"}
        host, port = parts.hostname or "", parts.port
        connection = (
            HTTPSConnection(host, port, timeout=CONNECT_SECONDS, context=self.tls)
            if parts.scheme == "https"
            else HTTPConnection(host, port, timeout=CONNECT_SECONDS)
        )
        try:
            connection.request("POST", f"{parts.path}/v1/chat/completions", json.dumps(body), headers)
            yield
        except OSError as error:
            raise SkippedError(f"no connection of its own to the endpoint ({error})") from None
        finally:
            connection.close()

    # The Anthropic interface ------------------------------------------------------------------------------

    @_understood
    def message(self, messages: list[dict[str, Any]], **more: Any) -> tuple[Answer, list[dict[str, Any]]]:
        """Ask ``/v1/messages`` without streaming; return the answer and its raw blocks."""
        response: Any = self.anthropic.messages.create(model=self.model, messages=cast(Any, messages), **more)
        return _from_blocks(response)

    @_understood
    def message_stream(self, messages: list[dict[str, Any]], **more: Any) -> Answer:
        """Ask ``/v1/messages`` with streaming; return the answer as the client assembles it."""
        pieces = 0
        with self.anthropic.messages.stream(model=self.model, messages=cast(Any, messages), **more) as stream:
            for event in stream:
                pieces += event.type in {"text", "thinking"}
            answer, _ = _from_blocks(stream.get_final_message())
        return Answer(
            answer.content, answer.reasoning, answer.finish, answer.calls, answer.tokens, pieces=pieces
        )


def _from_blocks(response: Any) -> tuple[Answer, list[dict[str, Any]]]:
    blocks: list[dict[str, Any]] = [block.model_dump(exclude_none=True) for block in response.content or []]
    if not blocks:
        raise FailedError("a content block in the message", shorten(response.model_dump_json()))

    def joined(kind: str, field: str) -> str:
        return "".join(block.get(field) or "" for block in blocks if block.get("type") == kind)

    calls = tuple(
        Call(str(block.get("name")), json.dumps(block.get("input"), ensure_ascii=False), block.get("id", ""))
        for block in blocks
        if block.get("type") == "tool_use"
    )
    usage = response.usage
    answer = Answer(
        joined("text", "text"),
        joined("thinking", "thinking"),
        FINISH.get(response.stop_reason, response.stop_reason),
        calls,
        usage.output_tokens if usage else None,
        usage.input_tokens if usage else None,
    )
    return answer, blocks


def _thought(said: Any) -> str:
    """Return the reasoning of a message or delta: SGLang's field, or vLLM's newer one (vllm PR #50594)."""
    return getattr(said, "reasoning_content", None) or getattr(said, "reasoning", None) or ""


@contextmanager
def _without_other_providers() -> Iterator[None]:
    """Hide the clients' own variables while they are created: other accounts must not be used for this
    endpoint.
    """
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(_PROVIDERS)}
    try:
        yield
    finally:
        os.environ.update(hidden)


_PROVIDERS: Final = ("OPENAI_", "ANTHROPIC_")


def _is_near(host: str) -> bool:
    """Return whether a host is this machine or has a private address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return False


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _bool(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []

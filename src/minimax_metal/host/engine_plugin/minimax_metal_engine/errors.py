"""Refusals in the error format of each of the engine's interfaces (0.5.23, http_server.py)."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}
OPENAI = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "BadRequestError",
    408: "BadRequestError",
    413: "BadRequestError",
    415: "BadRequestError",
    429: "RateLimitError",
    503: "ServiceUnavailableError",
}


class Refused(Exception):  # noqa: N818  # said to a client, not a failure
    """A refused request: the status, and what to do about it."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None, retry: int = 0
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry = retry
        """Seconds after which a client may retry; 0: not told."""

    def body(self, path: str) -> bytes:
        """Return the refusal in the format of the interface behind a path."""
        if path.startswith("/v1/messages"):
            return _json(
                {
                    "type": "error",
                    "error": {"type": ANTHROPIC.get(self.status, "api_error"), "message": self.message},
                }
            )
        if path.startswith("/api/"):
            return _json({"error": self.message})
        kind = OPENAI.get(self.status, "BadRequestError")
        if self.code is not None:
            kind = "invalid_request_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code or self.status}
        if path.startswith("/v1/responses") or self.code is not None:
            return _json({"error": error})
        return _json({"object": "error", **error})


def _json(content: Any) -> bytes:
    return json.dumps(content).encode()


async def answer(send: Send, path: str, refused: Refused, *, close: bool = False) -> None:
    """Answer a refused request; ``close``: its body was not read, so nothing can follow it."""
    body = refused.body(path)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.retry:
        headers.append((b"retry-after", str(refused.retry).encode()))
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

"""Hugging Face's protocol in the variants of repository managers and mirrors, around the hub's own.

``artifactory``  answers 404 to every unknown parameter, sends no ``siblings`` and no
                 ``X-Repo-Commit`` (huggingface/huggingface_hub issues 2974 and 1796, pull request 3241)
``nexus``        sends file names only, has no tree, forwards HEAD of each file
                 (sonatype/nexus-public issue 828)
``hf-mirror``    forwards the hub's answers, but some files without a Content-Length to HEAD
                 (huggingface/huggingface_hub issue 2362)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

DIALECTS = ("artifactory", "nexus", "hf-mirror")


@dataclass
class Dialect:
    """Speaks ``name`` around ``app``."""

    app: ASGIApp
    name: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        path = scope.get("path", "")
        described = path.startswith("/api/models/") and "/revision/" in path
        tree = path.startswith("/api/models/") and "/tree/" in path
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif (self.name != "hf-mirror" and described and scope["query_string"]) or (
            self.name == "nexus" and tree
        ):
            body = {"errors": [{"status": 404, "message": "Not Found"}]}
            await JSONResponse(body, 404)(scope, receive, send)
        elif self.name != "hf-mirror" and described:
            await self._described(scope, receive, send)
        else:
            await self.app(scope, receive, self._plain(scope, send))

    def _plain(self, scope: Scope, send: Send) -> Send:
        async def passed_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=list(message["headers"]))
                if self.name != "hf-mirror":
                    del headers["x-repo-commit"]
                elif scope["method"] == "HEAD" and scope["path"].endswith(".json"):
                    del headers["content-length"]
                message = {**message, "headers": headers.raw}
            await send(message)

        return passed_on

    async def _described(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Remove from a description what the manager does not send."""
        start: Message = {}
        content = b""

        async def kept(message: Message) -> None:
            nonlocal start, content
            if message["type"] == "http.response.start":
                start = message
            else:
                content += message.get("body", b"")

        await self.app(scope, receive, kept)
        raw: dict[str, Any] = json.loads(content or b"{}")
        if self.name == "artifactory":
            raw.pop("siblings", None)
        else:
            raw["siblings"] = [{"rfilename": one["rfilename"]} for one in raw.get("siblings", [])]
        code = Headers(raw=start["headers"]).get("x-error-code")
        more = {"X-Error-Code": code} if code else {}
        await JSONResponse(raw, start["status"], more)(scope, receive, send)

"""The hub as one ASGI application."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from lab.hub import git, huggingface, modelscope
from lab.hub.accesslog import AccessLog
from lab.hub.dialects import Dialect
from lab.hub.faults import Faults
from lab.hub.store import Store


def create(
    root: Path,
    log: TextIO,
    page: int = huggingface.PAGE,
    faults: Path | None = None,
    dialect: str | None = None,
) -> ASGIApp:
    """Return the hub over the repositories published under ``root``; requests are logged to ``log``.

    New publications are served from the next request on. ``GET /healthz`` answers "ok". ``dialect``: one of
    :data:`lab.hub.dialects.DIALECTS`. ``faults``: the file that :mod:`lab.hub.faults` reads, whether it
    exists yet or not.
    """
    store = Store(root)

    async def health(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    app = Starlette(
        routes=[
            Route("/healthz", health),
            *git.routes(store),
            *modelscope.routes(store),
            *huggingface.routes(store, page),
        ]
    )
    spoken: ASGIApp = app if dialect is None else Dialect(app, dialect)
    return AccessLog(Faults(spoken, faults), log)

"""Answers with a file: whole, or the requested ranges (RFC 9110, section 14)."""

from __future__ import annotations

from pathlib import Path

from starlette.responses import FileResponse, Response
from starlette.types import Message, Receive, Scope, Send


class _Blocks(FileResponse):
    """Starlette's file response, read in blocks of 1 MiB: weights are large, and each block costs a thread
    switch.
    """

    chunk_size = 1 << 20


class _Slices(_Blocks):
    """A part with status 200: ``Content-Range`` and length are those of the part."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def as_ok(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 206:
                message = {**message, "status": 200}
            await send(message)

        await super().__call__(scope, receive, as_ok)


def file_response(path: Path, name: str, headers: dict[str, str], *, slices_as_ok: bool = False) -> Response:
    """Return the file at ``path`` under the file name ``name``, with ``headers`` (which hold its ETag).

    ``slices_as_ok``: answer a range with 200 in the place of 206.
    """
    kind = _Slices if slices_as_ok else _Blocks
    return kind(
        path, headers=headers, media_type="application/octet-stream", filename=name.rpartition("/")[2]
    )

"""Answers that carry a file: whole, or the ranges that were asked for (RFC 9110, section 14)."""

from __future__ import annotations

from pathlib import Path

from starlette.responses import FileResponse, Response


class _Blocks(FileResponse):
    """Starlette's file response, read in blocks of 1 MiB: weights are large, and each block costs a thread's
    turn.
    """

    chunk_size = 1 << 20


def file_response(path: Path, name: str, headers: dict[str, str]) -> Response:
    """Return the file at ``path`` under the file name ``name``, with ``headers`` (which hold its ETag)."""
    return _Blocks(
        path, headers=headers, media_type="application/octet-stream", filename=name.rpartition("/")[2]
    )

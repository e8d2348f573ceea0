"""What the engine would open on behalf of a client: images, videos, sounds, files, in any request.

The engine (0.5.23, ``utils/common.py``) takes a URL, ``file://``, a bare path or base64 for each of them, and
follows redirects wherever they lead. Here only ``data:`` passes, and addresses of the domains that were
allowed: those are fetched by the guard itself (``fetch.py``) and handed on as ``data:``, so that the engine
opens nothing.

A request is walked whole. Below a key that holds media every text counts as something to open, but for the
few that only describe it. What is never opened is passed over: descriptions of tools, schemas, arguments.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import Refused
from .images import ImageError, pixels

KINDS = {
    "image": "image",
    "images": "image",
    "image_url": "image",
    "image_urls": "image",
    "image_data": "image",
    "image_path": "image",
    "input_image": "image",
    "video": "video",
    "videos": "video",
    "video_url": "video",
    "video_data": "video",
    "video_path": "video",
    "input_video": "video",
    "audio": "audio",
    "audios": "audio",
    "audio_url": "audio",
    "audio_data": "audio",
    "audio_path": "audio",
    "input_audio": "audio",
    "file_url": "file",
    "file_data": "file",
}
"""Keys that hold media, and of which kind."""
DESCRIBES = frozenset(
    {"cache_control", "content_hash", "detail", "format", "hash", "id", "media_type", "mime_type"}
    | {"modalities", "modality", "type", "voice"}
)
"""Keys beside media that say something about it and are never opened."""
OPAQUE = frozenset(
    {"arguments", "chat_template_kwargs", "custom_params", "function", "function_call", "functions"}
    | {
        "input_schema",
        "json_schema",
        "logit_bias",
        "metadata",
        "response_format",
        "sampling_params",
        "schema",
    }
    | {"tool_calls", "tool_choice", "tools"}
)
"""Keys below which nothing is opened, and where a name such as ``image_url`` is the client's own business."""
CALLS = frozenset({"mcp_tool_use", "server_tool_use", "tool_use"})
"""Blocks of Anthropic's whose ``input`` is the arguments of a tool."""
LARGEST_DEPTH = 200
MOST_REMOTE = 8


@dataclass(frozen=True)
class Media:
    """One text that the engine would open: where it is, and of which kind it is."""

    holder: Any
    """The dictionary or list that holds it."""
    place: Any
    kind: str
    text: str


def found_in(body: Any, *, vertex: bool = False) -> Iterator[Media]:
    """Everything in a request that the engine would open.

    ``vertex``: ``parameters`` holds what the engine takes for the request itself (``/vertex_generate``).

    Raises:
        Refused: it is nested deeper than anything real.
    """
    if not isinstance(body, (dict, list)):
        return
    opaque = OPAQUE if vertex else OPAQUE | {"parameters"}
    # (what, its kind where it is below a key that holds media, depth)
    waiting: list[tuple[Any, str | None, int]] = [(body, None, 0)]
    while waiting:
        value, kind, depth = waiting.pop()
        if depth > LARGEST_DEPTH:
            raise Refused(400, f"the request is nested deeper than {LARGEST_DEPTH} levels")
        pairs = _pairs(value, kind, opaque)
        for key, item, of in pairs:
            if isinstance(item, str):
                if of is not None and item:
                    yield Media(value, key, of, item)
            elif isinstance(item, (dict, list)):
                waiting.append((item, of, depth + 1))


def _pairs(value: Any, kind: str | None, opaque: frozenset[str]) -> Iterator[tuple[Any, Any, str | None]]:
    """What a dictionary or list holds, each with its kind of media; what is never opened is left out."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield number, item, kind
        return
    said = value.get("type")
    said = said if isinstance(said, str) else ""
    of_type = next((name for name in ("image", "video", "audio", "document", "file") if name in said), None)
    for key, item in value.items():
        if kind is not None:
            if key in DESCRIBES:
                continue
            if key in {"data", "text"} and kind in {"source", "input_audio"}:
                continue  # base64 or text, which the engine makes a data: URL of, or takes as it is
            if key == "content" and kind == "source":
                yield key, item, None
                continue
            yield key, item, ("image" if kind == "source" else kind)
        elif key in opaque or (key == "input" and said in CALLS):
            continue
        elif key == "input_audio":
            yield key, item, "input_audio"
        elif key in KINDS:
            yield key, item, KINDS[key]
        elif key == "source" and isinstance(item, dict) and said != "search_result":
            yield key, item, "source"
        elif key in {"url", "path"} and of_type is not None:
            yield key, item, of_type
        else:
            yield key, item, None


class Check:
    """One request's media against what is allowed."""

    def __init__(self, domains: frozenset[str], most_pixels: int) -> None:
        self.domains = domains
        self.most_pixels = most_pixels
        self.seen_pixels = 0

    def remote(self, body: Any, *, vertex: bool = False) -> list[Media]:
        """Check every item; return those that have to be fetched.

        Raises:
            Refused: one that may not be opened, or is too large once decoded.
        """
        wanted = []
        for item in found_in(body, vertex=vertex):
            if item.text.startswith("data:"):
                self.decoded(item.kind, item.text)
            elif self.domains and item.text.startswith(("http://", "https://")):
                wanted.append(item)
            else:
                raise Refused(400, self.not_allowed(item.text))
        for source in _sources(body):
            self.base64(source)
        if len(wanted) > MOST_REMOTE:
            raise Refused(400, f"{len(wanted)} remote media in a request, expected {MOST_REMOTE} at most")
        return wanted

    def not_allowed(self, text: str) -> str:
        """Why a text is not opened; the text itself may be anything, so its beginning is shown."""
        allowed = f"data: or {', '.join(sorted(self.domains))}" if self.domains else "data:"
        shown = "".join(letter if letter.isprintable() else "?" for letter in text[:60])
        return (
            f"media from {shown!r} is not allowed; expected {allowed}; send it as a data: URL, or have its "
            "domain added to metal_allowed_media_domains"
        )

    def decoded(self, kind: str, text: str) -> None:
        """Count the pixels of a ``data:`` URL, if it is an image."""
        if kind == "image":
            self.base64(text.partition(",")[2])

    def base64(self, text: str) -> None:
        """Count the pixels of an image in base64."""
        try:
            self.image(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError) as error:
            raise Refused(400, f"an image can't be decoded: {error}") from None

    def image(self, data: bytes) -> None:
        """Count the pixels of an image.

        Raises:
            Refused: all images so far have too many.
            ImageError: it is none.
        """
        self.seen_pixels += pixels(data)
        if self.seen_pixels > self.most_pixels:
            raise Refused(
                400,
                f"the images of the request have more than {self.most_pixels / 1e6:g} million pixels "
                "together; send smaller ones, or raise metal_max_image_megapixels",
            )


def _sources(body: Any) -> Iterator[str]:
    """Images of Anthropic's form in base64, which the engine makes ``data:`` URLs of."""
    waiting = [body]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            source = value.get("source")
            if (
                value.get("type") == "image"
                and isinstance(source, dict)
                and isinstance(source.get("data"), str)
            ):
                yield source["data"]
            waiting += [
                item for key, item in value.items() if key not in OPAQUE and isinstance(item, (dict, list))
            ]
        elif isinstance(value, list):
            waiting += [item for item in value if isinstance(item, (dict, list))]


__all__ = ["Check", "ImageError", "Media", "found_in"]

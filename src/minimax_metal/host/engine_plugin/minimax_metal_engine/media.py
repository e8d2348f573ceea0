"""Everything that the engine would open on behalf of a client: images, videos, sounds, files, in any request.

The engine (0.5.23, ``utils/common.py``) accepts a URL, ``file://``, a bare path or base64 for each of them,
and follows redirects anywhere. Here only ``data:`` passes, and URLs of allowed domains: the guard itself
downloads those (``fetch.py``) and embeds them as ``data:``, so that the engine opens nothing.

The whole request is searched. Below a key for media every text counts as something to open, except for a few
keys that only describe it. Parts that are never opened are skipped: tool descriptions, schemas, arguments.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .errors import Refused
from .films import FILMS, SOUNDS, is_film, is_sound
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
"""Keys that contain media, and their kind."""
DESCRIBES = frozenset(
    {"cache_control", "content_hash", "detail", "format", "hash", "id", "media_type", "mime_type"}
    | {"modalities", "modality", "type", "voice"}
)
"""Keys beside media that describe it and are never opened."""
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
"""Keys below which nothing is opened, so that a name such as ``image_url`` is harmless there."""
CALLS = frozenset({"mcp_tool_use", "server_tool_use", "tool_use"})
"""Anthropic's blocks whose ``input`` is a tool's arguments."""
CALLS_DEPTH = 4
"""The position of such a block: messages, a message, its content, the block. Elsewhere ``input`` may be
opened.
"""
IMAGE_DATA = "image in base64"
SOUND_DATA = "audio in base64"
"""Kinds of base64 data without a surrounding URL."""
SOURCES = frozenset({"source", "source of an image"})
BARE = {"source": None, "source of an image": IMAGE_DATA, "input_audio": SOUND_DATA}
"""Kinds below which ``data`` is not a URL, and what it is then."""
LARGEST_DEPTH = 200
MOST_PARTS = 200_000
"""Maximum dictionaries and lists of a request; long conversations with tools have some ten thousand."""
MOST_IMAGES = 1000
MOST_REMOTE = 8


@dataclass(frozen=True)
class Media:
    """One text that the engine would open: its position, and its kind."""

    holder: Any
    """The dictionary or list that contains it."""
    place: Any
    kind: str
    text: str


def found_in(body: Any, *, vertex: bool = False) -> Iterator[Media]:
    """Return everything in a request that the engine would open.

    ``vertex``: ``parameters`` contains what the engine treats as the request itself (``/vertex_generate``).

    Raises:
        Refused: it is nested deeper than any real request.
    """
    if not isinstance(body, (dict, list)):
        return
    opaque = OPAQUE if vertex else OPAQUE | {"parameters"}
    # (value, its kind if it is below a media key, depth)
    waiting: list[tuple[Any, str | None, int]] = [(body, None, 0)]
    parts = 0
    while waiting:
        value, kind, depth = waiting.pop()
        if depth > LARGEST_DEPTH:
            raise Refused(400, f"the request is nested deeper than {LARGEST_DEPTH} levels")
        pairs = _pairs(value, kind, opaque, depth)
        for key, item, of in pairs:
            if isinstance(item, str):
                if of is not None and item:
                    yield Media(value, key, of, item)
            elif isinstance(item, (dict, list)):
                parts += 1
                if parts > MOST_PARTS:
                    raise Refused(400, f"the request contains more than {MOST_PARTS} lists and objects")
                waiting.append((item, of, depth + 1))


def _pairs(
    value: Any, kind: str | None, opaque: frozenset[str], depth: int
) -> Iterator[tuple[Any, Any, str | None]]:
    """Yield the children of a dictionary or list, each with its kind of media; those never opened are
    skipped.
    """
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
            if key in {"data", "text"} and kind in BARE:
                # Base64 or text, which the engine turns into a data: URL, or uses as it is.
                if key == "data" and BARE[kind]:
                    yield key, item, BARE[kind]
                continue
            if key == "content" and kind in SOURCES:
                yield key, item, None
                continue
            yield key, item, ("image" if kind in SOURCES else kind)
        elif key in opaque or (key == "input" and said in CALLS and depth == CALLS_DEPTH):
            continue
        elif key == "input_audio":
            yield key, item, "input_audio"
        elif key in KINDS:
            yield key, item, KINDS[key]
        elif key == "source" and isinstance(item, dict) and said != "search_result":
            yield key, item, ("source of an image" if said == "image" else "source")
        elif key in {"url", "path"} and of_type is not None:
            yield key, item, of_type
        else:
            yield key, item, None


class Check:
    """Compares one request's media with what is allowed."""

    def __init__(self, domains: frozenset[str], most_pixels: int) -> None:
        self.domains = domains
        self.most_pixels = most_pixels
        self.seen = 0
        self.seen_pixels = 0

    def remote(self, body: Any, *, vertex: bool = False) -> list[Media]:
        """Check every item; return those that must be downloaded.

        Raises:
            Refused: one that is not allowed, or is too large once decoded.
        """
        wanted = []
        for item in found_in(body, vertex=vertex):
            if item.kind == IMAGE_DATA:
                self.base64(item.text)
            elif item.kind == SOUND_DATA:
                self.plays("audio", item.text)
            elif item.text.startswith("data:"):
                self.decoded(item.kind, item.text)
            elif self.domains and item.text.startswith(("http://", "https://")):
                wanted.append(item)
            else:
                raise Refused(400, self.not_allowed(item.text))
        if len(wanted) > MOST_REMOTE:
            raise Refused(400, f"{len(wanted)} remote media in a request, expected {MOST_REMOTE} at most")
        return wanted

    def not_allowed(self, text: str) -> str:
        """Return why a text is not opened; it may be anything, so only its beginning is shown."""
        allowed = f"data: or {', '.join(sorted(self.domains))}" if self.domains else "data:"
        shown = "".join(letter if letter.isprintable() else "?" for letter in text[:60])
        return (
            f"media from {shown!r} is not allowed; expected {allowed}; send it as a data: URL, or have its "
            "domain added to metal_allowed_media_domains"
        )

    def decoded(self, kind: str, text: str) -> None:
        """Check a ``data:`` URL: count an image's pixels; a video or a sound must be one."""
        content = text.partition(",")[2]
        if kind == "image":
            self.base64(content)
        elif kind in {"video", "audio"}:
            self.plays(kind, content)

    def plays(self, kind: str, text: str) -> None:
        """Check that base64 is a video or a sound, and not a list of addresses for the decoder to open.

        FFmpeg, the engine's decoder, decides by the bytes: it also accepts playlists (HLS, DASH, concat) and
        session descriptions (SDP), and opens the files, URLs and ports that they name.
        """
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise Refused(400, f"a {kind} can't be decoded: {error}") from None
        if not (is_film(data) if kind == "video" else is_film(data) or is_sound(data)):
            expected = FILMS if kind == "video" else f"{SOUNDS} or {FILMS}"
            raise Refused(400, f"found no {kind} in data sent as one; expected {expected}")

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
            ImageError: it is not an image.
        """
        self.seen += 1
        if self.seen > MOST_IMAGES:
            raise Refused(400, f"the request has more than {MOST_IMAGES} images")
        self.seen_pixels += pixels(data)
        if self.seen_pixels > self.most_pixels:
            raise Refused(
                400,
                f"the images of the request have more than {self.most_pixels / 1e6:g} million pixels "
                "together; send smaller ones, or raise metal_max_image_megapixels",
            )


__all__ = ["Check", "ImageError", "Media", "found_in"]

"""An image's decoded size, read from its header: a small file may have billions of pixels."""

from __future__ import annotations

import re
import struct

FORMATS = "PNG, JPEG, GIF, WebP or BMP"
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
"""JPEG's frame markers, which contain the size."""
STEPS = 4096
"""Maximum parts of a header; a JPEG with 48 MiB of colour profile has 800, and real ones have fewer."""
_PADDING = re.compile(rb"\xff+")


class ImageError(ValueError):
    """The bytes are not the beginning of an image in these formats."""


def pixels(data: bytes) -> int:
    """Return width times height.

    Raises:
        ImageError: not an image in an accepted format, or its header is cut off.
    """
    try:
        width, height = _size(data)
    except (struct.error, IndexError):
        raise ImageError(f"the image's header is damaged; expected {FORMATS}") from None
    if width <= 0 or height <= 0:
        raise ImageError("the image has no pixels")
    return width * height


def _size(data: bytes) -> tuple[int, int]:
    if data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR":
        width, height = struct.unpack_from(">II", data, 16)
        return width, height
    if data[:6] in {b"GIF87a", b"GIF89a"}:
        return _gif(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    if data[:2] == b"BM":
        if struct.unpack_from("<I", data, 14)[0] == 12:
            width, height = struct.unpack_from("<HH", data, 18)
        else:
            width, height = struct.unpack_from("<ii", data, 18)
        return width, abs(height)
    if data[:2] == b"\xff\xd8":
        return _jpeg(data)
    raise ImageError(f"found no image; expected {FORMATS}")


def _gif(data: bytes) -> tuple[int, int]:
    """Return the screen, or a frame that is larger than it."""
    width, height = struct.unpack_from("<HH", data, 6)
    place = 13 + (3 << ((data[10] & 7) + 1) if data[10] & 0x80 else 0)
    steps = 0
    while data[place] == 0x21:  # an extension, in blocks
        place += 2
        while data[place]:
            place += 1 + data[place]
            steps = _one_more(steps)
        place += 1
        steps = _one_more(steps)
    if data[place] == 0x2C:
        left, top, wide, high = struct.unpack_from("<HHHH", data, place + 1)
        width, height = max(width, left + wide), max(height, top + high)
    return width, height


def _webp(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ImageError(f"found a WebP of an unknown type; expected {FORMATS}")


def _jpeg(data: bytes) -> tuple[int, int]:
    """Return the largest frame before the first scan: decoders differ in which of several they use."""
    place, width, height, steps = 2, 0, 0, 0
    while True:
        steps = _one_more(steps)
        padding = _PADDING.match(data, place)
        if padding is None:
            raise ImageError(f"the image's header is damaged; expected {FORMATS}")
        place = padding.end()
        marker = data[place]
        if marker == 0xDA:
            return width, height
        if marker == 0x01 or 0xD0 <= marker <= 0xD9:
            place += 1
            continue
        length = struct.unpack_from(">H", data, place + 1)[0]
        if marker in _FRAMES:
            high, wide = struct.unpack_from(">HH", data, place + 4)
            width, height = max(width, wide), max(height, high)
        place += 1 + max(length, 2)


def _one_more(steps: int) -> int:
    """Count another part of a header: millions of them only serve to waste time."""
    if steps >= STEPS:
        raise ImageError(f"the image's header has more than {STEPS} parts; expected {FORMATS}")
    return steps + 1

"""Validate the header of a safetensors file: what can be checked without reading the weights.

The format (https://github.com/huggingface/safetensors, README "Format"): 8 bytes, little-endian, the length
of the header; the header, JSON, name -> dtype, shape and data offsets, beginning with ``{``; then the data,
whose offsets begin at 0, follow one another without holes and end where the file ends.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from minimax_metal.common.text import one_line

MOST_HEADER: Final = 32 << 20
"""Maximum header bytes. The format allows 100 MB; a shard of the models served here has some thousand
tensors, less than 1 MB, and parsed JSON takes many times its length in memory.
"""
MOST_TENSORS: Final = 500_000
POINTER: Final = b"version https://git-lfs.github.com/spec/"
"""The start of git-lfs's pointer files (git-lfs docs/spec.md)."""

BITS: Final[Mapping[str, int]] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
"""Bits of one element (safetensors 0.7, ``tensor.rs``, ``Dtype``)."""


class UnsoundError(Exception):
    """A file is not what its name says; the text is one line without the file's name."""


@dataclass(frozen=True, slots=True)
class Header:
    """Name of each tensor -> bytes of its data; ``size``: bytes of the whole file."""

    tensors: Mapping[str, int]
    size: int


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise UnsoundError("its header names a tensor twice")
    return found


def _whole_numbers(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 1 << 63 for one in value
    )


def read(descriptor: int) -> Header:
    """Read and check the header of an open file; the file's position does not matter.

    Raises:
        UnsoundError: it is not a complete safetensors file.
        OSError: it can't be read.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise UnsoundError("is not a regular file")
    size = status.st_size
    if size == 0:
        raise UnsoundError("is empty")
    beginning = _exactly(descriptor, min(size, 64), 0)
    if beginning.startswith(POINTER):
        raise UnsoundError("is a git-LFS pointer, not the file itself: run 'git lfs pull' there")
    if size < 10:
        raise UnsoundError(f"has {size} bytes, too few for a safetensors file")
    (length,) = struct.unpack("<Q", beginning[:8])
    if length > size - 8:
        raise UnsoundError(
            f"is not a complete safetensors file: its header would have {length} bytes, the file has {size}"
            + (" (it begins with zeros)" if not any(beginning) else "")
        )
    if not 2 <= length <= MOST_HEADER:
        raise UnsoundError(
            f"is not a safetensors file: its header would have {length} bytes"
            + (" (it begins with zeros: not downloaded yet)" if not any(beginning) else "")
        )
    tensors = _tensors(_exactly(descriptor, length, 8), size - 8 - length)
    return Header(tensors, size)


def _exactly(descriptor: int, length: int, offset: int) -> bytes:
    content = bytearray()
    while len(content) < length:
        block = os.pread(descriptor, length - len(content), offset + len(content))
        if not block:
            raise UnsoundError("ends within its header")
        content += block
    return bytes(content)


def _tensors(text: bytes, data: int) -> dict[str, int]:
    """Return name -> bytes; ``data``: bytes of the file after the header."""
    if not text.startswith(b"{"):
        raise UnsoundError("is not a safetensors file: its header is not JSON")
    try:
        raw = json.loads(text.decode("utf-8"), object_pairs_hook=_pairs)
    except (ValueError, RecursionError) as error:
        raise UnsoundError("is not a safetensors file: its header is not JSON") from error
    if not isinstance(raw, dict) or len(raw) > MOST_TENSORS:
        raise UnsoundError(f"has a header that is not a list of at most {MOST_TENSORS} tensors")
    raw.pop("__metadata__", None)
    spans = []
    tensors: dict[str, int] = {}
    for name, one in raw.items():
        begin, end = _span(name, one)
        spans.append((begin, end, name))
        tensors[name] = end - begin
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            what = "overlaps another one" if begin < position else "leaves a hole before it"
            raise UnsoundError(f"has a tensor {one_line(name, 100)!r} that {what}")
        position = end
    if position != data:
        short = "is cut off" if position > data else "is longer than its header says"
        raise UnsoundError(f"{short}: its tensors have {position} bytes, {data} bytes are present")
    return tensors


def _span(name: str, one: Any) -> tuple[int, int]:
    said = one_line(name, 100)
    if not isinstance(one, dict):
        raise UnsoundError(f"describes tensor {said!r} in an unknown way")
    dtype, shape, offsets = one.get("dtype"), one.get("shape"), one.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise UnsoundError(f"has a tensor {said!r} of an unknown type {one_line(str(dtype), 30)!r}")
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(shape) > 64 or len(offsets) != 2:
        raise UnsoundError(f"describes tensor {said!r} in an unknown way")
    begin, end = offsets
    bits = math.prod(shape) * BITS[dtype]
    if end < begin or bits % 8 or bits // 8 != end - begin:
        raise UnsoundError(
            f"has a tensor {said!r} of {end - begin} bytes, while its type and shape give {bits // 8}"
        )
    return begin, end

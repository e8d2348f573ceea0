"""Make inputs from seeds: hypothesis strategies that know JSON, lines and bytes."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any, Final

from hypothesis import strategies as st

from tests.fuzz.target import Form, Target

MOST: Final = 1_000_000
"""Longest input in bytes."""
# What json.loads takes though it isn't JSON (NaN), and what no reader expects.
VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**30, 1e308, float("inf"), float("-inf"),
    float("nan"), 0.1, "", " ", "0", "-1", "1e999", "NaN", "\x00", "\x1b[31m", "\x1b]0;title\x07", "\ud800", "\u202e",
    "²", "\u0661", "a" * 300, "../../etc/passwd", "/etc/passwd", "a\nb", "%s{}{0}", "{{ 1 }}", "http://[", "http://a:99999/",
    "http://[::1", "2026-13-45T99:99:99Z", "9" * 400, "x" * 100_000, [], {}, [[]], [{}], [None], [0], [""], {"": None},
    {"a": {"b": []}}, [1, "a", None, {}, []], ["a"] * 2_000, {str(number): number for number in range(500)},
)  # fmt: skip
PIECES: Final = (
    b"\x00", b"\x1b[31m", b"\x1b]0;t\x07", b"\xc2\x9b31m", b"\xff\xfe", b"\xed\xa0\x80", b"\xe2\x80\xae", b"\xe2\x80\xa8", b"\r",
    b"\n", b"\r\n", b"\t", b" ", b"'", b'"', b"\\", b"{", b"}", b"[", b"]", b"(", b")", b"<", b">", b":", b";", b",",
    b"=", b"/", b"%", b"#", b"-", b"--", b"..", b"../", b"0", b"-1", b"1e999", b"NaN", b"nan", b"inf", b"1.7976931348623157e309",
    b"9" * 30, b"9" * 5_000, b"\xc2\xb2", b"\xd9\xa1", b"N/A", b"[N/A]", b"null", b"None", b"\\ud800", b"a",
)  # fmt: skip
COUNTS: Final = (2, 3, 50, 1_000, 20_000, 100_000, 400_000)


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Inputs for a target: mutated seeds, and some without any structure."""
    seeds = (*target.seeds, *target.kept)
    choices = [_changed(seeds), _long(seeds), st.binary(max_size=200)]
    if target.form == Form.JSON:
        documents = [value for seed in seeds for value in _parsed(seed)]
        if documents:
            choices = [_document(documents), _document(documents), _document(documents), *choices]
    else:
        choices = [_changed(seeds), _lines(seeds), *choices, st.text(max_size=200).map(_encoded)]
    return st.one_of(*choices).map(lambda content: content[:MOST])


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _parsed(seed: bytes) -> Iterator[Any]:
    try:
        yield json.loads(seed)
    except (ValueError, RecursionError):
        return


@st.composite
def _changed(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A seed with some bytes replaced, removed or inserted."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(content)))
        size = draw(st.sampled_from((0, 0, 1, 1, 4, 30)))
        piece = draw(st.one_of(st.sampled_from(PIECES), st.binary(max_size=4)))
        content[at : at + size] = piece
    return bytes(content)


@st.composite
def _long(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A piece, a line or a part of a seed, repeated many times: this reveals quadratic readers."""
    seed = draw(st.sampled_from(seeds))
    lines = seed.splitlines() or [b""]
    line = draw(st.sampled_from(lines))
    first = draw(st.integers(0, len(line)))
    part = line[first : first + draw(st.sampled_from((1, 2, 8, 40)))]
    piece = draw(
        st.sampled_from(
            (
                *PIECES,
                part,
                part,
                part,
                line,
                line + b"\n",
                b"a ",
                b"a.",
                b"a:",
                b"-a",
                b"[{",
                b'{"a":',
                b"/a",
            )
        )
    )
    repeated = piece * min(draw(st.sampled_from(COUNTS)), MOST // max(1, len(piece)))
    match draw(st.integers(0, 3)):
        case 0:
            return repeated
        case 1:
            return line[:first] + repeated + line[first:]
        case 2:
            return seed + b"\n" + repeated
        case _:
            at = draw(st.integers(0, len(seed)))
            return seed[:at] + repeated + seed[at:]


@st.composite
def _lines(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A seed with lines removed, doubled, moved, cut, or taken from another seed."""
    lines = draw(st.sampled_from(seeds)).splitlines(keepends=True) or [b""]
    others = draw(st.sampled_from(seeds)).splitlines(keepends=True) or [b""]
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(lines)))
        match draw(st.integers(0, 4)):
            case 0:
                del lines[at : at + 1]
            case 1:
                lines[at:at] = [draw(st.sampled_from(others))]
            case 2 if at < len(lines):
                lines[at] = lines[at][: draw(st.integers(0, len(lines[at])))]
            case 3 if at < len(lines):
                words = lines[at].split(b" ")
                words[draw(st.integers(0, len(words) - 1))] = draw(st.sampled_from(PIECES))
                lines[at] = b" ".join(words)
            case _:
                lines.reverse()
    return b"".join(lines)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _places(one, (*path, key))
    elif isinstance(value, list):
        for at, one in enumerate(value):
            yield from _places(one, (*path, at))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


@st.composite
def _document(draw: st.DrawFn, documents: list[Any]) -> bytes:
    """A document with values of other types, keys removed or renamed, or values moved: always valid JSON."""
    value = copy.deepcopy(draw(st.sampled_from(documents)))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        path = draw(st.sampled_from(places))
        new: Any = copy.deepcopy(draw(st.sampled_from(VALUES)))  # a later change must not reach VALUES
        how = draw(st.integers(0, 5))
        if not path:
            value = new if how == 0 else value
            continue
        holder = _at(value, path[:-1])
        if how == 1 and isinstance(holder, dict):
            del holder[path[-1]]
        elif how == 2 and isinstance(holder, dict):
            holder[draw(st.sampled_from(("", "\x1b[2J", "a\nb", "../x", "\ud800", "0", "x" * 5_000)))] = (
                holder.pop(path[-1])
            )
        elif how == 3:
            holder[path[-1]] = copy.deepcopy(_at(value, draw(st.sampled_from(places))))
        elif how == 4 and isinstance(holder[path[-1]], str):
            text = holder[path[-1]]
            at = draw(st.integers(0, len(text)))
            holder[path[-1]] = text[:at] + str(new)[:200] + text[at:]
        else:
            holder[path[-1]] = copy.deepcopy(new)
    text = json.dumps(value)
    if draw(st.integers(0, 30)) == 0:
        text = text.replace('": ', '": ' + "[" * draw(st.sampled_from((500, 5_000, 100_000))), 1)
    if draw(st.integers(0, 15)) == 0 and text.startswith("{") and len(text) > 2:
        text = "{" + text[1:-1] + ", " + text[1:]  # every key twice
    return text.encode("utf-8", "surrogatepass")

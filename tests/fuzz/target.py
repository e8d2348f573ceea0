"""A fuzz target, and the judgement of one input."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from minimax_metal.common.errors import UserError
from minimax_metal.common.text import has_controls

SEEDS: Final = Path(__file__).parent / "seeds"
CPU_SECONDS: Final = 2.0
"""Longest reading of one input (1 MB at most), in CPU seconds: a busy machine is not a hang."""
WALL_SECONDS: Final = 20.0
"""Longest reading of one input in wall-clock seconds: a waiting reader uses no CPU."""
SKIPPED: Final = "skipped"
"""A target's result for an input that can't reach the reader (for example: not JSON)."""


class Form(StrEnum):
    """The structure of the input, which decides how seeds are mutated."""

    JSON = "json"
    TEXT = "text"
    BYTES = "bytes"


@dataclasses.dataclass(frozen=True)
class Target:
    """One reader of external text.

    ``read`` gets the raw input. ``expects`` are the exceptions by which the reader refuses an input: its
    caller catches them. ``shown`` means that the strings in its result and the text of its refusals are
    printed for people: they must not contain control characters.
    """

    name: str
    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    form: Form = Form.TEXT
    expects: tuple[type[Exception], ...] = (UserError,)
    shown: bool = False

    @property
    def kept(self) -> tuple[bytes, ...]:
        """Inputs that once failed, and examples for the reader, by name."""
        return tuple(file.read_bytes() for file in sorted((SEEDS / self.name).glob("*")))


@dataclasses.dataclass(frozen=True)
class Failure:
    """Forbidden behaviour of a reader."""

    target: str
    kind: str
    """The exception's name, ``hang`` or ``controls``, and the place in the project: one failure per kind."""
    told: str
    content: bytes


class HangError(BaseException):
    """The reading took too long; no reader's ``except Exception`` may catch it."""


def _alarm(_number: int, _frame: object) -> None:
    raise HangError


def judge(target: Target, content: bytes) -> Failure | None:
    """Give one input to a reader; return None if it was read or refused correctly."""
    before = signal.signal(signal.SIGALRM, _alarm), signal.signal(signal.SIGPROF, _alarm)
    began = time.process_time()
    try:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
        try:
            result: object = target.read(content)
        except target.expects as error:
            result = str(error)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
    except HangError as error:
        told = f"still reading after {time.process_time() - began:.1f} s of the processor"
        return Failure(target.name, f"hang at {_place(error)}", told, content)
    except Exception as error:
        return Failure(target.name, f"{type(error).__name__} at {_place(error)}", _told(error), content)
    finally:
        signal.signal(signal.SIGALRM, before[0])
        signal.signal(signal.SIGPROF, before[1])
    if target.shown:
        for text in strings(result):
            if has_controls(text.replace("\n", "").replace("\t", "")):
                return Failure(target.name, "controls in what people read", ascii(text[:300]), content)
    return None


def strings(value: object, depth: int = 12) -> Iterator[str]:
    """The strings in a result, including those of its fields and members."""
    if depth == 0:
        return
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from strings(key, depth - 1)
            yield from strings(one, depth - 1)
    elif isinstance(value, list | tuple | set | frozenset):
        for one in value:
            yield from strings(one, depth - 1)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from strings(getattr(value, field.name), depth - 1)


def _place(error: BaseException) -> str:
    """The innermost line of the project in the traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [one for one in frames if "minimax_metal" in one.filename or "/plugins/" in one.filename]
    last = (own or list(frames))[-1]
    return f"{Path(last.filename).name}:{last.lineno} ({last.name})"


def _told(error: BaseException) -> str:
    return ascii(str(error))[:300]


def text_of(content: bytes) -> str:
    """The input as decoded by the readers' callers."""
    return content.decode("utf-8", "replace")


def of_text(function: Callable[[str], object]) -> Callable[[bytes], object]:
    """A reader of text."""
    return lambda content: function(text_of(content))


def of_lines(function: Callable[[list[str]], object]) -> Callable[[bytes], object]:
    """A reader of lines."""
    return lambda content: function(text_of(content).splitlines())


def of_json(
    function: Callable[[Any], object], kind: type | tuple[type, ...] = object
) -> Callable[[bytes], object]:
    """A reader of the result of ``json.loads``; ``kind``: what its caller has checked already."""

    def read(content: bytes) -> object:
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            return SKIPPED
        return function(value) if isinstance(value, kind) else SKIPPED

    return read


def of_ansible(
    function: Callable[[Any], object], kind: type | tuple[type, ...] = object
) -> Callable[[bytes], object]:
    """A reader of data from Ansible: as JSON, and with integers in place of infinite numbers."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items()}
        if isinstance(value, list):
            return [plain(one) for one in value]
        return 0 if isinstance(value, float) and not math.isfinite(value) else value

    return of_json(lambda value: function(plain(value)), kind)


def of_file(function: Callable[[Path], object], name: str = "file") -> Callable[[bytes], object]:
    """A reader of a file."""
    import tempfile

    place = Path(tempfile.mkdtemp(prefix="metal-fuzz-")) / name
    place.parent.mkdir(parents=True, exist_ok=True)

    def read(content: bytes) -> object:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        return function(place)

    return read

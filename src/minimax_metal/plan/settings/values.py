"""How values are read, by their kind: types, and bounds that hold for every value of a type.

Values end in unit files, command lines and URLs on hosts. So no text holds a control character (a newline in
a unit file begins another directive), and nothing is longer than its use can need.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from datetime import date, datetime
from pathlib import PurePosixPath
from typing import Any, Final

from minimax_metal.common.errors import UserError
from minimax_metal.common.text import has_controls, one_line
from minimax_metal.plan.model import ExtraPackage, Refusal

TEXT: Final = 1_024
"""Characters of a text or a path: Linux takes 4,096 of a path, and adds its own below this one."""
WORD: Final = 16_384
"""Characters of one argument or environment variable: the engine takes JSON in some."""
ITEMS: Final = 256
"""Entries of a list or a mapping."""
DIGITS: Final = 15
"""Of a whole number: what JSON and floating point carry without loss."""
_SHOWN: Final = 80
_WHEEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.!+-]*\.whl")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


class SettingsError(UserError):
    """``metal_*`` variables that do not exist or have the wrong type: all of them, in one line."""

    def __init__(self, *refusals: Refusal) -> None:
        super().__init__("; ".join(f"found {r.found}, expected {r.needed}; {r.remedy}" for r in refusals))
        self.refusals = refusals


def shown(value: Any) -> str:
    """A foreign value as a message may hold it: printable, and short."""
    text = repr(value[: 2 * _SHOWN] if isinstance(value, str) else value)
    return one_line(text, _SHOWN)


def _wrong(name: str, value: Any, expected: str) -> SettingsError:
    return SettingsError(Refusal("variable-type", f"{name}: {shown(value)}", expected, "fix the variable"))


def text_problem(text: str, most: int = TEXT) -> str | None:
    """Why a text can't be a setting, without showing it; none where it can."""
    if len(text) > most:
        return f"a text of {len(text)} characters, expected at most {most}"
    if has_controls(text):
        at, sign = next((at, sign) for at, sign in enumerate(text) if has_controls(sign))
        return f"a control character (U+{ord(sign):04X}, character {at + 1}), expected a text of one line"
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        return "half of a surrogate pair, expected a text that UTF-8 can hold"
    return None


def _text(name: str, value: Any, most: int = TEXT, *, secret: bool = False) -> str:
    if isinstance(value, (Mapping, list, tuple, bool, set, bytes)):
        raise _wrong(name, "another type" if secret else value, "a text")
    # A block of YAML ends with a newline that nobody means.
    text = str(value).strip() if isinstance(value, (str, int, float)) else str(value)[:TEXT].strip()
    if problem := text_problem(text, most):
        found, _, expected = problem.partition(", expected ")
        where = "" if secret else f" in {shown(text)}"
        raise SettingsError(Refusal("variable-type", f"{name}: {found}{where}", expected, "fix the variable"))
    return text


def _path(name: str, value: Any) -> str:
    text = _text(name, value)
    if not text.startswith("/") or not text.strip("/") or {"..", "."} & set(text.split("/")):
        raise _wrong(name, value, "an absolute path below /, without . and ..")
    return text.rstrip("/")


def _int(name: str, value: Any) -> int:
    if isinstance(value, float) and value.is_integer() and abs(value) < 10**DIGITS:
        return int(value)
    text = str(value).strip() if isinstance(value, (int, str)) and not isinstance(value, bool) else ""
    if not re.fullmatch(rf"[+-]?[0-9]{{1,{DIGITS}}}", text):
        raise _wrong(name, value, f"a whole number of at most {DIGITS} digits")
    return int(text)


def _float(name: str, value: Any) -> float:
    try:
        if isinstance(value, bool) or (isinstance(value, str) and len(value) > TEXT):
            raise ValueError
        return float(value)  # nan and inf too: the plan refuses them with the range that it wants
    except (TypeError, ValueError, OverflowError):
        raise _wrong(name, value, "a number") from None


def _date(name: str, value: Any) -> date:
    # YAML reads a bare 2026-12-31 as a date, and a datetime is one too.
    if isinstance(value, datetime):
        value = value.date()
    if isinstance(value, date):
        return value
    try:
        if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value.strip(), re.ASCII):
            return date.fromisoformat(value.strip())
    except ValueError:  # the 31st of a shorter month
        pass
    raise _wrong(name, value, "a day as 2026-12-31")


def _bool(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    found = words.get(str(value).strip().lower()) if isinstance(value, (str, int)) else None
    if found is None:
        raise _wrong(name, value, "true or false")
    return found


def _mode(name: str, value: Any) -> str:
    """A word; YAML reads a bare ``off`` as false."""
    return "off" if value is False else _text(name, value)


def _list(name: str, value: Any, most: int = TEXT) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)):
        raise _wrong(name, value, "a text or a list of texts")
    _count(name, len(items))
    return tuple(_text(name, item, most) for item in items)


def _count(name: str, count: int) -> None:
    if count > ITEMS:
        raise SettingsError(
            Refusal("variable-type", f"{name}: {count} entries", f"at most {ITEMS}", "fix the variable")
        )


def _words(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, str):
        return _list(name, value, WORD)
    # A folded block of YAML may have several lines; they are cut into words here.
    if len(value) > 4 * WORD:
        raise _wrong(name, value, f"at most {4 * WORD} characters")
    try:
        words = shlex.split(value)
    except ValueError:
        raise _wrong(name, value, "a list of words, or one line with its quotes closed") from None
    return _list(name, words, WORD)


def _mapping(name: str, value: Any) -> dict[str, str]:
    """Names and values of environment variables. Values may be secrets: no message shows one."""
    if not isinstance(value, Mapping):
        raise _wrong(
            name, value if isinstance(value, (list, tuple)) else "a text", "a mapping of names to texts"
        )
    _count(name, len(value))
    for key in value:
        if not isinstance(key, str) or not _NAME.fullmatch(key):
            raise _wrong(name, key, "names of letters, digits and _")
    return {key: _text(f"{name}.{key}", item, WORD, secret=True) for key, item in value.items()}


def _packages(name: str, value: Any) -> tuple[ExtraPackage, ...]:
    items = [value] if isinstance(value, (str, Mapping, ExtraPackage)) else value
    if not isinstance(items, (list, tuple)):
        raise _wrong(name, value, "a list of wheel paths")
    _count(name, len(items))
    packages = []
    for item in items:
        if isinstance(item, ExtraPackage):
            package = item
        elif isinstance(item, Mapping) and set(item) == {"path", "sha256"}:
            package = ExtraPackage(path=str(item["path"]), sha256=str(item["sha256"]))
        else:
            # The adapter hashes files before it comes here; the plan itself never opens one.
            raise _wrong(name, item, "a wheel's path with its sha256")
        _text(name, package.path)
        if not _WHEEL.fullmatch(PurePosixPath(package.path).name):
            # Installers build what is not a wheel, as root, whatever they were told of an index.
            raise _wrong(name, package.path, "a wheel: a file whose name ends in .whl")
        if not re.fullmatch(r"[0-9a-f]{64}", package.sha256):
            raise _wrong(name, package.sha256, "a sha256: 64 digits of 0-9a-f")
        packages.append(package)
    return tuple(packages)


_SHARE: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)%")


def is_share(text: str) -> bool:
    """Whether a text is a share such as 25%, of at most 100%."""
    match = _SHARE.fullmatch(text)
    return match is not None and float(match[1]) <= 100


def _share(name: str, value: Any) -> str:
    text = _text(name, value)
    if not is_share(text) and not re.fullmatch(r"[0-9]{1,9}", text):
        raise _wrong(name, value, "a number of replicas or a share such as 50%")
    return text


def _batches(name: str, value: Any) -> tuple[int | str, ...]:
    items = value if isinstance(value, (list, tuple)) else [value]
    _count(name, len(items))
    sizes: list[int | str] = []
    for item in items:
        text = _text(name, item)
        if re.fullmatch(r"[1-9][0-9]{0,8}", text):
            sizes.append(int(text))
        elif is_share(text) and float(text[:-1]) > 0:
            sizes.append(text)
        else:
            raise _wrong(name, item, "numbers of hosts and shares such as 25%")
    if not sizes:
        raise _wrong(name, value, "sizes such as [1, 25%, 100%]")
    return tuple(sizes)


READERS: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "text": _text,
    "path": _path,
    "int": _int,
    "float": _float,
    "bool": _bool,
    "date": _date,
    "mode": _mode,
    "list": _list,
    "words": _words,
    "mapping": _mapping,
    "packages": _packages,
    "share": _share,
    "batches": _batches,
}
"""By the kind of a setting: from what Ansible has to the value, or a ``SettingsError``."""

"""How a setting is declared: once, as a field of a class, with its type, default, bounds and meaning.

    port: int = whole(8000, "Port of the endpoint.", PORT)

Everything else comes from these fields: what is read and refused, the roles' argument specifications and
defaults, and docs/settings.md (``make settings``). Values are read by :mod:`.values` and not by pydantic,
whose import takes longer than a whole plan and is not wanted in each of Ansible's worker processes; mypy
checks that a default has its field's type.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Final, TypeVar

T = TypeVar("T")

PLAN: Final = "plan"
PLAYBOOK: Final = "playbook"
LISTED: Final = 40
"""So many names are listed in a message at most."""
_KEY: Final = "setting"
"""Where a field of a class keeps what is declared."""


@dataclass(frozen=True)
class Bounds:
    """The least and the most that a number may be, and how a value outside is refused."""

    least: float
    most: float
    code: str = "limit"
    remedy: str = "leave {name} out"
    inside: bool = False
    """The bounds themselves are not allowed."""

    def hold(self, value: float) -> bool:
        """Whether a number is within them; not-a-number is not."""
        if self.inside:
            return self.least < value < self.most
        return self.least <= value <= self.most

    def __str__(self) -> str:
        if self.inside:
            return f"more than {_figure(self.least)} and less than {_figure(self.most)}"
        return f"{_figure(self.least)} to {_figure(self.most)}"


def _figure(number: float) -> str:
    return f"{number:,}" if abs(number) >= 100_000 else f"{number:g}"


PORT: Final = Bounds(1, 65_535, "port", "set {name} to a free port")
SHARE: Final = Bounds(0, 1)
SECONDS: Final = Bounds(0, 31 * 86_400, "timeout")
CONTROLLER_CACHE: Final = (
    "{{ lookup('ansible.builtin.env', 'XDG_CACHE_HOME') | default('~/.cache', true) }}/minimax-metal"
)
"""Directory of the user's cache on the controller, as Ansible finds it."""

group = dataclass(init=False, repr=False, eq=False, match_args=False)
"""For a class that only declares: nobody makes one, so nothing is compiled for it."""


@dataclass(frozen=True)
class Setting:
    """One variable that users may set."""

    name: str
    kind: str
    """How it is written: a key of ``values.READERS``."""
    default: Any
    """A text that holds ``{{`` is a template, which Ansible fills in."""
    meaning: str
    """One line of Markdown for the documentation."""
    owner: str
    """Who reads it: the plan, a playbook, or the role of that name."""
    bounds: Bounds | None = None
    choices: tuple[str, ...] = ()
    code: str = "limit"
    """The code of the refusal of a text that is none of the choices."""
    secret: bool = False
    attribute: str = ""
    """Its name in the class that declares it."""

    @property
    def computed(self) -> bool:
        """Whether its default is a template."""
        return isinstance(self.default, str) and "{{" in self.default


def _declare(kind: str, default: Any, meaning: str, **more: Any) -> Any:
    metadata = {_KEY: {"kind": kind, "meaning": meaning, **more}}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def text(
    default: T, meaning: str, choices: tuple[str, ...] = (), *, code: str = "limit", secret: bool = False
) -> T:
    """Declare a text of one line, or one of ``choices``; ``code`` is that of the refusal of any other."""
    declared: T = _declare("text", default, meaning, choices=choices, code=code, secret=secret)
    return declared


def mode(default: T, meaning: str, choices: tuple[str, ...], *, code: str) -> T:
    """Declare a word of which one is ``off``, which YAML reads as false."""
    declared: T = _declare("mode", default, meaning, choices=choices, code=code)
    return declared


def path(default: T, meaning: str) -> T:
    """Declare an absolute path."""
    declared: T = _declare("path", default, meaning)
    return declared


def whole(default: T, meaning: str, bounds: Bounds) -> T:
    """Declare a whole number."""
    declared: T = _declare("int", default, meaning, bounds=bounds)
    return declared


def number(default: T, meaning: str, bounds: Bounds) -> T:
    """Declare a number."""
    declared: T = _declare("float", default, meaning, bounds=bounds)
    return declared


def switch(default: T, meaning: str) -> T:
    """Declare true or false."""
    declared: T = _declare("bool", default, meaning)
    return declared


def texts(default: T, meaning: str, choices: tuple[str, ...] = (), *, secret: bool = False) -> T:
    """Declare a list of texts; one text alone is a list of one."""
    declared: T = _declare("list", default, meaning, choices=choices, secret=secret)
    return declared


def other(kind: str, default: T, meaning: str, bounds: Bounds | None = None) -> T:
    """Declare a value of a rarer kind: a key of ``values.READERS``."""
    declared: T = _declare(kind, default, meaning, bounds=bounds)
    return declared


def declared(group: type, prefix: str, owner: str) -> tuple[Setting, ...]:
    """The settings that a dataclass declares, in its order."""
    return tuple(
        Setting(
            name=f"{prefix}{one.name}",
            attribute=one.name,
            owner=owner,
            default=one.default_factory() if one.default_factory is not MISSING else one.default,
            **one.metadata[_KEY],
        )
        for one in fields(group)
        if _KEY in one.metadata
    )


def by_name(settings: Iterable[Setting]) -> Mapping[str, Setting]:
    """Settings by the names of their variables."""
    return {setting.name: setting for setting in settings}


def nearest(name: str, known: Iterable[str]) -> str:
    """What to say of a name that nobody knows: the nearest right one, or all of them."""
    names = {one.casefold(): one for one in known}
    near = difflib.get_close_matches(name.casefold(), names, n=1, cutoff=0.5)
    if near:
        return f"did you mean {names[near[0]]}?"
    if len(names) > LISTED:
        return "docs/settings.md lists them"
    return f"known are {', '.join(names.values())}" if names else "there is none: take it out"

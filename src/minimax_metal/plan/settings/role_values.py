"""What is wrong with values of roles' variables, told before a role runs.

As lenient as the roles' argument specifications are when Ansible checks them: what it converts passes here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from minimax_metal.common.text import one_line
from minimax_metal.plan.model import Refusal
from minimax_metal.plan.settings.declared import Setting
from minimax_metal.plan.settings.roles import ROLE_SETTINGS
from minimax_metal.plan.settings.values import DIGITS, ITEMS, WORD, shown, text_problem

_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,20}(?:\.[0-9]{1,20})?(?:[eE][+-]?[0-9]{1,2})?")
# ansible.module_utils.parsing.convert_bool
_BOOLEANS: Final = frozenset({"y", "yes", "on", "1", "true", "t", "n", "no", "off", "0", "false", "f"})


def role_problems(values: Mapping[str, Any]) -> list[Refusal]:
    """What can't be in variables of roles: other types, numbers out of bounds, words that are no choice.

    Also, in any of them, control characters and endless texts and lists. No message shows a secret.
    """
    problems = []
    for name, value in sorted(values.items()):
        setting = ROLE_SETTINGS.get(name)
        problem = _problem(value, 0) or (setting and value is not None and _mismatch(setting, value))
        if problem:
            found, _, expected = problem.partition(", expected ")
            problems.append(
                Refusal("variable-type", f"{one_line(name, 200)}: {found}", expected, "fix the variable")
            )
    return problems


def _problem(value: Any, depth: int) -> str | None:
    if isinstance(value, str):
        return text_problem(value, WORD)
    if isinstance(value, float) and not math.isfinite(value):
        return "not a finite number, expected a number"
    if isinstance(value, int) and abs(value) >= 10**DIGITS:
        return f"a number of more than {DIGITS} digits, expected a smaller one"
    if isinstance(value, (Mapping, list, tuple)):
        if len(value) > ITEMS or depth > 8:
            return f"more than {ITEMS} entries or 8 levels, expected fewer"
        parts = [*value, *value.values()] if isinstance(value, Mapping) else value
        return next((found for one in parts if (found := _problem(one, depth + 1))), None)
    return None


def _mismatch(setting: Setting, value: Any) -> str | None:
    expected, holds = _KINDS[setting.kind]
    # Mappings may hold passwords of proxies.
    hidden = setting.secret or setting.kind == "mapping"
    if not holds(value):
        return f"{'a value of another type' if hidden else shown(value)}, expected {expected}"
    if setting.bounds is not None and not setting.bounds.hold(float(value)):
        return f"{value}, expected {setting.bounds}"
    if setting.choices and not hidden and str(value) not in setting.choices:
        words = ", ".join(word or "an empty text" for word in setting.choices)
        return f"{shown(value)}, expected one of {words}"
    return None


def _is_whole(value: Any) -> bool:
    if not _is_number(value):
        return False
    return float(value).is_integer()


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return _NUMBER.fullmatch(value.strip()) is not None
    return isinstance(value, (int, float))


def _is_switch(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in _BOOLEANS
    return isinstance(value, bool) or value in (0, 1)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple, str, int, float))


def _is_numbers(value: Any) -> bool:
    items = value if isinstance(value, (list, tuple)) else str(value).split(",")
    return all(_is_whole(item) for item in items)


def _is_mapping(value: Any) -> bool:
    if isinstance(value, str):
        return value.startswith("{") or "=" in value
    return isinstance(value, Mapping)


_KINDS: Final[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
    "text": ("a text", lambda value: not isinstance(value, (Mapping, list, tuple))),
    "path": ("a path", lambda value: isinstance(value, (str, int, float))),
    "int": ("a whole number", _is_whole),
    "float": ("a number", _is_number),
    "bool": ("true or false", _is_switch),
    "list": ("a list of texts", _is_list),
    "numbers": ("a list of whole numbers", _is_numbers),
    "mapping": ("a mapping of names to values", _is_mapping),
}

"""Reading variables by what is declared: values of their types, and a refusal for each that can't be used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from minimax_metal.common.text import one_line
from minimax_metal.plan.model import Refusal
from minimax_metal.plan.settings.declared import PLAYBOOK, Setting, by_name, nearest
from minimax_metal.plan.settings.playbook import PLAYBOOK_SETTINGS, PREFIX
from minimax_metal.plan.settings.values import READERS, SettingsError

INTERNAL: Final = frozenset({"metal_plan", "metal_gateway_plan"})
"""What plays themselves keep under the prefix."""


@dataclass(frozen=True)
class UnknownVariable:
    """A variable that begins with a role's name and that the role does not read."""

    name: str
    role: str
    known: tuple[str, ...]


def read_metal(
    variables: Mapping[str, Any], wanted: Sequence[Setting]
) -> tuple[dict[str, Any], tuple[Refusal, ...]]:
    """The values of ``wanted`` settings by their attributes, and what is wrong with any ``metal_*`` variable.

    ``wanted`` are those of the plan or of the playbooks. The playbooks' own are checked in any case, by their
    bounds and choices too. Those of the plan are judged by the plan, which knows which refusals are lifted.
    """
    values: dict[str, Any] = {}
    problems: list[Refusal] = []
    known = by_name((*wanted, *PLAYBOOK_SETTINGS))
    attributes = {setting.name: setting.attribute for setting in wanted}
    for name, value in sorted((str(key), value) for key, value in variables.items() if is_metal(str(key))):
        setting = known.get(name)
        if setting is None:
            called = one_line(name, 200)
            problems.append(
                Refusal("variable-unknown", f"variable {called}", "one of metal_*", nearest(called, known))
            )
            continue
        try:
            if (read := read_value(setting, value)) is not None and name in attributes:
                values[attributes[name]] = read
        except SettingsError as error:
            problems += error.refusals
    return values, tuple(problems)


def is_metal(name: str) -> bool:
    """Whether a variable is a ``metal_*`` setting, or would be one if it existed."""
    return name.startswith(PREFIX) and name not in INTERNAL


def read_value(setting: Setting, value: Any) -> Any:
    """One value of its type; None where it is not set: null, or an empty text for a playbook.

    Raises:
        SettingsError: it has another type, or, for a setting of the playbooks, it is out of its bounds.
    """
    playbook = setting.owner == PLAYBOOK
    if value is None or (playbook and isinstance(value, str) and not value.strip()):
        return None
    read = READERS[setting.kind](setting.name, value)
    if playbook and (refusal := refuse_value(setting, read)):
        raise SettingsError(refusal)
    return read


def refuse_value(setting: Setting, value: Any) -> Refusal | None:
    """Why a value of the right type is refused: a number out of its bounds, or none of the choices."""
    if setting.bounds is not None and isinstance(value, (int, float)) and not setting.bounds.hold(value):
        return Refusal(
            code=setting.bounds.code,
            found=f"{setting.name} {value:g}" if isinstance(value, float) else f"{setting.name} {value}",
            needed=str(setting.bounds),
            remedy=setting.bounds.remedy.format(name=setting.name),
        )
    for word in value if isinstance(value, tuple) else (value,):
        if setting.choices and word not in setting.choices:
            remedy = nearest(str(word), setting.choices)
            if setting.kind == "mode" and not remedy.startswith("did"):
                remedy = f"did you mean {setting.choices[-1]}?"  # who writes yes or on
            return Refusal(
                code=setting.code,
                found=f"{setting.name} {one_line(str(word), 80)}",
                needed=" or ".join((", ".join(setting.choices[:-1]), setting.choices[-1])),
                remedy=remedy,
            )
    return None


def find_unknown(names: Iterable[str], roles: Mapping[str, Sequence[str]]) -> tuple[UnknownVariable, ...]:
    """The names that begin like a role's variables (``<role>_``) and are not among those it reads."""
    return tuple(
        UnknownVariable(name, role, tuple(options))
        for name in sorted(set(names))
        for role, options in roles.items()
        if name.startswith(f"{role}_") and name not in options
    )


def refuse_unknown(unknown: UnknownVariable) -> Refusal:
    """Why a variable of that kind stops a host."""
    return Refusal(
        code="variable-unknown",
        found=f"variable {unknown.name}",
        needed=f"one that role {unknown.role} reads",
        remedy=nearest(unknown.name, unknown.known),
    )

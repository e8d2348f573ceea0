"""One setting by its name: the value that is in force where a play reads it."""

from __future__ import annotations

from typing import Any

from minimax_metal.plan.settings.declared import by_name, nearest
from minimax_metal.plan.settings.host import SETTINGS
from minimax_metal.plan.settings.playbook import PLAYBOOK_SETTINGS
from minimax_metal.plan.settings.reading import read_value, refuse_value
from minimax_metal.plan.settings.roles import ROLE_SETTINGS
from minimax_metal.plan.settings.values import SettingsError

_KNOWN = {**by_name((*SETTINGS, *PLAYBOOK_SETTINGS)), **ROLE_SETTINGS}


def setting_value(name: str, given: Any) -> Any:
    """The value of a setting, of its declared type and as plain data; its default where it is not given.

    Raises:
        SettingsError: the value has another type, is out of bounds or none of the choices.
        LookupError: no setting has this name: a mistake in a playbook.
    """
    setting = _KNOWN.get(name)
    if setting is None or setting.computed:
        raise LookupError(f"no setting with a default of its own is called {name}; {nearest(name, _KNOWN)}")
    value = read_value(setting, given)
    if value is None:
        value = setting.default
    elif refusal := refuse_value(setting, value):
        raise SettingsError(refusal)
    return list(value) if isinstance(value, tuple) else value

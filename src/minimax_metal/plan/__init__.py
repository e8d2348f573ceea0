"""The plan: every decision about a host, made once.

The names here are loaded when they are used: a host reads plans and decides nothing, and starts sooner.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minimax_metal.plan.core import plan
    from minimax_metal.plan.facts import HostFacts, parse_facts
    from minimax_metal.plan.model import Plan, Refusal
    from minimax_metal.plan.settings import Settings, SettingsError

__all__ = ["HostFacts", "Plan", "Refusal", "Settings", "SettingsError", "parse_facts", "plan"]

_PLACES = {
    "plan": "core", "HostFacts": "facts", "parse_facts": "facts", "Plan": "model", "Refusal": "model",
    "Settings": "settings", "SettingsError": "settings",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)

"""The plan: every decision about a host, made once."""

from minimax_metal.plan.core import plan
from minimax_metal.plan.facts import HostFacts, parse_facts
from minimax_metal.plan.model import Plan, Refusal
from minimax_metal.plan.settings import Settings, SettingsError

__all__ = ["HostFacts", "Plan", "Refusal", "Settings", "SettingsError", "parse_facts", "plan"]

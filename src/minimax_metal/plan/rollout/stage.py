"""The stages that a host goes through in a run: one list for plays, journal, views, report and timeline."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Stage(StrEnum):
    """One stage; its value is its tag in the playbooks and its name in journals and records of runs.

    Attributes:
        label: head of its column; a stage of a host's change lives in ``playbooks/stages/LABEL.yml``.
        colour: of its stretch in the timeline.
        out_of_pool: whether gateways send the host nothing from its beginning on. The host is back in the
            pool when ``undrain`` is over; one that stopped there may be half in, and counts as in.
        step: whether it is a step of a rollout and not a role: a role that runs in it is part of it.
    """

    label: str
    colour: str
    out_of_pool: bool
    step: bool

    def __new__(
        cls, value: str, label: str, colour: str, out_of_pool: bool = False, step: bool = False
    ) -> Stage:
        """Make a member of its row."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.label, member.colour, member.out_of_pool, member.step = label, colour, out_of_pool, step
        return member

    PREFLIGHT = "preflight", "plan", "#94a3b8"
    CACHE = "artefact_cache", "cache", "#7dd3fc"
    SOURCES = "package_sources", "sources", "#a5b4fc"
    TOOLS = "host_tools", "tools", "#60a5fa"
    TUNING = "host_tuning", "tuning", "#38bdf8"
    WEIGHTS = "model_weights", "weights", "#2563eb"
    DRIVER = "nvidia_driver", "driver", "#65a30d"
    CUDA = "cuda_toolkit", "cuda", "#84cc16"
    ENGINE = "sglang_runtime", "engine", "#0d9488"
    DRAIN = "drain", "drain", "#f59e0b", True, True
    STOP = "stop", "stop", "#b45309", True, True
    SERVE = "sglang_service", "serve", "#8b5cf6", True
    CHECK = "post_check", "check", "#10b981", True
    UNDRAIN = "undrain", "undrain", "#fbbf24", False, True
    SOAK = "soak", "soak", "#a3a3a3", False, True
    RECORD = "release_record", "record", "#475569"
    ROLLBACK = "rollback", "rollback", "#db2777", True, True
    GATEWAY = "gateway", "gateway", "#0ea5e9"


CHANGE: Final = (
    Stage.DRAIN,
    Stage.STOP,
    Stage.SERVE,
    Stage.CHECK,
    Stage.UNDRAIN,
    Stage.SOAK,
    Stage.RECORD,
)
"""What happens to a host that gets another release, in this order."""

INSEPARABLE: Final = frozenset({*CHANGE, Stage.ROLLBACK}) - {Stage.SOAK}
"""Stages that a run has all of or none: a host is not left half changed."""

OUT_OF_POOL: Final = frozenset(stage for stage in Stage if stage.out_of_pool)


_BY_NAME: Final = {stage.value: stage for stage in Stage}


def label_of(name: str) -> str:
    """Return the label of a stage; the name itself where this version has no such stage."""
    return _BY_NAME[name].label if name in _BY_NAME else name


def colour_of(name: str) -> str:
    """Return the colour of a stage; grey where this version has no such stage."""
    return _BY_NAME[name].colour if name in _BY_NAME else "#999999"

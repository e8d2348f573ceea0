"""The targets, in the order in which they run."""

from typing import Final

from tests.fuzz.target import Target
from tests.fuzz.targets import (
    acceptance,
    artefacts,
    checks,
    engine,
    fleet,
    host,
    plan,
    plugins,
    sharing,
    staging,
)

TARGETS: Final[tuple[Target, ...]] = (
    *host.TARGETS, *artefacts.TARGETS, *sharing.TARGETS, *fleet.TARGETS, *plan.TARGETS, *staging.TARGETS,
    *acceptance.TARGETS, *checks.TARGETS, *engine.TARGETS, *plugins.TARGETS,
)  # fmt: skip

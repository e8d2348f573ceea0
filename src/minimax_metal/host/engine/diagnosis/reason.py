"""The result of a diagnosis: why an engine ended, who must act, and the exit status."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

EXIT_NEVER: Final = 78
"""Like sysexits' EX_CONFIG."""
EXIT_GPU: Final = 70
"""Like sysexits' EX_SOFTWARE; here: the hardware."""


class Who(StrEnum):
    """Who must act; every class of ends has one."""

    RESTART = "restart"
    """Nobody: the next start may succeed, and systemd tries it."""
    USER = "user"
    """The author of the inventory: a setting, a package, disk space."""
    OPERATOR = "operator"
    """The host's operator: drain it, then reset, reboot or repair it."""
    WEIGHTS = "weights"
    """The weights on this host must be verified again and repaired."""


ACTS: Final[dict[Who, str]] = {
    Who.RESTART: "nobody: systemd restarts the engine",
    Who.USER: "the user: change a setting, then run the playbook",
    Who.OPERATOR: "the operator: drain the host and repair it",
    Who.WEIGHTS: "the user: verify this host's weights again",
}


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an engine ended."""

    code: str
    text: str
    """The engine's message, or its meaning, with a remedy."""
    final: bool = False
    """Whether another start would end the same way."""
    gpu: bool = False
    """Whether the host needs an operator before the next start."""
    who: Who = Who.RESTART
    cause: str = ""
    """The message only."""
    remedy: str = ""
    evidence: tuple[str, ...] = ()
    """The lines that show it, oldest first."""

    @property
    def status(self) -> int | None:
        """The exit status that keeps systemd from restarting; None if it may."""
        if self.gpu:
            return EXIT_GPU
        return EXIT_NEVER if self.final else None

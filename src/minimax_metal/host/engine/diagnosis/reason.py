"""What a diagnosis says: why an engine ended, who acts, and with which exit status."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

EXIT_NEVER: Final = 78
"""As sysexits' EX_CONFIG."""
EXIT_GPU: Final = 70
"""As sysexits' EX_SOFTWARE; here: the hardware."""


class Who(StrEnum):
    """Who acts; every class of ends names one."""

    RESTART = "restart"
    """Nobody: the next start may succeed, and systemd makes it."""
    USER = "user"
    """Whoever wrote the inventory: a setting, a package, room on a disk."""
    OPERATOR = "operator"
    """Whoever looks after the host: it is drained, then reset, rebooted or repaired."""
    WEIGHTS = "weights"
    """The weights on this host are verified again and repaired."""


ACTS: Final[dict[Who, str]] = {
    Who.RESTART: "nobody: systemd starts the engine again",
    Who.USER: "the user: change a setting, then run the playbook",
    Who.OPERATOR: "the operator: drain the host and look after it",
    Who.WEIGHTS: "the user: verify the weights on this host again",
}


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an engine ended."""

    code: str
    text: str
    """The engine's own words, or what they mean, with what to do."""
    final: bool = False
    """Whether another start would end the same way."""
    gpu: bool = False
    """Whether the host needs an operator before the next start."""
    who: Who = Who.RESTART
    cause: str = ""
    """The words alone."""
    remedy: str = ""
    evidence: tuple[str, ...] = ()
    """The lines that it was read from, oldest first."""

    @property
    def status(self) -> int | None:
        """The exit status that keeps systemd from trying again; none where it may."""
        if self.gpu:
            return EXIT_GPU
        return EXIT_NEVER if self.final else None

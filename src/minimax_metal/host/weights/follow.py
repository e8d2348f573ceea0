"""``metal weights await``: wait for the pull that a systemd unit runs, and report its result.

Only a verified directory at the final path is success. A failure is the unit's state in systemd, with the
pull's own last line from the state file as the reason; without a unit it is the state file's.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from minimax_metal.common import program
from minimax_metal.common.documents import digits, read_json
from minimax_metal.common.errors import UserError
from minimax_metal.common.files import read_bounded
from minimax_metal.common.text import one_line
from minimax_metal.host.weights.pull import complete
from minimax_metal.host.weights.request import Request

PROPERTIES: Final = ("LoadState", "ActiveState", "SubState", "Result", "NRestarts")

STATE_BYTES: Final = 1 << 16
"""Maximum size of a pull's state: a line and some numbers."""

GRACE: Final = 5.0
"""Seconds a unit may be inactive before that counts: a requested start may still be queued."""

RESTARTS: Final = 3
"""Restarts of a failing unit to wait through; every pull has already retried several times."""


class AwaitError(UserError):
    """The pull failed or did not end in time; the text is one line."""


class NotYetError(AwaitError):
    """The time to wait is over, but the pull continues."""


@dataclass(frozen=True, slots=True)
class UnitState:
    """The pull unit's state from ``systemctl show``."""

    load: str = ""
    active: str = ""
    sub: str = ""
    result: str = ""
    restarts: int = 0

    @property
    def at_work(self) -> bool:
        """Running, starting, or about to be restarted by systemd."""
        return self.active in {"active", "activating", "reloading", "deactivating"}

    def __str__(self) -> str:
        text = f"{self.active} ({self.sub}), result {self.result}"
        return f"{text}, after {self.restarts} restart(s)" if self.restarts else text


def show_unit(unit: str) -> UnitState:
    """Ask systemd about a unit.

    Raises:
        AwaitError: systemctl is missing or does not answer.
    """
    try:
        done = subprocess.run(
            ["systemctl", "show", unit, "-p", ",".join(PROPERTIES)],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise AwaitError(
            f"can't ask systemd about {unit} ({error}); check with: systemctl status {unit}"
        ) from error
    values = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    restarts = values.get("NRestarts", "0")
    return UnitState(
        load=values.get("LoadState", ""),
        active=values.get("ActiveState", ""),
        sub=values.get("SubState", ""),
        result=values.get("Result", ""),
        restarts=digits(restarts) or 0,
    )


def machine_is_changing() -> bool:
    """Return whether the machine is shutting down or booting: the state of its units is then temporary."""
    try:
        done = subprocess.run(
            ["systemctl", "is-system-running"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.stdout.strip() in {"stopping", "starting", "initializing"}


def read_state(request: Request) -> Mapping[str, Any]:
    """Return the pull's latest state; {} if it wrote none."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        state = read_json(read_bounded(request.state, STATE_BYTES))
        if isinstance(state, dict):
            return {**state, "text": one_line(str(state.get("text", "")))}
    return {}


def wait(
    request: Request,
    timeout: float | None = None,
    say: Callable[[str], None] = lambda _: None,
    ask: Callable[[str], UnitState] = show_unit,
    pause: float = 1.0,
    grace: float = GRACE,
    restarts: int = RESTARTS,
    changing: Callable[[], bool] = machine_is_changing,
) -> None:
    """Return when the model is verified at its final path.

    Args:
        request: names the path, the state file and the unit.
        timeout: seconds to wait at most; None waits as long as the pull is running.
        say: called with the pull's line of progress whenever it changes.
        ask: returns the state of a unit.
        pause: seconds between two checks.
        grace: seconds without a running pull before that counts as a failure.
        restarts: restarts by systemd after which a failing pull counts as failed.
        changing: whether the machine is shutting down or booting, when a missing pull means nothing.

    Raises:
        AwaitError: the pull failed, none is running, or the time is over.
    """
    begun = idle_since = time.monotonic()
    last = ""
    while not complete(request):
        now = time.monotonic()
        state = read_state(request)
        text = str(state.get("text", ""))
        if text and text != last:
            last = text
            say(text)
        unit = ask(request.unit) if request.unit is not None else None
        if unit is not None and unit.load == "not-found":
            raise AwaitError(f"there is no unit {request.unit}; run playbooks/weights.yml, which installs it")
        at_work = unit.at_work if unit is not None else _is_pulling(state)
        if unit is not None and unit.sub.startswith("auto-restart") and unit.restarts >= restarts:
            raise AwaitError(_why(request, unit, text))
        if at_work:
            idle_since = now
        elif (unit is not None and unit.active == "failed") or now - idle_since >= grace:
            # The pull may have succeeded between the two checks.
            if complete(request):
                return
            if unit is None or not changing():
                raise AwaitError(_why(request, unit, text))
            idle_since = now
        if timeout is not None and now - begun >= timeout:
            raise NotYetError(
                f"not verified within {timeout:.0f} s, the pull continues; last: {text or 'no message'}"
            )
        time.sleep(pause)


def forget_failure(
    unit: str,
    ask: Callable[[str], UnitState] = show_unit,
    run: Callable[[list[str]], object] = lambda words: program.run(words),
) -> bool:
    """Reset a unit that is still failed although the weights are verified; return whether it was.

    After a repair by hand, or by another pull, the previous pull's unit stays ``failed``.
    """
    if ask(unit).active != "failed":
        return False
    run(["systemctl", "reset-failed", unit])
    return ask(unit).active != "failed"


def _is_pulling(state: Mapping[str, Any]) -> bool:
    """Return whether the process that wrote the state still runs (if there is no unit to ask)."""
    pid = state.get("pid")
    if state.get("state") != "pulling" or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _why(request: Request, unit: UnitState | None, text: str) -> str:
    """Return one line: the reason, systemd's state, where to look."""
    reason = text or "the pull gave no reason"
    if unit is None:
        return f"{reason}; no pull of {request.path} is running"
    return f"{reason}; unit {request.unit} is {unit}; check with: journalctl -u {request.unit}"

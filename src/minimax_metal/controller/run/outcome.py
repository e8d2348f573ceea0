"""What became of a run, as an exit status and a sentence.

========= ===========================================================================================
status     meaning
========= ===========================================================================================
0          done: every host is as it was asked
1          failed, or gone back to the release before
2          wrong usage, or refused before anything was changed
3          a host could not be reached; no other failed
130        interrupted: after the hosts in work, or at once
========= ===========================================================================================
"""

from __future__ import annotations

from enum import IntEnum

from minimax_metal.controller.run.events import Run
from minimax_metal.plan.connection import AWAY


class Exit(IntEnum):
    """Exit status of ``metal site``, ``rollout`` and ``rollback``."""

    DONE = 0
    FAILED = 1
    REFUSED = 2
    UNREACHABLE = 3
    INTERRUPTED = 130


ANSIBLE_UNREACHABLE = 4
ANSIBLE_INTERRUPTED = 99


def exit_status(returned: int, run: Run, *, stopped: bool) -> Exit:
    """Return the exit status of a run.

    Args:
        returned: what ansible-playbook returned.
        run: the state at its end.
        stopped: whether somebody asked it to stop.
    """
    if returned == 0 and not stopped:
        # Nothing done is not success: no host was asked anything.
        return Exit.DONE if run.hosts else Exit.REFUSED
    changed = any(host.changes for host in run.hosts.values())
    failed = [failure for failure in run.failures if failure.kind == "failed"]
    if stopped and (returned in {0, ANSIBLE_INTERRUPTED} or not failed):
        return Exit.INTERRUPTED
    if returned == ANSIBLE_INTERRUPTED:
        return Exit.INTERRUPTED
    if not run.hosts:
        return Exit.REFUSED
    if failed and not changed and all(failure.refuses for failure in failed):
        lines = [line for failure in failed for line in failure.lines]
        away = all(any(f": {code}: " in line for code in AWAY) for line in lines)
        return Exit.UNREACHABLE if away else Exit.REFUSED
    if returned == ANSIBLE_UNREACHABLE or (not failed and any(one.unreachable for one in run.hosts.values())):
        return Exit.UNREACHABLE
    return Exit.FAILED


def sentence(status: Exit, run: Run) -> str:
    """Return one line that says what became of a run."""
    verdicts = [host.verdict for host in run.hosts.values()]
    counts = [f"{verdicts.count(name)} {name}" for name in dict.fromkeys(verdicts)]
    hosts = ", ".join(counts) or "no host was asked"
    words = {
        Exit.DONE: "done",
        Exit.FAILED: "reverted" if "reverted" in verdicts else "failed",
        Exit.REFUSED: "refused, nothing was changed",
        Exit.UNREACHABLE: "not every host could be reached",
        Exit.INTERRUPTED: f"interrupted, {run.stopping or 'at once'}",
    }
    return f"{words[status]}: {hosts}"

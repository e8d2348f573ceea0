"""How long a run may still take, reckoned from the last run of its kind that went well.

Both runs are lists of steps, each a play or task with the time it began. The step that goes on now is looked
up in the earlier run: what came behind it there is what is left. With no earlier run, or a step that was not
in it, nothing is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

Steps = Sequence[tuple[str, float]]


class History:
    """One earlier run."""

    def __init__(self, steps: Steps, ended: float) -> None:
        self.left_at: dict[tuple[str, int], float] = {}
        seen: Counter[str] = Counter()
        for name, at in steps:
            # The same task runs once for each batch: the second time is another step than the first.
            self.left_at[name, seen[name]] = max(0.0, ended - at)
            seen[name] += 1

    def left(self, steps: Steps, now: float) -> float | None:
        """Return the seconds that are left, of a run whose steps so far are ``steps``; None: not known."""
        counts = Counter(name for name, _ in steps)
        for name, at in reversed(steps):
            counts[name] -= 1
            known = self.left_at.get((name, counts[name]))
            if known is not None:
                # Later than the last run was: how much later nobody knows.
                left = known - (now - at)
                return left if left > 0.0 else None
        return None

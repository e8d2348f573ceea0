"""The remaining time of a run, estimated from the last similar successful run.

Both runs are lists of steps, each a play or task with its start time. The current step is looked up in the
earlier run: the time after it there is the time left. Without an earlier run, or for a step that was not in
it, there is no estimate.
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
            # The same task runs once per batch: its second run is another step than its first.
            self.left_at[name, seen[name]] = max(0.0, ended - at)
            seen[name] += 1

    def left(self, steps: Steps, now: float) -> float | None:
        """Return the remaining seconds of a run whose steps so far are ``steps``; None: not known."""
        counts = Counter(name for name, _ in steps)
        for name, at in reversed(steps):
            counts[name] -= 1
            known = self.left_at.get((name, counts[name]))
            if known is not None:
                # Already later than the last run: how much later is unknown.
                left = known - (now - at)
                return left if left > 0.0 else None
        return None

"""Run the targets one after another, always in the same order, within a number of seconds."""

from __future__ import annotations

import contextlib
import hashlib
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.mutate import inputs
from tests.fuzz.target import Failure, Target, judge

EXAMPLES: Final = 100
"""Inputs per round: each round begins at another fixed position."""
LEAST: Final = 5
"""Mutated inputs that every target gets, however slow the machine is."""
FAILED: Final = Path(".make/fuzz")


@dataclass
class Ran:
    """The result of one target."""

    target: Target
    count: int = 0
    failures: dict[str, Failure] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)

    def take(self, content: bytes) -> None:
        """Judge one input; the smallest input of each kind of failure is kept."""
        self.count += 1
        failure = judge(self.target, content)
        if failure is None:
            return
        self.times[failure.kind] = self.times.get(failure.kind, 0) + 1
        known = self.failures.get(failure.kind)
        if known is None or len(failure.content) < len(known.content):
            self.failures[failure.kind] = failure


def fuzz(target: Target, seconds: float, first: int = 0, rounds: int | None = None) -> Ran:
    """Give a target its seeds, then mutated ones until time is up, but at least a few.

    ``rounds`` is the maximum: a run of one round has no input that another machine did not see.
    """
    ran = Ran(target)
    deadline = time.monotonic() + seconds
    for content in (*target.seeds, *target.kept):
        ran.take(content)
    number = first
    while True:
        _round(ran, number, deadline)
        number += 1
        # A reader that hangs shows it once; a hundred times would take the time of the others.
        over = time.monotonic() >= deadline or (rounds is not None and number - first >= rounds)
        if over or sum(ran.times.values()) > 2_000:
            return ran


class _OverError(BaseException):
    """Time is up; hypothesis does not take such an exception for a finding."""


def _round(ran: Ran, number: int, deadline: float) -> None:
    least = len(ran.target.seeds) + len(ran.target.kept) + LEAST

    @hypothesis.seed(number)
    @settings(
        max_examples=EXAMPLES, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(inputs(ran.target))
    def take(content: bytes) -> None:
        if time.monotonic() >= deadline and ran.count >= least:
            raise _OverError
        ran.take(content)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(_OverError):
            take()


def tell(ran: Ran) -> None:
    """Print a target's result, and how to keep the failing inputs."""
    print(f"{ran.target.name}: {ran.count} inputs, {sum(ran.times.values())} failures", flush=True)
    for kind, failure in ran.failures.items():
        digest = hashlib.sha256(failure.content).hexdigest()[:12]
        file = FAILED / ran.target.name / digest
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(failure.content)
        print(f"  {kind}, {ran.times[kind]} times: {failure.told}")
        print(f"    input ({len(failure.content)} bytes): {failure.content[:160]!r}")
        print(
            f"    keep it: mkdir -p tests/fuzz/seeds/{ran.target.name} && cp {file} tests/fuzz/seeds/{ran.target.name}/"
        )


def run(targets: Sequence[Target], seconds: float, first: int = 0, rounds: int | None = None) -> int:
    """Divide the seconds among the targets; return 1 if one of them failed."""
    began, failed, count = time.monotonic(), 0, 0
    for place, target in enumerate(targets):
        # What a quick one leaves goes to those that follow.
        left = max(0.0, began + seconds - time.monotonic())
        ran = fuzz(target, left / (len(targets) - place), first, rounds)
        tell(ran)
        failed += sum(ran.times.values())
        count += ran.count
    print(f"{len(targets)} readers, {count} inputs, {failed} failures in {time.monotonic() - began:.0f} s")
    if failed:
        print("fix the reader, and keep the input as a seed", file=sys.stderr)
    return 1 if failed else 0

"""``python -m tests.fuzz --seconds 120``: every reader of external text against hostile input."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.fuzz.run import run
from tests.fuzz.target import judge
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Run the requested targets."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120, help="for all targets together (default: 120)")
    parser.add_argument("--target", action="append", default=[], help="only targets whose name begins so")
    parser.add_argument("--first", type=int, default=0, help="number of the first round: other inputs")
    parser.add_argument("--rounds", type=int, help="of 100 inputs each at most (default: no limit)")
    parser.add_argument("--input", type=Path, help="give this file to the target and show what comes")
    parser.add_argument("--list", action="store_true", help="list the targets")
    arguments = parser.parse_args()
    targets = [one for one in TARGETS if not arguments.target or one.name.startswith(tuple(arguments.target))]
    if arguments.list or not targets:
        print("\n".join(one.name for one in TARGETS))
        return 0 if targets else 2
    if arguments.input:
        failures = [judge(target, arguments.input.read_bytes()) for target in targets]
        print("\n".join(f"{one.kind}: {one.told}" for one in failures if one) or "read as it should be")
        return 1 if any(failures) else 0
    return run(targets, arguments.seconds, arguments.first, arguments.rounds)


if __name__ == "__main__":
    sys.exit(main())

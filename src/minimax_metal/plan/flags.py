"""The engine's flags in a launch command: names and values as the engine parses them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

ALIASES = {
    "--model": "--model-path",
    "--tensor-parallel-size": "--tp-size",
    "--tp": "--tp-size",
    "--expert-parallel-size": "--ep-size",
    "--ep": "--ep-size",
}
"""Other names that the engine's parser accepts for a flag (read in 0.5.23)."""


def arguments_of(argv: Sequence[str]) -> dict[str, str]:
    """Return the flags of a launch command with their values; the last one counts, as for the engine."""
    values: dict[str, str] = {}
    for number, word in enumerate(argv):
        if not word.startswith("--"):
            continue
        name, mark, value = word.partition("=")
        following = argv[number + 1] if number + 1 < len(argv) else ""
        values[ALIASES.get(name, name)] = value if mark else "" if following.startswith("--") else following
    return values

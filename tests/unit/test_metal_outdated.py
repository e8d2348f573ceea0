"""A unit that runs since before a file it reads was written is named, whatever the clock did since."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.plugins import load_plugin

OUTDATED = load_plugin("modules/metal_outdated")
NOW, UP = 1_700_000_000.0, 5000.0


def shown(unit: str, state: str, monotonic: int) -> str:
    """What ``systemctl show`` prints of a unit (systemd 249 and later)."""
    return f"Id={unit}\nActiveState={state}\nInactiveExitTimestampMonotonic={monotonic}\n"


@pytest.mark.parametrize(
    ("state", "seconds_ago", "named"),
    [
        ("active", 100.0, True),
        ("activating", 100.0, True),
        ("reloading", 100.0, True),
        ("active", 10.0, False),
        ("inactive", 100.0, False),
        ("failed", 100.0, False),
        ("deactivating", 100.0, False),
    ],
)
def test_a_unit_that_runs_with_older_files_is_named(
    state: str, seconds_ago: float, named: bool, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text("x")
    os.utime(file, (NOW - 50, NOW - 50))
    text = shown("a.service", state, int((UP - seconds_ago) * 1e6)) + "\n" + shown("b.service", "active", 1)
    started = OUTDATED.starts(text, NOW, UP)
    found = OUTDATED.outdated({"a.service": [str(tmp_path / "none"), str(file)]}, started, NOW)
    assert list(found) == (["a.service"] if named else [])
    if named:
        assert found["a.service"] == f"a.service: {file} was written 50 s after the unit's start"


def test_a_file_of_times_to_come_or_none_restarts_nothing(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("x")
    os.utime(file, (NOW + 3600, NOW + 3600))
    started = OUTDATED.starts(shown("a.service", "active", 1_000_000), NOW, UP)
    assert OUTDATED.outdated({"a.service": [str(file), str(tmp_path / "none")]}, started, NOW) == {}
    assert OUTDATED.outdated({"a.service": []}, started, NOW) == {}


def test_a_clock_that_was_put_right_after_the_start_moves_no_start() -> None:
    text = "InactiveExitTimestamp=Thu 1970-01-01 00:00:10 UTC\n" + shown("a.service", "active", 10_000_000)
    assert OUTDATED.starts(text, NOW, UP) == {"a.service": NOW - UP + 10}


def test_a_reload_counts_where_units_read_their_files_again_then() -> None:
    text = shown("a.service", "active", 10_000_000) + "StateChangeTimestampMonotonic=20000000\n"
    assert OUTDATED.starts(text, NOW, UP, "StateChange") == {"a.service": NOW - UP + 20}


@pytest.mark.parametrize("text", ["", "Id=a.service\n", shown("a.service", "active", 0), "Id\n\n=\n"])
def test_what_systemd_does_not_say_is_not_guessed(text: str) -> None:
    assert OUTDATED.starts(text, NOW, UP) == {}

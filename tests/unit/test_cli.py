"""The table of verbs."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minimax_metal import __version__, cli


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_every_verb_exists_and_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    module, _, name = cli.VERBS[verb][0].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    try:
        status: object = cli.main([verb, "--help"])
    except SystemExit as end:
        status = end.code
    assert status in {0, None}
    assert f"metal {verb}" in capsys.readouterr().out


def test_usage_version_and_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == cli.EXIT_USAGE
    assert cli.main(["--help"]) == 0
    assert cli.main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out
    assert cli.main(["plna"]) == cli.EXIT_USAGE
    assert "unknown verb 'plna'" in capsys.readouterr().err


def test_a_user_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["record", "--plan", "/nonexistent.json"]) == cli.EXIT_USAGE
    said = capsys.readouterr().err
    assert said.startswith("metal record: can't read the plan")
    assert len(said.splitlines()) == 1


VERBS_THAT_SPEAK = (
    ("--help",),
    ("--version",),
    ("plan", "--help"),
    ("plan", "--model", "M2.5", "--gpu", "H200", "--count", "8"),
    ("plan", "--model", "M2.5", "--gpu", "H200", "--count", "8", "--json"),
    ("plan", "--model", "M2.5", "--gpu", "H200", "--count", "0"),
    ("accept", "--list"),
)


@pytest.mark.parametrize("words", VERBS_THAT_SPEAK, ids=" ".join)
def test_a_reader_that_goes_away_is_no_failure(words: tuple[str, ...]) -> None:
    """``metal plan | head -1`` ended with 1 (because of rich), others with 120 and a message of Python's."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "minimax_metal.cli", *words],
            check=False, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        )  # fmt: skip
    finally:
        os.close(writer)
    assert done.stderr == ""
    # argparse swallows the broken pipe of its own help.
    assert done.returncode in ({0, 141} if "--help" in words else {141})


def test_closed_output_is_no_error() -> None:
    # sys.stdout is None then; the supervisor stopped its engine and said 1 instead of 0.
    words = [sys.executable, "-m", "minimax_metal.cli", "supervise", "--help"]
    done = subprocess.run(["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *words], check=False, timeout=60)
    assert done.returncode == 0

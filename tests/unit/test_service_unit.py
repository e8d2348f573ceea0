"""Words of a unit file, parsed like systemd does."""

from __future__ import annotations

import shlex

import pytest

from minimax_metal.common.systemd import command_lines, quote, quote_assignment


@pytest.mark.parametrize(
    "argument", ["plain", "/srv/models/a", "0|1|0|1", "a b", 'say "x"', "back\\slash", ""]
)
def test_a_quoted_word_reads_back_as_it_was(argument: str) -> None:
    assert shlex.split(quote(argument)) == [argument]


def test_specifiers_and_variables_reach_the_program_as_they_are() -> None:
    assert quote("100%") == '"100%%"'
    assert quote("$HOME/x y") == '"$$HOME/x y"'
    assert quote_assignment("A=$HOME %i") == '"A=$HOME %%i"'


def test_a_line_break_is_refused_instead_of_splitting_the_unit() -> None:
    with pytest.raises(ValueError, match="line break"):
        quote("a\nExecStart=/bin/sh")


def test_a_command_has_one_flag_to_a_line() -> None:
    argv = [
        "/env/bin/python",
        "-m",
        "sglang.launch_server",
        "--tp-size",
        "4",
        "--trust-remote-code",
        "--port",
        "8000",
    ]
    assert command_lines(argv) == [
        "/env/bin/python -m sglang.launch_server",
        "--tp-size 4",
        "--trust-remote-code",
        "--port 8000",
    ]
    assert " ".join(command_lines(argv)).split() == argv

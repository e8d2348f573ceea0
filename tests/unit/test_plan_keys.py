"""Keys that the engine, the gateway and their clients accept, and those that they do not."""

from __future__ import annotations

import pytest

from minimax_metal.plan.keys import acceptable, told

USER, ADMIN = "users-key-0123456789", "admins-key-0123456789"


def test_two_different_keys_are_taken() -> None:
    assert acceptable([[USER], [ADMIN]])
    assert acceptable([[USER, "old-users-key-0123456789"], [ADMIN]])


@pytest.mark.parametrize(
    "lists",
    [
        [[USER], [USER]],
        [[USER, USER], [ADMIN]],
        [["short-key-01234"], [ADMIN]],
        [[""], [ADMIN]],
        [["-key-0123456789abcd"], [ADMIN]],
        [['key-"0123456789abcd'], [ADMIN]],
        [["key-0123456789 abcd"], [ADMIN]],
        [[f"{USER}\n"], [ADMIN]],
    ],
)
def test_what_a_parser_or_a_client_would_not_take_is_refused(lists: list[list[str]]) -> None:
    assert not acceptable(lists)
    assert not acceptable(lists, strong=False)


@pytest.mark.parametrize(
    "lists", [[["aaaaaaaaaaaaaaaa"], [ADMIN]], [[f"{USER}{number}" for number in range(5)], [ADMIN]]]
)
def test_the_engine_wants_strong_keys_and_four_at_most(lists: list[list[str]]) -> None:
    assert not acceptable(lists)
    assert acceptable(lists, strong=False)


GUARDED = {"unit": "sglang@a.service", "keys_directory": "/etc/sglang/a", "proves": True}
PLAIN = {"unit": "sglang@b.service", "keys_directory": "/etc/sglang/b", "proves": False}
OLD = {"unit": "sglang@c.service", "keys_directory": "/etc/sglang/c"}
"""Of a release that was recorded before plans said who proves."""
ONE = [[USER], [ADMIN]]
TWO = [[USER, "old-users-key-0123456789"], [ADMIN]]


@pytest.mark.parametrize(
    ("written", "lists", "asked"),
    [
        ([], ONE, []),
        (["/etc/sglang/a/api_key", "/etc/sglang/b/api_key", "/etc/sglang/c/engine.yaml"], ONE, [GUARDED]),
        (["/etc/sglang/a/accepted.json"], ONE, []),
        (["/etc/sglang/a/accepted.json"], TWO, [GUARDED]),
        (["/etc/sglang/b/api_key"], TWO, []),
        (["/etc/sglang/a"], ONE, []),
    ],
)
def test_engines_with_the_guard_are_asked_about_the_keys_that_they_were_given(
    written: list[str], lists: list[list[str]], asked: list[dict[str, object]]
) -> None:
    assert told([GUARDED, PLAIN, OLD], written, lists) == asked

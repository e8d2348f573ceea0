"""Keys that the engine, the gateway and their clients accept, and those that they do not."""

from __future__ import annotations

import pytest

from minimax_metal.plan.keys import acceptable

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

"""docs/security.md names tests that exist, and every secret that is rotated."""

from __future__ import annotations

import re

import pytest

from minimax_metal.controller.keys.rotation import NAMES
from tests.support.templates import REPOSITORY

PAGE = (REPOSITORY / "docs/security.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


def test_the_page_is_linked_and_names_every_key() -> None:
    assert "docs/security.md" in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert set(NAMES) <= set(re.findall(r"`(\w+)`", PAGE))
    assert len(NAMED) > 20


@pytest.mark.parametrize(("path", "test"), NAMED, ids=lambda one: str(one).rpartition("/")[2])
def test_every_test_that_is_named_exists(path: str, test: str) -> None:
    assert re.search(rf"^def {test}\(", (REPOSITORY / path).read_text(encoding="utf-8"), re.MULTILINE)


def test_every_boundary_names_what_shows_it() -> None:
    table = PAGE.partition("## Boundaries")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert rows
    for row in rows:
        assert "::" in row.rpartition("|")[0].rpartition("|")[2], row

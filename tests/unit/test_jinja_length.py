"""No Jinja expression of a role or a playbook is longer than a reader can grasp at a glance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
JINJA = jinja2.Environment(autoescape=True)
LIMIT = 120
"""Characters of one expression, with runs of whitespace counted as one."""
IMPLICIT = frozenset({"when", "changed_when", "failed_when", "until", "that", "break_when"})
"""Keys whose values are expressions without braces."""
LEFT: dict[str, int] = {}
"""Expressions that are still too long, by file: these numbers only go down."""


def blocks(text: str) -> Iterator[str]:
    """Yield the expressions and statements of a template, without their braces."""
    inside: list[str] | None = None
    for _, token, value in JINJA.lex(text):
        if token in ("variable_begin", "block_begin"):
            inside = []
        elif token in ("variable_end", "block_end"):
            yield " ".join("".join(inside or ()).split())
            inside = None
        elif inside is not None:
            inside.append(value)


def expressions(node: Any, *, implicit: bool = False) -> Iterator[str]:
    """Yield all expressions below a node of a YAML document."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from expressions(value, implicit=key in IMPLICIT)
    elif isinstance(node, list):
        for one in node:
            yield from expressions(one, implicit=implicit)
    elif isinstance(node, str):
        found = list(blocks(node))
        yield from found
        if implicit and not found:
            yield " ".join(node.split())


def too_long(path: Path) -> list[str]:
    """Return the expressions of a file that are over the limit."""
    text = path.read_text(encoding="utf-8")
    found = expressions(yaml.safe_load(text)) if path.suffix == ".yml" else blocks(text)
    return [one for one in found if len(one) > LIMIT]


def files() -> list[Path]:
    """Return every file of the roles and playbooks that may contain an expression."""
    places = [ROOT / "site.yml"]
    for room in ("roles", "playbooks"):
        places += [one for one in sorted((ROOT / room).rglob("*")) if one.suffix in (".yml", ".j2")]
    return places


def test_no_expression_is_longer_than_the_limit() -> None:
    """Longer expressions call a filter, or get a name in the role's vars."""
    found = {str(path.relative_to(ROOT)): too_long(path) for path in files()}
    counts = {name: len(long) for name, long in found.items() if long}
    worse = {name: found[name] for name, count in counts.items() if count > LEFT.get(name, 0)}
    assert not worse, f"expressions over {LIMIT} characters: {worse}"


@pytest.mark.parametrize(
    ("document", "lengths"),
    [
        ({"a": "x {{ 'a' * 3 }} y {{ {'b': {}} }}"}, [7, 9]),
        ({"when": ["a and\n   b", "c"]}, [7, 1]),
        ({"vars": {"when_not": "no expression"}}, []),
        ({"loop": ["{% if x %}{{ y }}{% endif %}"]}, [4, 1, 5]),
    ],
)
def test_expressions_are_found_where_ansible_reads_them(document: Any, lengths: list[int]) -> None:
    """Braces anywhere, and conditions without; a literal with its own braces does not end one."""
    assert [len(one) for one in expressions(document)] == lengths

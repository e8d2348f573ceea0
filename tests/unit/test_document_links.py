"""Links between the Markdown files of this repository have targets, and every guide can be found."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest

from tests.support.templates import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

_CODE_BLOCK = re.compile(r"^(```|~~~)[\s\S]*?^\1[^\n]*$", re.MULTILINE)
_INDENTED = re.compile(r"^(?: {4}|\t)[^\n]*$", re.MULTILINE)
_SPAN = re.compile(r"(`+)(?:(?!\1).)*?\1")
_LINK = re.compile(r"\]\(([^()\s]+(?:\([^()\s]*\))?)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)


def _tracked() -> list[Path]:
    named = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return sorted(path for name in named.splitlines() if (path := REPOSITORY / name).is_file())


def links(text: str) -> list[str]:
    """Return the targets of the links in Markdown, except those in code."""
    # An indented line may be code or the continuation of a list: its links count either way.
    return _LINK.findall(_SPAN.sub("", _CODE_BLOCK.sub("", text)))


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings: lower case, dashes, numbered when they repeat."""
    text = _INDENTED.sub("", _CODE_BLOCK.sub("", text))
    seen: Counter[str] = Counter()
    found = set()
    for heading in _HEADING.findall(text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        name = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def broken(path: Path, root: Path = REPOSITORY) -> list[str]:
    """Return the relative links of a file that have no target."""
    wrong = []
    for target in links(path.read_text(encoding="utf-8")):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        name, _, anchor = unquote(target).partition("#")
        other = (path.parent / name).resolve() if name else path
        if not other.exists() or not other.is_relative_to(root):
            wrong.append(f"{target}: no such file")
        elif anchor and other.suffix == ".md" and anchor not in anchors(other.read_text(encoding="utf-8")):
            wrong.append(f"{target}: no such heading")
    return wrong


@pytest.mark.parametrize("path", _tracked(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    assert broken(path) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# The `metal` command: [what](a.md) it does\n\n## Twice\n\n## Twice\n")
    page = tmp_path / "a.md"
    page.write_text(
        "[a](b.md#the-metal-command-what-it-does) [b](b.md#twice-1) [c](https://example.net/x.md)\n`[d](no.md)`\n"
        "```\n[e](no.md)\n# No heading\n```\n[f](c.md) [g](b.md#other) [h](#no-heading)\n"
    )
    assert broken(page, tmp_path) == [
        "c.md: no such file",
        "b.md#other: no such heading",
        "#no-heading: no such heading",
    ]

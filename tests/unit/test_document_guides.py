"""Everything that the guides name exists: commands, options, playbooks and variables. Guides share a
structure.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
from typing import TYPE_CHECKING

import pytest

from minimax_metal.cli import VERBS, function_of
from minimax_metal.plan.settings import SETTINGS
from tests.support.templates import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

DOCS = REPOSITORY / "docs"
REFERENCES = {"README.md", "glossary.md", "matrix.md", "settings.md", "troubleshooting.md"}
"""Reference pages, which do not have the structure of a guide."""
GUIDES = sorted(path for path in DOCS.glob("*.md") if path.name not in REFERENCES)
PAGES = sorted([REPOSITORY / "README.md", *DOCS.glob("*.md"), *REPOSITORY.glob("roles/*/README.md")])
ANSIBLE = {
    "--limit", "--check", "--diff", "--tags", "--skip-tags", "--start-at-task", "--vault-password-file",
    "--vault-id", "--private-key", "--ask-become-pass", "--become", "--ansible",
}  # fmt: skip
"""Options of ansible-playbook, which the verbs pass on."""
PASSED_ON = {"site", "rollout", "rollback", "keys", "status"}


def name_of(path: Path) -> str:
    """Return a page's name as people write it."""
    return str(path.relative_to(REPOSITORY))


def code(text: str) -> list[str]:
    """Return the lines of code and the code spans of a page, without comments."""
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    spans = re.findall(r"`([^`]+)`", "\n".join(line for line in text.splitlines() if line[:4] != "    "))
    return [re.sub(r"\s+", " ", re.split(r"\s#\s", one)[0]) for one in [*lines, *spans]]


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Return each ``metal VERB`` of a page with the following words."""
    found = []
    for one in code(text):
        for words in re.findall(r"(?:^|[|;(] ?|sudo |run |metal-bundle )metal ([a-z][^|;]*)", one):
            verb, *rest = words.split()
            found.append((verb, rest))
    return found


@functools.cache
def help_of(verb: str, word: str) -> str:
    """Return the help of a verb, or of the verb within it that ``word`` names."""
    output = io.StringIO()
    argv = [word, "--help"] if word else ["--help"]
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        function_of(verb, argv)(argv)
    return output.getvalue()


@pytest.mark.parametrize("path", GUIDES, ids=name_of)
def test_a_guide_begins_with_its_purpose_and_ends_with_its_failures(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.match(r"# [^\n]+\n\n(?:[^\n]+\n)*?Use (this page|the lab) ", text)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE)[-1] == "When it fails"


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("roles/*/README.md")), ids=name_of)
def test_a_role_says_how_it_behaves_and_what_to_do_when_it_fails(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert {"Idempotence", "Check mode", "When it fails"} <= set(re.findall(r"\*\*([^*]+)\*\*", text))


@pytest.mark.parametrize("folder", [DOCS, DOCS / "evidence"], ids=name_of)
def test_every_page_is_in_the_index(folder: Path) -> None:
    index = (folder / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in folder.glob("*.md")} - {"README.md"}
    assert {name for name in pages if f"]({name})" not in index} == set()


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_command_and_option_exists(path: Path) -> None:
    wrong = []
    for verb, words in commands(path.read_text(encoding="utf-8")):
        if verb not in VERBS:
            wrong.append(f"metal {verb}")
            continue
        word = words[0] if words and re.fullmatch(r"[a-z]+(-[a-z]+)*", words[0]) else ""
        inner = word if verb not in {"explain", "accept", "report"} else ""
        known = help_of(verb, "" if verb == "keys" else inner)
        if inner and inner not in help_of(verb, ""):
            wrong.append(f"metal {verb} {inner}")
        known += help_of("keys", "rotate") if verb == "keys" else ""
        allowed = ANSIBLE if verb in PASSED_ON | {"accept"} else set()
        options = {re.split(r"[=,)]", one)[0] for one in words if re.match(r"--[a-z]", one)}
        wrong += [
            f"metal {verb} {inner} {one}"
            for one in sorted(options - allowed)
            if not re.search(rf"(?<![\w-]){re.escape(one)}(?![\w-])", known)
        ]
    assert wrong == []


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_playbook_exists(path: Path) -> None:
    named = set(re.findall(r"playbooks/([\w/]+\.yml)", path.read_text(encoding="utf-8")))
    assert {name for name in named if not (REPOSITORY / "playbooks" / name).is_file()} == set()


@functools.cache
def variables() -> frozenset[str]:
    """Return every word of the product that may be the name of a variable."""
    suffixes = {".py", ".yml", ".j2", ".toml"}
    files = (
        path
        for room in ("roles", "playbooks", "plugins", "src")
        for path in (REPOSITORY / room).rglob("*")
        if path.suffix in suffixes and path.is_file()
    )
    words = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)+")
    return frozenset(one.name for one in SETTINGS).union(
        *(words.findall(path.read_text("utf-8")) for path in files)
    )


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_variable_exists(path: Path) -> None:
    roles = "|".join(sorted(one.name for one in (REPOSITORY / "roles").iterdir()))
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(rf"(?<![\w./-])((?:metal|{roles})_[a-z0-9_]*[a-z0-9])(?![\w/-])", text))
    assert named - variables() == set()

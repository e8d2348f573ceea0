"""docs/plan.md agrees with the code."""

from __future__ import annotations

import re
from pathlib import Path

import minimax_metal
from minimax_metal.plan.settings import PLAYBOOK_SETTINGS, SETTINGS
from minimax_metal.plan.settings.roles import ROLE_SETTINGS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")


def _sources() -> list[str]:
    """Return the text of the modules that refuse or warn: the plan's, and the adapter on the controller."""
    package = Path(minimax_metal.__file__).parent
    files = [*sorted((package / "plan").rglob("*.py")), package / "controller" / "adapter.py"]
    return [path.read_text(encoding="utf-8") for path in files]


def test_every_refusal_is_in_the_table() -> None:
    sources = _sources()
    codes = set(re.findall(r'\.refuse\(\s*"([a-z-]+)"', "\n".join(sources)))
    codes |= set(re.findall(r'Refusal\(\s*(?:code=)?"([a-z-]+)"', "\n".join(sources)))
    declared = [*SETTINGS, *PLAYBOOK_SETTINGS, *ROLE_SETTINGS.values()]
    codes |= {one.code for one in declared if one.choices}
    codes |= {one.bounds.code for one in declared if one.bounds}
    codes |= set(re.findall(r'"(host-unread)"', "\n".join(sources)))
    codes |= set(re.findall(r'_rule\(\s*"([a-z-]+)"', "\n".join(sources)))
    # The controller's own problems are one entry of the table: `controller-…`.
    codes = {code for code in codes if not code.startswith("controller-")}
    table = TEXT.split("## Refusals")[1].split("## Warnings")[0]
    rows = "\n".join(line for line in table.splitlines() if line.startswith("|"))
    assert set(re.findall(r"`([a-z]+(?:-[a-z]+)*)`", rows)) == codes


def test_the_warnings_it_explains_exist() -> None:
    sources = _sources()
    codes = set(re.findall(r'\.warn\(\s*"([a-z-]+)"', "\n".join(sources)))
    section = TEXT.split("## Warnings")[1].split("\n## ")[0]
    explained = set(re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE))
    assert explained >= {"disk-adopt", "flashinfer-cubins"}
    assert explained <= codes

"""Rules for every role, playbook and template."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from minimax_metal.plan.settings import PLAYBOOK_SETTINGS, SETTINGS
from minimax_metal.plan.settings.reading import INTERNAL
from tests.support.templates import TEMPLATES

REPOSITORY = Path(__file__).parents[2]
ROLES = sorted(path.name for path in (REPOSITORY / "roles").iterdir())
TEXTS = sorted(
    path
    for place in ("roles", "playbooks", "plugins")
    for path in (REPOSITORY / place).rglob("*")
    if path.is_file() and path.suffix in {".yml", ".j2", ".py"}
)
NAMES = {setting.name for setting in (*SETTINGS, *PLAYBOOK_SETTINGS)} | INTERNAL
FILTERS = {
    name
    for path in (REPOSITORY / "plugins/filter").glob("*.py")
    for name in re.findall(r'"(metal_\w+)":', path.read_text())
}
MODULES = {
    path.stem for place in ("modules", "action") for path in (REPOSITORY / "plugins" / place).glob("*.py")
}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text()) if path.exists() else None


def tasks(nodes: Any) -> list[dict[str, Any]]:
    """Return the tasks of a list, including those in blocks."""
    found = []
    for node in nodes or []:
        found.append(node)
        for part in ("block", "rescue", "always"):
            found += tasks(node.get(part))
    return found


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_specification_agree(role: str) -> None:
    defaults = load(REPOSITORY / "roles" / role / "defaults" / "main.yml") or {}
    options = load(REPOSITORY / "roles" / role / "meta" / "argument_specs.yml")["argument_specs"]["main"][
        "options"
    ]
    stated = {name: option["default"] for name, option in options.items() if "default" in option}
    assert {name: str(value).split() for name, value in stated.items()} == {
        name: str(value).split() for name, value in defaults.items()
    }
    assert set(options) - set(defaults) <= {"metal_plan"}


@pytest.mark.parametrize("role", ROLES)
def test_variables_carry_the_name_of_their_role(role: str) -> None:
    for name in load(REPOSITORY / "roles" / role / "defaults" / "main.yml") or {}:
        assert name.startswith(f"{role}_")
    for name in load(REPOSITORY / "roles" / role / "vars" / "main.yml") or {}:
        assert name.startswith(f"__{role}_")


@pytest.mark.parametrize("role", ROLES)
def test_every_role_says_what_it_does(role: str) -> None:
    text = (REPOSITORY / "roles" / role / "README.md").read_text()
    assert "Check mode" in text
    assert text.startswith(f"# {role}\n")


@pytest.mark.parametrize("role", ROLES)
def test_commands_say_whether_they_change_something(role: str) -> None:
    for path in (REPOSITORY / "roles" / role / "tasks").glob("*.yml"):
        for task in tasks(load(path)):
            assert "ansible.builtin.shell" not in task
            assert "ignore_errors" not in task
            if "ansible.builtin.command" in task:
                assert "changed_when" in task or "creates" in task["ansible.builtin.command"], task["name"]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_nothing_that_runs_in_production_knows_of_a_lab(path: Path) -> None:
    assert not re.search(r"\blab\b|\blab_", path.read_text(), re.IGNORECASE)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_settings_that_are_read_exist(path: Path) -> None:
    used = set(re.findall(r"(?<![\w.-])metal_[a-z_]+", path.read_text()))
    assert used <= NAMES | FILTERS | MODULES


def test_every_service_and_every_template_is_used() -> None:
    """Through a role's list of owned files, or through a task of the role."""
    for role in ROLES:
        text = "".join(path.read_text() for path in (REPOSITORY / "roles" / role).glob("*/*.yml"))
        for template in (REPOSITORY / "roles" / role / "templates").glob("*"):
            assert re.search(rf"(src|template): {re.escape(template.name)}", text), template


def test_a_role_is_complete_in_itself() -> None:
    """Used alone from the installed collection, there are no neighbouring files under a path of the
    repository.
    """
    for place in ("roles", "playbooks"):
        assert [path for path in (REPOSITORY / place).rglob("*") if path.is_symlink()] == []
    assert len(TEMPLATES) == len(list(REPOSITORY.glob("roles/*/templates/*.j2")))
    index = (REPOSITORY / "templates" / "README.md").read_text()
    named = set(re.findall(r"\]\(\.\./(roles/[^)]+)\)", index))
    units = {
        str(path.relative_to(REPOSITORY))
        for path in TEMPLATES.values()
        if path.suffixes[-2] in {".service", ".socket", ".target"}
    }
    assert named == units


JOINED_BEFORE_TEST = re.compile(r"""~\s*(?:'[^']*'|"[^"]*"|\w+)\s+is\s""")
"""In Jinja a test applies to the operand directly before it: ``a ~ 'b' is exists`` tests ``'b'``."""


@pytest.mark.parametrize(
    "path", sorted(REPOSITORY.glob("roles/*/*/*.yml")), ids=lambda path: "/".join(path.parts[-3:])
)
def test_a_joined_path_is_tested_as_a_whole(path: Path) -> None:
    assert JOINED_BEFORE_TEST.findall(path.read_text()) == []

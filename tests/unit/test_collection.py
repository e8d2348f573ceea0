"""The repository as the Ansible collection ``minimax.metal``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FULL = "minimax.metal."
ACTIONS = {
    path.stem for kind in ("modules", "action") for path in (REPOSITORY / "plugins" / kind).glob("*.py")
}
LOOKUPS = {path.stem for path in (REPOSITORY / "plugins/lookup").glob("*.py")}
FILTERS = {
    name
    for path in (REPOSITORY / "plugins/filter").glob("*.py")
    for name in re.findall(r'"(metal_\w+)":', path.read_text())
}
ROLES = {path.name for path in (REPOSITORY / "roles").iterdir()}
USED = (
    (ACTIONS, re.compile(r"^[ ]*(?:- )?((?:minimax\.metal\.)?metal_\w+):(?= &|$)", re.MULTILINE)),
    (FILTERS, re.compile(r"(?:\||\bmap\(['\"])[ ]*((?:minimax\.metal\.)?metal_\w+)")),
    (LOOKUPS, re.compile(r"\b(?:lookup|query|q)\(\s*['\"]((?:minimax\.metal\.)?[a-z_]+)['\"]")),
    (
        ROLES,
        re.compile(r"(?:^[ ]*- role: |_role:\n(?:[ ]+(?!name:)\w+:.*\n)*[ ]+name: )([\w.]+)$", re.MULTILINE),
    ),
)
"""How our own actions, filters, lookups and roles are asked for."""
TEXTS = sorted(
    path
    for place in ("roles", "playbooks", "molecule", "site.yml")
    for path in [REPOSITORY / place, *(REPOSITORY / place).rglob("*")]
    if path.is_file() and path.suffix in {".yml", ".j2"} and path.parent.name != "meta"
)


def uses(text: str) -> Iterator[tuple[str, set[str]]]:
    for known, pattern in USED:
        for name in pattern.findall(text):
            yield name, known


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_own_plugins_and_roles_are_named_in_full(path: Path) -> None:
    """Short names are found with this repository's ansible.cfg only."""
    for name, known in uses(path.read_text(encoding="utf-8")):
        assert name.removeprefix(FULL) not in known or name.startswith(FULL), name
        assert not name.startswith(FULL) or name.removeprefix(FULL) in known, (
            f"{name}: there is no such plugin"
        )


def test_the_search_for_names_finds_them() -> None:
    found = {name for path in TEXTS for name, _ in uses(path.read_text(encoding="utf-8"))}
    for known in (ACTIONS, FILTERS, LOOKUPS, ROLES):
        assert len({FULL + name for name in known} & found) >= 3


def test_plugins_are_found_from_any_directory_with_any_settings(tmp_path: Path) -> None:
    """Was "couldn't resolve module/action 'metal_facts'" with somebody's own ``ANSIBLE_CONFIG``."""
    (tmp_path / "own.cfg").write_text("[defaults]\n")
    (tmp_path / "play.yml").write_text(
        "- hosts: localhost\n"
        "  gather_facts: false\n"
        "  tasks:\n"
        "    - minimax.metal.metal_facts:\n"
        "      register: found\n"
        "    - ansible.builtin.assert:\n"
        "        that:\n"
        "          - found.facts is defined\n"
        "          - query('minimax.metal.role_values', 'ansible_play_hosts') | length == 1\n"
        "          - dict(a=groups) | minimax.metal.metal_lock_refusals is defined\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", "-c", "local",
         "-e", f"ansible_python_interpreter={sys.executable}", "play.yml"],
        cwd=tmp_path, env=environment | {"ANSIBLE_CONFIG": str(tmp_path / "own.cfg")},
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr

"""Root names nothing in a directory of a service: not in a role, not in a unit, not in a playbook."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.templates import REPOSITORY

THEIRS = re.compile(
    r"/var/lib/sglang|/var/cache/sglang|/var/(lib|cache)/minimax-metal-weights|/srv/models"
    r"|metal_plan\.model\.path|metal_plan\.kernel_cache\.path|precompile\.(cache|marker)"
)
"""Directories that a service's user owns, and how tasks name them."""
BY_NAME = {
    "assemble", "blockinfile", "copy", "fetch", "file", "get_url", "metal_page", "lineinfile", "replace",
    "slurp", "synchronize", "template", "unarchive",
}  # fmt: skip
"""Modules that open, write or change a named file."""
GIVEN = ("model_weights", "directories")
"""Role and part of the directories given to a service; `metal weights own` makes those above them root's."""
WITH_PRIVILEGES = {
    # Each works with the rights of whoever owns the way (test_planted_links.py), or asks systemd only.
    "metal-page-cache.service.j2": ["ExecCondition=+/bin/sh -c '! systemctl"],
    "metal-weights@.service.j2": ["ExecStartPre=-+/usr/local/bin/metal weights adopt"],
    "sglang-gateway.service.j2": ["ExecStartPost=+/usr/local/bin/metal gateway ready"],
    "sglang-precompile.service.j2": ["ExecStartPost=+/usr/local/bin/metal kernels copy"],
}


def tasks_of(content: Any) -> list[dict[str, Any]]:
    """All tasks of a file, including those of blocks and plays."""
    found: list[dict[str, Any]] = []
    for one in content if isinstance(content, list) else []:
        if not isinstance(one, dict):
            continue
        inner = [
            task
            for part in ("block", "rescue", "always", "tasks", "pre_tasks", "post_tasks", "handlers")
            for task in one.get(part) or []
        ]
        found += [one, *tasks_of(inner)]
    return found


FILES = sorted(
    path
    for directory in ("roles", "playbooks")
    for path in (REPOSITORY / directory).rglob("*.yml")
    if "tasks" in path.parts or "handlers" in path.parts or directory == "playbooks"
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_task_names_a_path_in_a_services_directory(path: Path) -> None:
    for task in tasks_of(yaml.safe_load(path.read_text(encoding="utf-8"))):
        for key, arguments in task.items():
            module = key.rpartition(".")[2]
            if module not in BY_NAME or not isinstance(arguments, dict):
                continue
            places = [str(arguments.get(name) or "") for name in ("path", "dest", "src")]
            if module != "fetch":
                places.append(str(task.get("loop") or ""))
            if any(THEIRS.search(place) for place in places):
                where = str(path.relative_to(REPOSITORY)), str(task.get("name"))
                assert task.get("become_user") not in {None, "root"}, f"{where}: {places}"


@pytest.mark.parametrize(
    "path", sorted(REPOSITORY.glob("roles/*/meta/owned.yml")), ids=lambda path: path.parts[-3]
)
def test_no_list_of_a_role_names_a_file_in_a_services_directory(path: Path) -> None:
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")).get("files", []):
        where = (path.parts[-3], entry.get("part"))
        assert where == GIVEN or not THEIRS.search(f"{entry['path']} {entry.get('each')}"), entry
        assert where != GIVEN or entry.get("directory") is True, entry


def test_units_run_little_with_full_privileges() -> None:
    found: dict[str, list[str]] = {}
    for template in sorted(REPOSITORY.glob("roles/*/templates/*.service.j2"), key=lambda path: path.name):
        for line in template.read_text(encoding="utf-8").splitlines():
            if re.match(r"Exec\w+=[-@:]*[+!]", line):
                found.setdefault(template.name, []).append(line)
    assert found.keys() == WITH_PRIVILEGES.keys()
    for name, lines in found.items():
        assert len(lines) == len(WITH_PRIVILEGES[name])
        assert all(
            line.startswith(start) for line, start in zip(lines, WITH_PRIVILEGES[name], strict=True)
        ), lines

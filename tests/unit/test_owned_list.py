"""A role's list is rendered for a host, and every role's own list is one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from minimax_metal.common.errors import UserError
from minimax_metal.controller.owned import (
    KEYS,
    KINDS,
    LIST,
    Rendering,
    encoded,
    project_of_wheel,
    projects_of_lock,
)

REPOSITORY = Path(__file__).parents[2]
ROLES = [path.parents[1] for path in sorted(REPOSITORY.glob(f"roles/*/{LIST}"))]
RENDERED = {"{{ yes }}": True, "{{ no }}": False, "{{ item }}": "item", "{{ all }}": ["a", "b"]}


def value(one: Any, more: Mapping[str, Any]) -> Any:
    """Stands where Ansible's templar does."""
    if isinstance(one, list):
        return [value(part, more) for part in one]
    if not isinstance(one, str):
        return one
    return RENDERED[one] if one in RENDERED else one.replace("ITEM", str(more.get("item", "")))


def owned(raw: Any, part: str = "") -> Any:
    def template(name: str, path: str, more: Mapping[str, Any]) -> str:
        return f"{name} at {path} {more.get('item', '')}"

    return Rendering(value=value, template=template, file=Path, role="demo").owned(raw, part)


def test_a_part_renders_its_own_files_alone() -> None:
    files = [
        {"path": "/etc/now", "content": "x"},
        {"path": "/etc/later", "content": "y", "part": "later"},
        {"path": "/etc/never", "each": "{{ unknown }}", "content": 3, "part": "other"},
    ]
    assert [entry.path for entry in owned({"files": files}, "later").files] == ["/etc/later"]


def test_versions_of_the_list_count_more_than_those_of_its_locks(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("sglang==0.5.22\nuv==0.13.9\n")
    stated = {"path": "/v", "locks": [str(tmp_path / "lock")], "projects": {"SGLang": "0.5.23"}}
    found = owned({"environments": [stated], "strays": ["/etc/a@*.service"]})
    assert found.environments[0]["projects"] == {"sglang": "0.5.23", "uv": "0.13.9"}
    assert found.strays == ("/etc/a@*.service",)


def test_entries_become_one_for_each_item(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("uv==0.13.9 \\\n")
    found = owned(
        {
            "files": [
                {"path": "/etc/ITEM", "each": "{{ all }}", "template": "t", "restarts": ["ITEM.service"]},
                {"path": "/etc/d", "directory": True, "owner": "x"},
                {"path": "/etc/no", "content": "x", "present": "{{ no }}"},
                {"path": "/etc/never", "content": "x", "when": "{{ no }}"},
                {"path": "/etc/key", "content": "k", "secret": True, "mode": "0600", "part": "keys"},
                {"path": "/etc/lock", "copy": str(tmp_path / "lock")},
                {"path": "/etc/link", "link": "d", "reloads": ["b.service"]},
            ],
            "units": [{"name": "a.service", "enabled": "{{ yes }}", "running": True}],
            "packages": "{{ all }}",
            "users": [{"name": "u", "home": "/nonexistent"}],
            "environments": [
                {"path": "/v", "locks": [str(tmp_path / "lock")], "wheels": ["x-1.0-py3-none-any.whl"]},
            ],
        }
    )  # fmt: skip
    kinds = {entry.path: entry.module["kind"] for entry in found.files}
    assert kinds == {
        "/etc/a": "file",
        "/etc/b": "file",
        "/etc/d": "directory",
        "/etc/no": "absent",
        "/etc/key": "file",
        "/etc/lock": "file",
        "/etc/link": "link",
    }
    by = {entry.path: entry for entry in found.files}
    assert by["/etc/a"].content == "t at /etc/a a"
    assert (by["/etc/d"].module["mode"], by["/etc/d"].module["owner"]) == ("0755", "x")
    assert (by["/etc/key"].secret, by["/etc/key"].part, by["/etc/key"].module["mode"]) == (
        True,
        "keys",
        "0600",
    )
    assert by["/etc/lock"].module["size"] == 13
    assert found.units_of(found.files) == [
        {"name": "a.service", "enabled": True, "running": True, "restarts": ["/etc/a"], "reloads": []},
        {"name": "b.service", "restarts": ["/etc/b"], "reloads": ["/etc/link"]},
    ]
    assert found.packages == ({"name": "a", "unless": []}, {"name": "b", "unless": []})
    some = [{"name": "ntp", "unless": ["/chrony"]}, {"name": "never", "when": "{{ no }}"}, "nginx"]
    wanted = [("ntp", ["/chrony"]), ("nginx", [])]
    assert [(one["name"], one["unless"]) for one in owned({"packages": some}).packages] == wanted
    assert found.users == ({"name": "u", "home": "/nonexistent", "shell": "/usr/sbin/nologin"},)
    assert found.environments == ({"path": "/v", "projects": {"uv": "0.13.9", "x": "1.0"}},)
    # Neither keys nor any other content stands where Ansible writes down what a module was given.
    assert "content" not in by["/etc/key"].module
    assert "k" not in by["/etc/key"].module.values()
    assert encoded("k") == "aw=="


@pytest.mark.parametrize(
    "raw",
    [
        [],
        {"files": [{"path": "relative", "content": "x"}]},
        {"files": [{"path": "/etc/x"}]},
        {"files": [{"path": "/etc/x", "content": "x", "template": "t"}]},
        {"files": [{"path": "/etc/x", "content": "x", "restart": ["a.service"]}]},
        {"units": [{"name": "a.service", "state": "started"}]},
    ],
)
def test_a_list_that_is_none_is_refused_with_its_role(raw: Any) -> None:
    with pytest.raises(UserError, match=r"^demo: found "):
        owned(raw)


def test_a_lock_is_read_for_linux_and_the_hosts_python() -> None:
    text = (
        "# a comment\nuv==0.13.9 \\\n    --hash=sha256:00\n    # via x\n"
        "colorama==0.4.6 ; sys_platform == 'win32' \\\n    --hash=sha256:00\n"
        "Typing_Extensions==4.1 ; python_full_version < '3.12' \\\ntorch==2.9.1+cu130\n--index-url https://x\n"
    )
    new = {"uv": "0.13.9", "torch": "2.9.1+cu130"}
    assert projects_of_lock(text, "3.12") == new
    assert projects_of_lock(text, "3.11") == new | {"typing-extensions": "4.1"}
    assert project_of_wheel("/x/minimax_metal-0+ab.cd-py3-none-any.whl") == {"minimax-metal": "0+ab.cd"}
    assert project_of_wheel("/x/README") == {}


@pytest.mark.parametrize("role", ROLES, ids=lambda path: path.name)
def test_every_list_says_what_the_others_say_nowhere(role: Path) -> None:
    """What is in a list is not written, or named, a second time in the role's tasks."""
    raw = yaml.safe_load((role / LIST).read_text())
    assert set(raw) <= {"files", "units", "packages", "users", "environments", "strays", "removal", "remains"}
    for kind, keys in KEYS.items():
        for entry in raw.get(kind) or []:
            if isinstance(entry, str):
                continue
            assert set(entry) <= keys | {"each", "when"}
    tasks = "".join(path.read_text() for path in (role / "tasks").glob("*.yml"))
    used = set()
    for entry in raw.get("files") or []:
        assert len(set(entry) & set(KINDS)) <= 1
        # `pending.keys` is a method of every mapping, and so always defined.
        assert entry.get("part") not in dir({})
        if "{{" not in entry["path"]:
            assert f"dest: {entry['path']}" not in tasks
        if "template" in entry:
            used.add(entry["template"])
    # A template that no entry uses is left over.
    for template in role.glob("templates/*.j2"):
        assert template.name in used, template
    assert "metal_owned:" in tasks


@pytest.mark.parametrize("role", ROLES, ids=lambda path: path.name)
def test_what_a_role_writes_is_in_no_sets_order(role: Path) -> None:
    """Ansible's filters of sets give their items in another order in each run, and the file would differ."""
    for path in (role / LIST, *role.glob("templates/*.j2")):
        found = re.findall(r"\| *(?:union|difference|intersect|symmetric_difference)\b", path.read_text())
        assert found == [], path

"""What a role left is known again, and whatever of it is damaged is seen."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from minimax_metal.controller.inputs import digest_of_inputs
from tests.support.plugins import load_plugin

REPOSITORY = Path(__file__).parents[2]
USERS = [
    path.parent.parent.name
    for path in sorted(REPOSITORY.glob("roles/*/tasks/main.yml"))
    if any("metal_state:" in one.read_text() for one in path.parent.glob("*.yml"))
]


STATE = load_plugin("modules/metal_state")


class Host:
    """Stands where Ansible's module does: programs answer what they are told to."""

    def __init__(self, **answers: str) -> None:
        self.answers = answers
        self.place = Path(tempfile.mkdtemp())

    def get_bin_path(self, name: str) -> str | None:
        if name not in self.answers:
            return None
        (self.place / "answer").write_text(self.answers[name])
        program = self.place / name
        program.write_text(f"#!/bin/sh\ncat {self.place}/answer\n")
        program.chmod(0o755)
        return str(program)

    def fail_json(self, msg: str) -> None:
        raise SystemExit(msg)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("a")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "directory").mkdir(mode=0o755)
    packages = tmp_path / "venv/lib/python3.11/site-packages"
    (packages / "rich").mkdir(parents=True)
    (packages / "rich-15.dist-info").mkdir()
    (packages / "rich-15.dist-info/RECORD").write_text("rich/__init__.py\n")
    (tmp_path / "venv/bin").mkdir()
    (tmp_path / "venv/bin/python").write_text("#!")
    (tmp_path / "venv/pyvenv.cfg").write_text("home = /usr/bin\n")
    return tmp_path


def state(
    place: Path,
    packages: str = "ninja-build\tii \t1.11\n",
    units: str = "Id=a.service\nUnitFileState=enabled\n",
) -> dict[str, Any]:
    files = [str(place / name) for name in ("file", "link", "directory", "absent")]
    asked = {
        "files": files,
        "environments": [str(place / "venv")],
        "packages": ["ninja-build"],
        "units": ["a.service"],
        "users": ["root"],
    }
    found = STATE.collect(Host(**{"dpkg-query": packages, "systemctl": units}), asked)
    return {"schema": 1, "inputs": "x", "state": found}


def test_what_is_written_down_is_known_again(place: Path) -> None:
    path = place / "state" / "role.json"
    assert STATE.differences(STATE.read(path), state(place)) == ["nothing is known of an earlier run"]
    STATE.write(path, state(place))
    assert STATE.differences(STATE.read(path), state(place)) == []
    assert path.stat().st_mode & 0o777 == 0o644
    assert [one.name for one in path.parent.iterdir()] == ["role.json"]


def relink(place: Path) -> None:
    (place / "link").unlink()
    (place / "link").symlink_to("/nowhere")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "content": lambda place: (place / "file").write_text("b"),
    "mode": lambda place: (place / "file").chmod(0o600),
    "gone": lambda place: (place / "file").unlink(),
    "mode of a directory": lambda place: (place / "directory").chmod(0o700),
    "link": relink,
    "what must not be there": lambda place: (place / "absent").write_text(""),
    "package of an environment": lambda place: (place / "venv/lib/python3.11/site-packages/rich").rmdir(),
    "list of a package": lambda place: (
        place / "venv/lib/python3.11/site-packages/rich-15.dist-info/RECORD"
    ).unlink(),
    "program of an environment": lambda place: (place / "venv/bin/python").unlink(),
    "whole environment": lambda place: (place / "venv/pyvenv.cfg").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_damage_is_seen(place: Path, damage: str) -> None:
    before = state(place)
    DAMAGE[damage](place)
    assert len(STATE.differences(before, state(place))) == 1


def test_packages_units_and_wishes_are_seen(place: Path) -> None:
    before = state(place)
    assert STATE.differences(before, state(place, packages="ninja-build\trc \t1.11\n")) != []
    assert STATE.differences(before, state(place, packages="ninja-build\thi \t1.11\n")) != []
    assert STATE.differences(before, state(place, packages="")) != []
    assert STATE.differences(before, state(place, units="Id=a.service\nUnitFileState=disabled\n")) != []
    assert STATE.differences(before, state(place) | {"inputs": "y"}) == ["it is asked for something else"]


def test_a_note_that_was_cut_off_counts_as_none(place: Path) -> None:
    (place / "role.json").write_text('{"schema": 1, "inp')
    assert STATE.read(place / "role.json") is None
    (place / "role.json").write_text(json.dumps({"schema": 99}))
    assert STATE.read(place / "role.json") is None


def test_files_by_a_pattern_are_all_seen(place: Path) -> None:
    asked = {"files": [str(place / "f*")], "environments": [], "packages": [], "units": [], "users": []}
    assert list(STATE.collect(Host(), asked)["files"]) == [str(place / "file")]


PLAN = {"host": "gpu01", "engine": {"release": "0.5.23"}, "disk": {"free_bytes": 1}, "warnings": []}


def test_a_wish_is_the_plan_the_role_and_its_variables(tmp_path: Path) -> None:
    role = tmp_path / "roles" / "one"
    (role / "tasks").mkdir(parents=True)
    (tmp_path / "templates").mkdir()
    (role / "tasks/main.yml").write_text("a")
    first = digest_of_inputs(PLAN, role, {"x": 1})
    # How much room a disk has that day is no wish, nor is what people read.
    (role / "README.md").write_text("text")
    assert digest_of_inputs(PLAN | {"disk": {"free_bytes": 2}}, role, {"x": 1}) == first
    assert digest_of_inputs(PLAN | {"host": "gpu-1"}, role, {"x": 1}) == first
    assert digest_of_inputs(PLAN | {"engine": {"release": "0.5.24"}}, role, {"x": 1}) != first
    assert digest_of_inputs(PLAN, role, {"x": 2}) != first
    (tmp_path / "templates/unit.j2").write_text("unit")
    second = digest_of_inputs(PLAN, role, {"x": 1})
    assert second != first
    (role / "tasks/main.yml").write_text("other")
    assert digest_of_inputs(PLAN, role, {"x": 1}) != second


LOOPED = {
    "{{ __host_tools_environment }}/{{ item | basename }}": [
        "{{ __host_tools_environment }}/{{ host_tools_uv_requirements | basename }}",
        "{{ __host_tools_environment }}/{{ host_tools_requirements | basename }}",
        "{{ __host_tools_environment }}/{{ __host_tools_wheel.path | basename }}",
    ],
    "{{ item | dirname }}": ["/etc/apt/keyrings", "/var/lib/minimax-metal"],
    # A directory for the time of a task, gone before the role ends.
    "{{ __nvidia_driver_key_home.path }}": [],
    "{{ item.dest }}": ["__nvidia_driver_files | map(attribute='dest')"],
    "/etc/systemd/system/{{ item }}.d": ["sglang@.service.d", "nvidia-persistenced.service.d"],
}
"""Paths of loops and expressions, and how they are written in the list of what the role manages."""


ELSEWHERE = {
    # What the driver stopped is read in every run.
    "nvidia_driver": {"start.yml", "stage.yml"},
}
"""Task files whose files are not in the role's list, since no run passes them over."""


def files_of(directory: Path) -> str:
    """What the role gives as its files, as it is written."""
    tasks = [
        task for path in (directory / "tasks").glob("*.yml") for task in yaml.safe_load(path.read_text())
    ]
    given = next(
        task["minimax.metal.metal_state"] for task in tasks_of(tasks) if "minimax.metal.metal_state" in task
    ).get("files", "")
    name = re.fullmatch(r"\{\{ (\w+) \}\}", given)
    return str(yaml.safe_load((directory / "vars/main.yml").read_text())[name[1]]) if name else given


def tasks_of(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All tasks, those of blocks among them."""
    found = []
    for task in tasks:
        inner = [one for part in ("block", "rescue", "always") for one in task.get(part, [])]
        found += tasks_of(inner) if inner else [task]
    return found


@pytest.mark.parametrize("role", USERS)
def test_a_role_lists_every_file_that_it_writes(role: str) -> None:
    """A file that is not in the list would be damaged unseen."""
    directory = REPOSITORY / "roles" / role
    listed = files_of(directory)
    for path in set((directory / "tasks").glob("*.yml")) - {directory / "tasks" / "main.yml"}:
        if path.name in ELSEWHERE.get(role, set()):
            continue
        for task in tasks_of(yaml.safe_load(path.read_text())):
            for action in ("file", "copy", "template"):
                arguments = task.get(f"ansible.builtin.{action}") or {}
                place = str(arguments.get("dest") or arguments.get("path") or "")
                for one in task["loop"] if place == "{{ item }}" else [place]:
                    for name in LOOPED.get(one, [re.sub(r"^\{\{ ([^{}]+) \}\}$", r"\1", one)]):
                        assert name in listed, f"{role}/{path.name}: {one}"


def test_a_program_that_hangs_fails_its_host_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(**{"dpkg-query": ""})
    program = host.get_bin_path("dpkg-query")
    assert program
    Path(program).write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(host, "get_bin_path", lambda _name: program)
    monkeypatch.setattr(STATE, "SECONDS", 0.5)
    with pytest.raises(SystemExit, match=r"dpkg-query did not answer within 0\.5 s"):
        STATE.package_states(host, ["nvidia-driver"])


def test_files_that_go_away_while_they_are_read_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "shard"
    path.write_text("x")

    def gone(_path: str) -> str:
        path.unlink()
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(STATE, "digest", gone)
    assert STATE.file_state(str(path)) is None


def test_an_environment_that_can_not_be_read_is_not_as_it_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(_root: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(STATE, "environment_digest", unreadable)
    assert STATE.environment_state(str(tmp_path)) == "unreadable: Permission denied"

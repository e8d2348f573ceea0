"""What differs of packages, units, users and Python environments, and what a file's change restarts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.plugins import load_plugin

SYSTEM: Any = load_plugin("module_utils/metal_owned_system")
NOW, UP = 1_700_000_000.0, 5000.0


def shown(state: str, seconds_ago: float, **more: str) -> dict[str, str]:
    """What ``systemctl show`` prints of a unit (systemd 249 and later)."""
    when = str(int((UP - seconds_ago) * 1e6))
    return {
        "Id": "a.service",
        "ActiveState": state,
        "UnitFileState": "enabled",
        "InactiveExitTimestampMonotonic": when,
        "StateChangeTimestampMonotonic": when,
        **more,
    }


def work(unit: dict[str, Any], values: dict[str, str], changed: tuple[str, ...] = ()) -> Any:
    return SYSTEM.unit_work({"name": "a.service", **unit}, values, changed, NOW, UP)


def aged(path: Path, seconds: float) -> str:
    path.write_text("x")
    os.utime(path, (NOW - seconds, NOW - seconds))
    return str(path)


@pytest.mark.parametrize(
    ("state", "seconds_ago", "named"),
    [
        ("active", 100.0, True),
        ("activating", 100.0, True),
        ("reloading", 100.0, True),
        ("active", 10.0, False),
        ("inactive", 100.0, False),
        ("failed", 100.0, False),
        ("deactivating", 100.0, False),
    ],
)
def test_a_unit_that_runs_with_older_files_is_restarted(
    state: str, seconds_ago: float, named: bool, tmp_path: Path
) -> None:
    """A run that was killed between writing a file and the restart is made up for by the next one."""
    file = aged(tmp_path / "key", 50)
    found = work({"restarts": [str(tmp_path / "none"), file]}, shown(state, seconds_ago))
    assert (found or {}).get("state") == ("restarted" if named else None)
    if named:
        assert found["why"] == f"{file} was written 50 s after its start"
        assert found["newer"] == file


def test_a_file_of_times_to_come_or_none_restarts_nothing(tmp_path: Path) -> None:
    files = [aged(tmp_path / "key", -3600), str(tmp_path / "none")]
    assert work({"restarts": files}, shown("active", 100)) is None
    assert work({"restarts": []}, shown("active", 100)) is None


def test_a_file_that_is_removed_or_would_be_written_restarts_what_runs() -> None:
    assert work({"restarts": ["/gone"]}, shown("active", 100), ("/gone",))["state"] == "restarted"
    assert work({"restarts": ["/gone"]}, shown("inactive", 100), ("/gone",)) is None


def test_a_clock_that_was_set_after_the_start_moves_no_start() -> None:
    values = shown("active", 0, InactiveExitTimestampMonotonic="10000000")
    values["InactiveExitTimestamp"] = "Thu 1970-01-01 00:00:10 UTC"
    assert SYSTEM.started(values, NOW, UP) == NOW - UP + 10


def test_a_reload_counts_where_units_read_their_files_again_then(tmp_path: Path) -> None:
    file = aged(tmp_path / "conf", 50)
    reloaded = shown("active", 100, StateChangeTimestampMonotonic=str(int((UP - 10) * 1e6)))
    assert work({"reloads": [file]}, shown("active", 100))["state"] == "reloaded"
    assert work({"reloads": [file]}, reloaded) is None
    # A restart reads everything.
    assert work({"reloads": [file], "restarts": [file]}, shown("active", 100))["state"] == "restarted"


@pytest.mark.parametrize("text", ["", "Id=a.service\n", "Id=a.service\nActiveState=active\n", "Id\n\n=\n"])
def test_what_systemd_does_not_say_is_not_guessed(text: str, tmp_path: Path) -> None:
    values = SYSTEM.blocks(text).get("a.service", {})
    assert work({"restarts": [aged(tmp_path / "key", 1)]}, values) is None


@pytest.mark.parametrize(
    ("unit", "values", "enabled", "state"),
    [
        ({"enabled": True, "running": True}, shown("active", 9), None, None),
        ({"enabled": True, "running": True}, shown("inactive", 9, UnitFileState="disabled"), True, "started"),
        ({"enabled": True}, shown("failed", 9, UnitFileState=""), True, None),
        ({"enabled": False, "running": False}, shown("active", 9), False, "stopped"),
        ({"enabled": False, "running": False}, shown("inactive", 9, UnitFileState="disabled"), None, None),
        ({}, shown("failed", 9, UnitFileState="disabled"), None, None),
        ({"running": True}, shown("failed", 9), None, "started"),
        ({"running": True}, shown("activating", 9), None, None),
        ({"running": True, "ready": True}, shown("activating", 9), None, "started"),
        ({"running": True, "ready": True}, shown("active", 9), None, None),
    ],
)
def test_boot_and_run_are_as_the_list_says(
    unit: dict[str, Any], values: dict[str, str], enabled: bool | None, state: str | None
) -> None:
    found = work(unit, values) or {}
    assert (found.get("enabled"), found.get("state")) == (enabled, state)
    assert bool(found.get("why")) == bool(found)


def program(place: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    path = place / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")


def test_check_mode_leaves_units_out_that_systemd_does_not_know_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "printf 'Id=a.service\\nLoadState=not-found\\nActiveState=inactive\\nNeedDaemonReload=yes\\n'"
    program(tmp_path, monkeypatch, "systemctl", said)
    unit = [{"name": "a.service", "running": True}]
    assert SYSTEM.units_work(unit, (), True) == ([], True)
    assert SYSTEM.units_work(unit, (), False)[0][0]["state"] == "started"
    assert SYSTEM.units_work([], (), False) == ([], False)


def test_a_program_that_hangs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, monkeypatch, "dpkg-query", "exec sleep 60")
    monkeypatch.setattr(SYSTEM, "SECONDS", 0.5)
    with pytest.raises(OSError, match=r"dpkg-query did not answer within 0\.5 s"):
        SYSTEM.missing_packages([{"name": "nvidia-driver", "unless": []}])


def test_a_package_that_is_not_whole_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = r"whole\tii \nheld\thi \nremoved\trc \nhalf\tiU \n"
    program(tmp_path, monkeypatch, "dpkg-query", f"printf '{lines}'")
    names = ["whole", "held", "removed", "half", "never"]
    assert SYSTEM.missing_packages([{"name": name, "unless": []} for name in names]) == names[2:]
    assert SYSTEM.missing_packages([]) == []
    clocks = ["/nowhere/chrony.service", str(tmp_path)]
    assert SYSTEM.missing_packages([{"name": "never", "unless": clocks}]) == []
    assert SYSTEM.missing_packages([{"name": "never", "unless": clocks[:1]}]) == ["never"]


def test_apt_knows_packages_that_have_a_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As apt-cache(8) of apt 2.6 prints it."""
    policy = r"nginx:\n  Installed: (none)\n  Candidate: 1.22.1-9\nold:\n  Candidate: (none)\n"
    program(tmp_path, monkeypatch, "apt-cache", f"printf '{policy}'")
    assert SYSTEM.known_packages(["nginx"])
    assert not SYSTEM.known_packages(["nginx", "old"])
    assert SYSTEM.known_packages([])


def test_users_differ_by_group_directory_and_shell() -> None:
    root = {"name": "root", "home": "/root", "shell": "/bin/bash"}
    assert SYSTEM.users_to_make([root]) == []
    others = [root | {"shell": "/bin/sh"}, root | {"home": "/"}, root | {"name": "no-such-user"}]
    assert SYSTEM.users_to_make(others) == others


# Python environments --------------------------------------------------------------------------------------


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    packages = tmp_path / "lib/python3.11/site-packages"
    for name, files in (
        ("rich-15.0.0", "rich/__init__.py,,\nrich/a.py,sha256=x,1\n../../../bin/rich,,\n"),
        ("Typing_Extensions-4.1", "typing_extensions.py,,\n__pycache__/x.pyc,,\n"),
    ):
        (packages / f"{name}.dist-info").mkdir(parents=True)
        (packages / f"{name}.dist-info" / "RECORD").write_text(files + f"{name}.dist-info/RECORD,,\n")
    (packages / "rich").mkdir()
    (packages / "__pycache__").mkdir()
    (packages / "typing_extensions.py").touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "rich").touch()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    return tmp_path


def projects(venv: Path) -> Any:
    wanted = {"rich": "15.0.0", "typing-extensions": "4.1"}
    return SYSTEM.projects_to_install({"path": str(venv), "projects": wanted})


def test_an_environment_that_is_whole_needs_nothing(venv: Path) -> None:
    assert projects(venv) == {}


DAMAGE = {
    "a package": ("rm -r lib/*/*/rich", [], ["rich"]),
    "a module": ("rm lib/*/*/typing_extensions.py", [], ["typing-extensions"]),
    "a program": ("rm bin/rich", [], ["rich"]),
    "a list of files": ("rm lib/*/*/rich*/RECORD", [], ["rich"]),
    "all of a project": ("rm -r lib/*/*/rich*", ["rich"], []),
    "another version": ("mv lib/*/*/rich-15.0.0.dist-info lib/python3.11/site-packages/rich-14.dist-info",
                        ["rich"], []),
    "the interpreter": ("ln -sfn /nowhere/python bin/python", ["rich", "typing-extensions"], []),
    "everything": ("rm -r lib bin", ["rich", "typing-extensions"], []),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_damage_of_an_environment_is_seen(venv: Path, damage: str) -> None:
    command, lacks, damaged = DAMAGE[damage]
    subprocess.run(["/bin/sh", "-c", command], cwd=venv, check=True)
    assert projects(venv) == {"lacks": lacks, "damaged": damaged}

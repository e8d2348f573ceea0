"""In every playbook, tags and limits mean what Ansible's users expect."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from minimax_metal.controller.owned import removable_of
from minimax_metal.plan.rollout.stage import Stage

REPOSITORY = Path(__file__).parents[2]
PLAYBOOKS = [REPOSITORY / "site.yml", *sorted((REPOSITORY / "playbooks").glob("*.yml"))]
NAMES = [str(path.relative_to(REPOSITORY)) for path in PLAYBOOKS]
ROLES = sorted(path.name for path in (REPOSITORY / "roles").iterdir())
GROUPS = {"gpu_hosts", "gateway_hosts", "cache_hosts"}
INVENTORY = """\
gpu_hosts: {hosts: {gpu01: , gpu02: }, vars: {metal_model: MiniMax-M2.5}}
gateway_hosts: {hosts: {gateway01: }}
cache_hosts: {hosts: {cache01: }}
"""
ENVIRONMENT = os.environ | {"ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg")}

Plays = list[dict[str, Any]]


def run(*words: str) -> str:
    done = subprocess.run(
        words, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("inventory") / "hosts.yml"
    path.write_text(INVENTORY)
    return str(path)


@pytest.fixture(scope="module")
def playbooks(inventory: str) -> dict[str, Plays]:
    """Ansible's view of each playbook before a run."""
    found: dict[str, Plays] = json.loads(run(sys.executable, "tests/support/playbooks.py", inventory, *NAMES))
    return found


@pytest.mark.parametrize("playbook", NAMES)
def test_every_play_is_of_groups_that_a_limit_narrows(playbooks: dict[str, Plays], playbook: str) -> None:
    assert playbooks[playbook]
    for play in playbooks[playbook]:
        for pattern in play["hosts"]:
            # A group that an inventory need not have is named in an expression, which warns of nothing.
            names = re.findall(r"'(\w+)'", pattern) if "{{" in pattern else re.split(r"[,:]", pattern)
            assert {name.lstrip("!&") for name in names} <= GROUPS


@pytest.mark.parametrize("playbook", NAMES)
def test_every_task_has_a_name_to_be_read(playbooks: dict[str, Plays], playbook: str) -> None:
    names = [task["name"] for play in playbooks[playbook] for task in play["tasks"]]
    assert names
    assert [name for name in names if re.search(r"(^|: )(ansible\.builtin|minimax\.metal)\.\w+$", name)] == []


@pytest.mark.parametrize("playbook", NAMES)
def test_a_plan_is_there_whichever_tags_are_asked_for(playbooks: dict[str, Plays], playbook: str) -> None:
    for play in playbooks[playbook]:
        for task in play["tasks"]:
            if task["role"] is None and re.search(
                r"^(Make the plan|Take the plan|Decide |Require that no host is refused)", task["name"]
            ):
                assert {"always", "rollout"} & set(task["tags"]) or not task["tags"], task["name"]


@pytest.mark.parametrize("role", [role for role in ROLES if role in list(Stage)])
def test_every_stage_of_the_site_can_be_run_alone(playbooks: dict[str, Plays], role: str) -> None:
    every = [task for play in playbooks["site.yml"] for task in play["tasks"] if task["role"] == role]
    assert every, f"site.yml has no task of role {role}"
    assert [task["name"] for task in every if role not in task["tags"]] == []
    others = [
        task
        for play in playbooks["site.yml"]
        for task in play["tasks"]
        # The lock comes with whatever may stop an engine.
        if task["role"] not in {role, "fleet_lock", None}
    ]
    assert [task["name"] for task in others if role in task["tags"]] == []


def test_a_role_that_a_playbook_names_has_its_name_as_a_tag() -> None:
    missing = []
    for path in PLAYBOOKS[1:]:
        for play in yaml.safe_load(path.read_text()):
            for one in play.get("roles") or []:
                if one["role"].rpartition(".")[2] not in [
                    *(one.get("tags") or []),
                    *(play.get("tags") or []),
                ]:
                    missing.append(f"{path.name}: {one['role']}")
            for one in [*(play.get("pre_tasks") or []), *(play.get("tasks") or [])]:
                role = str((one.get("ansible.builtin.import_role") or {}).get("name", "")).rpartition(".")[2]
                # The lock has the tags of what may stop an engine.
                if (
                    role
                    and role != "fleet_lock"
                    and role not in [*(one.get("tags") or []), *(play.get("tags") or [])]
                ):
                    missing.append(f"{path.name}: {role}")
    assert missing == []


def test_limit_tags_and_check_of_the_site_do_what_they_do_elsewhere(inventory: str) -> None:
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    words = ["--limit", "gpu02", "--tags", "host_tools", "--check", "--diff", "--list-tasks", "--list-hosts"]
    said = run(program, "site.yml", "-i", inventory, *words)
    assert "gpu02" in said
    assert "gpu01" not in said
    # Ansible checks the arguments of every role whatever the tags are.
    roles = set(re.findall(r"^      minimax\.metal\.(\w+) : (?!Validating)", said, re.MULTILINE))
    # The lock is released whatever the tags are, where this run holds it.
    assert roles == {"host_tools", "fleet_lock"}
    assert "Require that no host is refused" in said


def test_a_host_outside_of_a_rollout_that_hangs_fails_nobody() -> None:
    """A run_once task that fails takes every host of the run with it, even with a rescue."""
    path = REPOSITORY / "playbooks/tasks/rollout/outside.yml"
    tasks = [
        one
        for one in yaml.safe_load(path.read_text())
        if "minimax.metal.metal_fleet_facts" in one and "delegate_to" in one
    ]
    assert len(tasks) == 1
    for task in tasks:
        assert task["timeout"] <= 120
        assert task["ignore_unreachable"] is True
        assert task["failed_when"] is False


LOCK, RELEASE = "Take the fleet lock", "Release the fleet lock"
RISKY = {
    "playbooks/provision.yml": r"^Install the NVIDIA driver$",
    "playbooks/serve.yml": r"^(Serve the endpoints|endpoint_firewall|sglang_service)$",
    "playbooks/stop.yml": r"^Stop the instances",
    "playbooks/remove.yml": r"^Take off what is there$",
    "playbooks/accept.yml": r"^Carry out the checks",
    "playbooks/rollout.yml": r"^(Bring everything|Change the fleet)",
    "playbooks/rollback.yml": r"^(Choose the release|Change the fleet)",
    "playbooks/rotate.yml": r"^Go (one place further|another place further|to the last place)$",
}
"""The tasks that may stop an engine, reboot or remove, by playbook: the words before them in the file."""


def names_in(entries: Any) -> Iterator[str]:
    """Yield names of plays, tasks and roles in the order of a file; blocks and imported files opened."""
    for entry in entries or ():
        if entry.get("name"):
            yield entry["name"]
        for key in ("pre_tasks", "roles", "tasks", "block", "rescue", "always"):
            yield from names_in(entry.get(key))
        if "role" in entry:
            yield entry["role"].rpartition(".")[2]


@pytest.mark.parametrize("playbook", RISKY)
def test_whoever_stops_an_engine_reboots_or_removes_holds_the_lock(playbook: str) -> None:
    text = (REPOSITORY / playbook).read_text()
    if "tasks/rollout/begin.yml" in text:
        begin = (REPOSITORY / "playbooks/tasks/rollout/begin.yml").read_text()
        assert LOCK in list(names_in(yaml.safe_load(begin)))
        text = text.replace("Take the fleet lock, and read where the hosts stand", LOCK)
    names = list(names_in(yaml.safe_load(text)))
    risky = [number for number, name in enumerate(names) if re.search(RISKY[playbook], name)]
    assert risky
    assert names.index(LOCK) < min(risky)
    released = [number for number, name in enumerate(names) if name in {RELEASE, "Unlock"}]
    assert max(released) > max(risky)


def test_a_reader_takes_no_lock(playbooks: dict[str, Plays]) -> None:
    for playbook in ("preflight", "cache", "weights", "verify", "status", "gateway"):
        tasks = [task for play in playbooks[f"playbooks/{playbook}.yml"] for task in play["tasks"]]
        assert [task["name"] for task in tasks if task["role"] == "fleet_lock"] == []


def test_the_site_keeps_the_lock_until_its_last_check() -> None:
    plays = yaml.safe_load((REPOSITORY / "site.yml").read_text())
    kept = [play["name"] for play in plays if (play.get("vars") or {}).get("__metal_lock_kept")]
    assert kept == ["Provision", "Serve"]
    names = [play["name"] for play in plays]
    assert names.index("Verify") + 1 == names.index("Unlock")


ELSEWHERE = {"artefact-cache": "minimax-metal-artefacts", "tuning-shm": "minimax-metal-shm"}
"""Units whose templates have another name."""


def unit_files() -> set[str]:
    """The names of the unit files that roles write, with an instance if they have one."""
    names = {path.name.removesuffix(".j2") for path in (REPOSITORY / "roles").rglob("*.j2")}
    found = [re.fullmatch(r"(.+?)(@?)(\.(?:service|socket|target))", name) for name in names]
    return {ELSEWHERE.get(one[1], one[1]) + one[2].replace("@", "@a") + one[3] for one in found if one}


def test_no_unit_of_the_product_is_left_out_of_its_removal() -> None:
    tasks = yaml.safe_load((REPOSITORY / "playbooks/tasks/remove.yml").read_text())
    lists = [unit for unit, _ in removable_of(REPOSITORY / "roles").units]
    patterns = [*tasks[0]["vars"]["__remove_others"], *lists]
    units = unit_files()
    assert len(units) > 10
    missed = {unit for unit in units if not any(fnmatch(unit, pattern) for pattern in patterns)}
    # Its socket starts it; the file goes with the firewall's (plan/removal.py).
    assert missed == {"minimax-metal-firewall-seen@a.service"}

"""The playbooks of a rollout, run by Ansible with roles and programs that only log their calls.

A copy of the collection: playbooks, filters and role ``fleet_lock`` are the project's own. Every other role
is a line in a log; it fails on the hosts that the test chooses. ``metal_fleet_facts`` answers from a file,
and a host's lock is a file below the test's directory. So this tests the order of the steps, and the
consequences of a failure; no host is changed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minimax_metal.host import lock

REPOSITORY = Path(__file__).parents[2]
HOSTS = ("gpu01", "gpu02", "gpu03")
UNIT = "sglang@m.service"
OLD, NEW = "old", "new"
PROGRAM = "/usr/local/bin/metal"

ROLE = """\
- name: Write down what the role was asked
  ansible.builtin.shell: |
    echo "{{ inventory_hostname }} ROLE/FILE {{ played_release }}" >> LOG
    test ! -e {{ played_lock }} || echo "{{ inventory_hostname }} ROLE/FILE" >> LOG.locked
  changed_when: false
  check_mode: false
- name: Fail where the test says so
  ansible.builtin.fail:
    msg: ROLE is bad
  when: played_words in played_faults
  vars:
    played_words: "{{ inventory_hostname }} ROLE {{ played_release }}"
    played_faults: "{{ lookup('ansible.builtin.file', 'FAULTS').splitlines() }}"
"""
DRIFT = """\
- name: Compare what runs with the plan
  minimax.metal.metal_fleet_facts:
  register: __sglang_service_drift
"""
FACTS = '''
"""Answers from the test's file."""

from __future__ import annotations

import json
from pathlib import Path

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Reads PLACE/HOST.json."""

    TRANSFERS_FILES = False

    def run(self, tmp=None, task_vars=None):
        host = self._task.delegate_to or task_vars["inventory_hostname"]
        return {"changed": False, "facts": json.loads((Path("PLACE") / f"{host}.json").read_text())}
'''
UNITS = '''
"""Writes down what is asked of a unit."""

from __future__ import annotations

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """As ansible.builtin.systemd_service."""

    TRANSFERS_FILES = False

    def run(self, tmp=None, task_vars=None):
        words = self._task.args
        if self._task.check_mode:
            return {"changed": True}
        with open("LOG", "a") as log:
            log.write(f"{task_vars['inventory_hostname']} {words.get('name')} {words.get('state')}\\n")
        return {"changed": True}
'''
METAL = """\
#!/bin/sh
host=$(basename "$(dirname "$0")")
echo "$host metal $*" >> LOG
case "$1 $2" in
  "rollout-state begin"|"rollout-state stage"|"rollout-state end") echo recorded ;;
  "releases show") echo '{"plan": KEPT}' ;;
  "soak watch") echo "5 answers"; echo '{"answers": 5}' ;;
  "soak figures") echo '{"answers": 1}' ;;
esac
grep -qxF "$host metal $1 $2" FAULTS && { echo "$1 $2 is bad" >&2; exit 1; }
exit 0
"""
SYSTEMCTL = f"""\
#!/bin/sh
echo "{UNIT} loaded active running the engine"
"""
SERVICES: list[dict[str, Any]] = [
    {
        "unit": UNIT,
        "instance": "m",
        "url": "http://127.0.0.1:1",
        "worker_url": "http://127.0.0.1:1",
        "keys_directory": "",
        "start_timeout_seconds": 10,
        "stop_timeout_seconds": 10,
    }
]


def plan(release: str) -> dict[str, Any]:
    """Return the parts of a plan that a rollout reads."""
    return {
        "release": release,
        "fits": True,
        "model": {"served_name": "m"},
        "gpus": {"count": 8, "model": "H20"},
        "mirrors": {"cache_url": None},
        "services": SERVICES,
    }


@dataclass
class Played:
    """The result of a run."""

    returncode: int
    output: str
    log: list[str] = field(default_factory=list)
    locked: list[str] = field(default_factory=list)
    """Hosts and roles that were played while the host was locked."""

    def of(self, host: str) -> list[str]:
        """Return what happened on a host, in short.

        That is: roles with their release, units, verbs of ``metal``, stages of the journal.
        """
        lines = (line.removeprefix(f"{host} ") for line in self.log if line.startswith(f"{host} "))
        return [_short(line) for line in lines]


def _short(line: str) -> str:
    words = line.split()
    if words[0] != "metal":
        return line
    # rollout-state stage --run RUN drain; rollout-state begin --run RUN --kind KIND --to DIGEST
    journal = words[1] == "rollout-state" and words[2] != "begin"
    return " ".join([*words[:2], words[5] if journal else words[2]])


class Stage:
    """A directory in which the playbooks are run."""

    def __init__(self, place: Path, hosts: Sequence[str] = HOSTS, gateway: bool = False) -> None:
        self.place, self.hosts = place, tuple(hosts)
        self.log, self.faults = place / "log", place / "faults"
        self.log.touch()
        self.faults.touch()
        self.collection = place / "collections/ansible_collections/minimax/metal"
        self._copy()
        (place / "bin").mkdir()
        (place / "bin/systemctl").write_text(SYSTEMCTL)
        (place / "bin/systemctl").chmod(0o755)
        for host in self.hosts:
            (place / host).mkdir()
            self._write(place / host / "metal", METAL.replace("KEPT", json.dumps(plan(OLD))))
            (place / host / "metal").chmod(0o755)
            self.serves(host, "0001-old", differs=[f"/etc/systemd/system/{UNIT}"])
        groups: dict[str, Any] = {"gpu_hosts": {"hosts": {host: self._host(host) for host in self.hosts}}}
        if gateway:
            (place / "gw01").mkdir()
            groups["gateway_hosts"] = {"hosts": {"gw01": self._host("gw01")}}
        (place / "hosts.json").write_text(json.dumps(groups))

    def serves(self, host: str, current: str, **more: Any) -> None:
        """Set the state of a host."""
        found: dict[str, Any] = {
            "journal": None,
            "current": current,
            "record": {"digest": current.partition("-")[2], "model": "m", "units": [UNIT]},
            "units": {UNIT: {"active": True, "state": "active", "stale": False, "start_seconds": 10.0}},
            "differs": [],
            "newer": [],
        }
        (self.place / f"{host}.json").write_text(json.dumps(found | more))

    def lock(self, host: str) -> Path:
        """Return the lock file of a host."""
        return self.place / host / "state" / "lock.json"

    def held(self, host: str, **more: Any) -> None:
        """Let another run hold the lock of a host."""
        holder = {
            "run": "r",
            "user": "ops",
            "controller": "desk",
            "pid": 1,
            "command": "site.yml",
            "time": "noon",
        }
        lock.take(holder | more, self.lock(host))

    def play(
        self,
        playbook: str,
        *words: str,
        faults: Sequence[str] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> Played:
        """Run a playbook to its end."""
        self.log.write_text("")
        locked = self.log.with_name("log.locked")
        locked.write_text("")
        self.faults.write_text("".join(f"{line}\n" for line in faults))
        extra = {"metal_rollout_soak_seconds": 5, "metal_rollout_trial_requests": 4} | dict(variables or {})
        done = subprocess.run(
            [
                *(
                    str(Path(sys.executable).with_name("ansible-playbook")),
                    "-i",
                    str(self.place / "hosts.json"),
                ),
                *("-e", json.dumps(extra), *words, str(self.collection / playbook)),
            ],
            cwd=self.place,
            env=os.environ | self._environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        said = " ".join((done.stdout + done.stderr).split())
        return Played(
            done.returncode, said, self.log.read_text().splitlines(), locked.read_text().splitlines()
        )

    def _environment(self) -> dict[str, str]:
        config = self.place / "ansible.cfg"
        config.write_text("[defaults]\nforks = 4\ngathering = explicit\ncallback_result_format = yaml\n")
        return {
            "ANSIBLE_CONFIG": str(config),
            "ANSIBLE_COLLECTIONS_PATH": str(self.place / "collections"),
            "ANSIBLE_NOCOLOR": "1",
            "PATH": f"{self.place / 'bin'}:{os.environ['PATH']}",
        }

    def _host(self, host: str) -> dict[str, Any]:
        return {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "ansible_become": False,
            "played_metal": str(self.place / host / "metal"),
            "played_lock": str(self.lock(host)),
            "played_plan": plan(NEW),
            "played_release": "{{ metal_plan.release | default('-') }}",
        }

    def _write(self, path: Path, text: str) -> None:
        for name, value in (("LOG", self.log), ("FAULTS", self.faults), ("PLACE", self.place)):
            text = text.replace(name, str(value))
        path.write_text(text)

    def _copy(self) -> None:
        self.collection.mkdir(parents=True)
        shutil.copy(REPOSITORY / "galaxy.yml", self.collection)
        shutil.copytree(REPOSITORY / "meta", self.collection / "meta")
        shutil.copytree(REPOSITORY / "plugins", self.collection / "plugins", symlinks=False)
        shutil.copytree(REPOSITORY / "playbooks", self.collection / "playbooks")
        shutil.copy(REPOSITORY / "site.yml", self.collection)
        for path in (self.collection / "playbooks").rglob("*.yml"):
            text = path.read_text()
            text = text.replace(f"'{PROGRAM}'", "played_metal").replace(PROGRAM, '"{{ played_metal }}"')
            text = text.replace("ansible.builtin.systemd_service", "minimax.metal.played_unit")
            path.write_text(text.replace("become: true", "become: false"))
        self._write(self.collection / "plugins/action/played_unit.py", UNITS)
        shutil.copy(
            REPOSITORY / "plugins/modules/metal_lock.py", self.collection / "plugins/modules/played_unit.py"
        )
        self._write(self.collection / "plugins/action/metal_fleet_facts.py", FACTS)
        preflight = "- name: Plan\n  hosts: gpu_hosts\n  gather_facts: false\n  tags: [always]\n  tasks:\n"
        fact = '    - name: Plan\n      ansible.builtin.set_fact: {metal_plan: "{{ played_plan }}"}\n'
        (self.collection / "playbooks/preflight.yml").write_text(preflight + fact)
        for role in (path for path in (REPOSITORY / "roles").iterdir() if path.name != "fleet_lock"):
            tasks = self.collection / "roles" / role.name / "tasks"
            tasks.mkdir(parents=True)
            for file in (role / "tasks").glob("*.yml"):
                text = ROLE.replace("ROLE", role.name).replace("FILE", file.stem)
                self._write(tasks / file.name, DRIFT if file.name == "drift.yml" else text)
            if role.name == "nvidia_driver":
                self._write(
                    tasks / "read.yml",
                    "- name: Read the driver\n  ansible.builtin.set_fact:\n"
                    "    __nvidia_driver_work: {action: none, summary: ''}\n"
                    "    __nvidia_driver_state: {reboot: false}\n",
                )
        shutil.copytree(REPOSITORY / "roles/fleet_lock", self.collection / "roles/fleet_lock")
        for path in (self.collection / "roles/fleet_lock/tasks").glob("*.yml"):
            where = "{{ hostvars[item].played_lock if item is defined else played_lock }}"
            path.write_text(
                path.read_text()
                .replace("        state: taken", f'        path: "{where}"\n        state: taken')
                .replace("    state: released", f'    path: "{where}"\n    state: released')
            )

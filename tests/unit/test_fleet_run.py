"""A playbook through ansible-runner, on this machine: what is passed, shown, stored, and how it stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

CANARY = "canary-5up3r-53cr3t"
SITE = """
- name: One
  hosts: gpu_hosts
  gather_facts: false
  tasks:
    - name: A secret is used
      ansible.builtin.command: "true {{ sglang_service_api_key }}"
      environment: {SECRET: "{{ sglang_service_api_key }}"}
      changed_when: false
      tags: [host_tools]
    - name: A secret is looped over
      ansible.builtin.debug:
        msg: "{{ item }}"
      loop: ["{{ sglang_service_api_key }}"]
      no_log: true
    - name: A file of its own is touched
      ansible.builtin.file: {path: "{{ place }}/{{ inventory_hostname }}", state: touch, mode: "0644"}
      tags: [host_tools]
    - name: What the runner would set is not set
      ansible.builtin.assert:
        that: not lookup('ansible.builtin.env', item)
      loop: [ANSIBLE_HOST_KEY_CHECKING, ANSIBLE_CACHE_PLUGIN, ANSIBLE_CACHE_PLUGIN_CONNECTION]
      tags: [host_tools]
    - name: Something goes wrong
      ansible.builtin.fail: {msg: ["no token", "api_key='{{ sglang_service_api_key }}'"]}
      when: inventory_hostname == bad | default('')
      tags: [post_check]
- name: Two
  hosts: gpu_hosts
  gather_facts: false
  serial: 1
  tasks:
    - name: It takes a while
      ansible.builtin.command: sleep {{ wait | default(0) }}
      changed_when: false
      tags: [sglang_service]
"""
PREFLIGHT = """
- hosts: gpu_hosts
  gather_facts: false
  tasks:
    - name: Each host is read
      ansible.builtin.command: sleep 1
      changed_when: false
    - name: What a host sends has a limit
      ansible.builtin.shell: grep 'Max data size' /proc/self/limits > '{{ place }}/limits'
      changed_when: false
    - name: No host is refused
      ansible.builtin.fail: {msg: ["gpu02: gpu-none: found no GPU; needed 4; look"]}
      run_once: true
"""
# The project is where the package is, whatever the working directory has: here it is this small one.
HERE = """\
import sys, pathlib
from minimax_metal import cli
from minimax_metal.controller.verbs import run as commands
commands.find_project = pathlib.Path.cwd
sys.exit(cli.main(sys.argv[1:]))
"""
CONFIG = "[defaults]\ninject_facts_as_vars = False\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    tmp_path = tmp_path / "a place with spaces"
    (tmp_path / "roles").mkdir(parents=True)
    (tmp_path / "site.yml").write_text(SITE)
    (tmp_path / "ansible.cfg").write_text(CONFIG)
    variables = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    hosts = {"gpu_hosts": {"hosts": {"gpu01": None, "gpu02": None}, "vars": variables}}
    (tmp_path / "hosts.json").write_text(json.dumps(hosts))
    return tmp_path


def command(place: Path, *words: str) -> list[str]:
    extra = f"place='{place}' sglang_service_api_key={CANARY}"
    verb = ["site", "--runs", str(place / "runs"), "-i", "hosts.json", "-e", extra]
    return [sys.executable, "-c", HERE, *verb, *words]


def environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | {"HF_TOKEN": CANARY, "CI": "true"}


def metal(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(place, *words),
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def the_run(place: Path) -> Path:
    (run,) = (place / "runs").iterdir()
    return run


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def assert_no_secret(place: Path) -> None:
    files = [path for path in (place / "runs").rglob("*") if path.is_file()]
    assert len(files) >= 4
    for path in files:
        assert CANARY not in path.read_text(), path
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_run_is_shown_kept_and_holds_no_secret(place: Path) -> None:
    done = metal(place, "-e", "bad=gpu02", "-vvv")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "gpu02: post_check: FAILED: Something goes wrong: no token" in done.stdout
    assert CANARY not in done.stdout + done.stderr
    run = the_run(place)
    assert_no_secret(place)
    about = json.loads((run / "run.json").read_text())
    assert (about["exit"], about["ansible"], about["outcome"]) == (1, 2, "failed: 1 changed, 1 failed")
    stages = {one["stage"] for one in records(run) if one["kind"] == "changed"}
    assert stages == {"host_tools"}
    assert (run / "report.html").is_file()


def test_a_refused_host_is_refused_and_not_the_host_that_says_so(place: Path) -> None:
    (place / "site.yml").write_text("- ansible.builtin.import_playbook: preflight.yml\n" + SITE.lstrip())
    (place / "preflight.yml").write_text(PREFLIGHT)
    done = metal(place)
    assert done.returncode == 2, done.stdout + done.stderr
    about = json.loads((the_run(place) / "run.json").read_text())
    assert about["outcome"] == "refused, nothing was changed: 1 unchanged, 1 refused"
    assert "gpu02: preflight: REFUSED: No host is refused: gpu02: gpu-none: found no GPU" in done.stdout
    assert not (place / "gpu01").exists()
    assert int((place / "limits").read_text().split()[3]) >= 2 << 30, "memory of Ansible's processes"


def test_ansibles_own_options_mean_what_they_mean_there(place: Path) -> None:
    done = metal(place, "--limit", "gpu02", "--tags", "host_tools", "--check", "--diff", "--view", "ansible")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PLAY RECAP" in done.stdout
    assert {one["host"] for one in records(the_run(place)) if one.get("host")} == {"gpu02"}
    assert not (place / "gpu02").exists()
    assert json.loads((the_run(place) / "run.json").read_text())["check"] is True


def test_what_is_asked_wrongly_is_said_by_ansible_and_is_wrong_usage(place: Path) -> None:
    done = metal(place, "--no-such-option")
    assert done.returncode == 2
    assert "no-such-option" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def begun(place: Path, process: subprocess.Popen[str], task: str) -> None:
    """Wait until a task goes on."""
    for _ in range(300):
        files = list((place / "runs").glob("*/events.jsonl"))
        if files and f'"begin","host":"gpu01","task":"{task}"' in files[0].read_text():
            return
        assert process.poll() is None
        time.sleep(0.1)
    pytest.fail(f"{task} did not begin")


@pytest.mark.parametrize(("times", "hosts"), [(1, ["gpu01"]), (2, [])])
def test_ctrl_c_once_ends_the_batch_and_twice_ends_at_once(place: Path, times: int, hosts: list[str]) -> None:
    process = subprocess.Popen(
        command(place, "-e", f"wait={2 if times == 1 else 60}"),
        cwd=place,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        begun(place, process, "It takes a while")
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        said, _ = process.communicate(timeout=45)
    finally:
        process.kill()
    assert process.returncode == 130, said
    ended = [
        one["host"]
        for one in records(the_run(place))
        if one.get("task") == "It takes a while" and one["kind"] == "ok"
    ]
    assert ended == hosts
    assert_no_secret(place)


def test_another_projects_site_and_settings_are_not_taken(place: Path) -> None:
    """Before, any site.yml in or above the working directory was run, with its ansible.cfg."""
    (place / "ansible.cfg").write_text("[defaults]\nfilter_plugins = /nowhere\n")
    words = [sys.executable, "-m", "minimax_metal.cli", "site", "--runs", str(place / "runs"), "-i", "empty"]
    (place / "empty").write_text("[web_hosts]\nw1\n")
    done = subprocess.run(
        words, cwd=place, env=environment(), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "no group gpu_hosts in empty (its groups with hosts: web_hosts)" in done.stdout
    assert "It takes a while" not in done.stdout


def test_an_inventory_that_is_not_there_is_refused(place: Path) -> None:
    done = metal(place, "-i", "nope")
    assert done.returncode == 2
    assert "found no inventory at nope" in done.stderr
    assert not (place / "runs").exists()


def test_a_package_without_playbooks_says_what_to_do(tmp_path: Path) -> None:
    code = (
        "import sys; from minimax_metal import cli; "
        "from minimax_metal.controller.verbs import run as commands; "
        "commands.find_project = lambda: None; sys.exit(cli.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "site", "-i", "x"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "clone the repository" in done.stderr
    assert done.stderr.count("\n") == 1

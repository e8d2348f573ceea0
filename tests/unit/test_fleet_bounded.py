"""The controller enforces limits on data from hosts, whatever a host sends."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.controller.run.bounded import MEMORY, limit_memory, receiving
from minimax_metal.controller.run.events import Run

REPOSITORY = Path(__file__).parents[2]
MOST = 1 << 20

# "local" says one thing and is another; "flood" stands for a host behind ssh, sftp and scp that never ends.
PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - name: A file comes
      minimax.metal.metal_fetch:
        src: "{{ src }}"
        dest: "{{ place }}/got/{{ inventory_hostname }}"
        max_bytes: 1048576
      become: "{{ as_root | default(false) }}"
      timeout: 60
      register: became
      ignore_errors: true
      ignore_unreachable: true
    - name: What became of it is written down
      ansible.builtin.copy:
        content: "{{ became | to_json }}"
        dest: "{{ place }}/{{ inventory_hostname }}.json"
        mode: "0644"
      delegate_to: localhost
      vars: {ansible_connection: local, ansible_python_interpreter: "{{ python }}"}
"""
SFTP = """#!/bin/sh
read verb source dest
exec cat /dev/zero > "$dest"
"""
SCP = """#!/bin/sh
for dest; do :; done
exec cat /dev/zero > "$dest"
"""
SUDO = """#!/bin/sh
while [ "$1" != /bin/sh ]; do shift; done
exec "$@"
"""
SSH = "#!/bin/sh\nexec cat /dev/zero\n"


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One run over all the hosts; the result of each task, by host."""
    place = tmp_path_factory.mktemp("fetch")
    for name, text in {"sftp": SFTP, "scp": SCP, "ssh": SSH, "sudo": SUDO}.items():
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    (place / "small").write_bytes(b"x" * 1000)
    (place / "whole").write_bytes(b"x" * MOST)
    (place / "large").touch()
    os.truncate(place / "large", 1 << 30)
    (place / "got").mkdir()
    for name in ("same", "large", "transfer", "answer", "root-large"):
        (place / "got" / name).write_bytes(b"x" * 1000)
    programs = {f"ansible_{name}_executable": str(place / name) for name in ("ssh", "sftp", "scp")}
    flood = {"ansible_connection": "ssh", "ansible_ssh_retries": 0, "ansible_host": "127.0.0.1", **programs}
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    hosts = {
        "small": here | {"src": str(place / "small")},
        "same": here | {"src": str(place / "small")},
        "whole": here | {"src": str(place / "whole")},
        "large": here | {"src": str(place / "large")},
        "root": here
        | {"src": str(place / "small"), "as_root": True, "ansible_become_exe": str(place / "sudo")},
        "root-large": here
        | {"src": str(place / "large"), "as_root": True, "ansible_become_exe": str(place / "sudo")},
        "missing": here | {"src": str(place / "missing")},
        "transfer": flood | {"src": "/x"},
        "answer": flood | {"src": "/x", "as_root": True, "ansible_python_interpreter": "/usr/bin/python3"},
    }
    settings = {"place": str(place), "python": sys.executable}
    (place / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts, "vars": settings}}))
    (place / "play.yml").write_text(PLAY)
    program = Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run(
        [program, "-i", place / "hosts.json", place / "play.yml"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert all((place / f"{name}.json").exists() for name in hosts), done.stdout + done.stderr
    return place, {name: json.loads((place / f"{name}.json").read_text()) for name in hosts}


def test_a_file_of_the_allowed_size_comes_whole_and_a_second_time_changes_nothing(fetched: Any) -> None:
    place, became = fetched
    assert (became["small"]["changed"], became["small"]["size"]) == (True, 1000)
    assert became["same"]["changed"] is False
    assert became["whole"]["changed"] is True
    assert (place / "got" / "whole").read_bytes() == b"x" * MOST
    assert (became["root"]["changed"], became["root"]["size"]) == (True, 1000), became["root"]
    assert (place / "got" / "root").read_bytes() == b"x" * 1000
    assert became["missing"]["failed"] is True
    assert "more than" not in became["missing"]["msg"]


@pytest.mark.parametrize("name", ["large", "transfer", "answer"])
def test_what_is_too_large_is_refused_and_the_file_before_stays(fetched: Any, name: str) -> None:
    place, became = fetched
    assert became[name]["failed"] is True
    assert f"{name}: found more than {MOST} bytes at " in became[name]["msg"]
    assert "Traceback" not in became[name]["msg"]
    assert (place / "got" / name).read_bytes() == b"x" * 1000


def test_a_module_that_fails_leaves_the_file_before(fetched: Any) -> None:
    """On this machine itself the module has the same limits."""
    place, became = fetched
    assert became["root-large"]["failed"] is True
    assert "large can't be read: " in became["root-large"]["msg"]
    assert (place / "got" / "root-large").read_bytes() == b"x" * 1000


def test_nothing_is_left_of_what_was_refused(fetched: Any) -> None:
    place, _ = fetched
    assert sorted(path.name for path in (place / "got").iterdir()) == [
        "answer",
        "large",
        "root",
        "root-large",
        "same",
        "small",
        "transfer",
        "whole",
    ]


def test_what_was_fetched_is_known_to_the_report() -> None:
    result = {"changed": True, "dest": "/reports/gpu01/x.json"}
    record = {"kind": "changed", "host": "gpu01", "action": "minimax.metal.metal_fetch", "result": result}
    assert Run().take_all([record]).fetched == [("gpu01", "/reports/gpu01/x.json")]


def test_the_limits_hold_for_this_process_and_its_children_and_are_taken_back(tmp_path: Path) -> None:
    before = [resource.getrlimit(one) for one in (resource.RLIMIT_FSIZE, resource.RLIMIT_DATA)]
    with receiving(MOST):
        with pytest.raises(OSError, match="File too large"):
            (tmp_path / "own").write_bytes(bytes(MOST + 1))
        child = subprocess.run(
            ["dd", "if=/dev/zero", f"of={tmp_path / 'other'}", "bs=64k"], capture_output=True
        )
        assert child.returncode != 0
        with pytest.raises(MemoryError):
            bytearray(1 << 30)
    assert (tmp_path / "other").stat().st_size == MOST
    assert [resource.getrlimit(one) for one in (resource.RLIMIT_FSIZE, resource.RLIMIT_DATA)] == before
    assert len(bytearray(1 << 30)) == 1 << 30


def test_an_answer_without_end_fails_in_its_own_process() -> None:
    """Like ansible-playbook: a process that is already running, and starts others."""
    words = "import sys; sys.stdin.readline(); bytearray(MUCH)".replace("MUCH", str(MEMORY + (1 << 30)))
    process = subprocess.Popen([sys.executable, "-c", words], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert limit_memory(process.pid, 4 << 30) == MEMORY
    assert limit_memory(process.pid, 4 << 40) == MEMORY, "never raised again"
    _, said = process.communicate(b"\n", timeout=30)
    assert b"MemoryError" in said
    assert limit_memory(process.pid) is None


def test_every_file_from_a_host_comes_with_a_limit() -> None:
    files = [path for place in ("roles", "playbooks") for path in (REPOSITORY / place).rglob("*.yml")]
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    free = re.compile(
        r"ansible\.(?:builtin\.fetch|posix\.synchronize|posix\.rsync)\b|^\s+(?:fetch|synchronize):", re.M
    )
    assert [str(path) for path, text in texts.items() if free.search(text)] == []
    tasks = [task for text in texts.values() for task in text.split("- name: ") if "metal_fetch:" in task]
    assert len(tasks) == 3
    for task in tasks:
        assert re.search(r"max_bytes: \d+\n", task), task
        assert re.search(r"^\s+timeout: \d+$", task, re.M), task

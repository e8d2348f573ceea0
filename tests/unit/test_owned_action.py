"""The action metal_owned in a role, run by Ansible on this machine: changes, diffs, check mode, secrets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.common.redact import slim

REPOSITORY = Path(__file__).parents[2]
SECRET = "s3cr3t-s3cr3t-s3cr3t"
LIST = """\
files:
  - {path: "{{ place }}/d", directory: true, mode: "0750"}
  - path: "{{ place }}/d/{{ item.name }}.conf"
    each: [{name: a}, {name: b}]
    template: one.conf.j2
    restarts: ["no-such-{{ item.name }}.service"]
  - {path: "{{ place }}/key", content: "{{ secret }}\\n", secret: true, mode: "0600"}
  - {path: "{{ place }}/wheel", copy: wheel.bin}
  - {path: "{{ place }}/link", link: d/a.conf}
  - {path: "{{ place }}/off", content: "x\\n", present: "{{ wish | default(false) }}"}
  - {path: "{{ place }}/late", content: "late\\n", part: late}
users: [{name: no-such-user, home: /nonexistent}]
"""
TASKS = [
    {"name": "Write now", "minimax.metal.metal_owned": {}, "register": "owned"},
    {
        "name": "Write late",
        "minimax.metal.metal_owned": {"part": "late"},
        "when": "owned.pending.late is defined",
    },
    {"name": "Compare", "minimax.metal.metal_owned": {"write": False}, "register": "compared"},
    {
        "name": "Keep",
        "ansible.builtin.copy": {
            "content": "{{ {'owned': owned, 'compared': compared} | to_json }}",
            "dest": "{{ answer }}",
        },
        "check_mode": False,
        "diff": False,
        "delegate_to": "localhost",
    },
]


class Play:
    def __init__(self, place: Path) -> None:
        self.place, self.host = place, place / "host"
        self.host.mkdir()
        role = place / "roles" / "demo"
        for part in ("tasks", "meta", "templates", "files"):
            (role / part).mkdir(parents=True)
        (role / "meta" / "owned.yml").write_text(LIST)
        (role / "tasks" / "main.yml").write_text(json.dumps(TASKS))
        (role / "templates" / "one.conf.j2").write_text(
            "# {{ ansible_managed }}\n{{ item.name }} {{ word }}\n"
        )
        (role / "files" / "wheel.bin").write_bytes(b"\0wheel")
        (place / "play.yml").write_text(
            json.dumps([{"hosts": "all", "gather_facts": False, "roles": ["demo"]}])
        )

    def run(self, *words: str, **more: Any) -> tuple[dict[str, Any], str]:
        variables = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "place": str(self.host),
            "answer": str(self.place / "answer.json"),
            "secret": SECRET,
            "word": "one",
            **more,
        }
        (self.place / "extra.json").write_text(json.dumps(variables))
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        done = subprocess.run(
            [program, "-i", "gpu01,", "play.yml", "-e", "@extra.json", "-vvv", *words],
            cwd=self.place, capture_output=True, text=True, timeout=240, check=False,
            env=os.environ | {"ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1",
                              "ANSIBLE_ROLES_PATH": str(self.place / "roles")},
        )  # fmt: skip
        output = done.stdout + done.stderr
        assert done.returncode == 0, output
        found: dict[str, Any] = json.loads((self.place / "answer.json").read_text())
        return found, output

    def there(self) -> dict[str, str]:
        return {
            str(path.relative_to(self.host)): f"{path.lstat().st_mode:o} {path.lstat().st_mtime_ns}"
            for path in sorted(self.host.rglob("*"))
        }


@pytest.fixture
def play(tmp_path: Path) -> Play:
    return Play(tmp_path)


def test_a_role_writes_its_list_once_and_says_what_differs(play: Play) -> None:
    first, _ = play.run("--check", "--diff")
    assert play.there() == {}
    assert first["owned"]["changed"]
    every = [str(play.host / name) for name in ("d", "d/a.conf", "d/b.conf", "key", "wheel", "link")]
    assert first["owned"]["written"] == every
    assert first["owned"]["pending"] == {"late": [str(play.host / "late")]}
    assert first["owned"]["content"] == [*every, str(play.host / "late")]
    assert first["owned"]["work"]

    second, output = play.run("--diff")
    assert second["owned"]["written"] == every
    assert (play.host / "d" / "b.conf").read_text() == "# Ansible managed\nb one\n"
    assert (play.host / "key").read_text() == f"{SECRET}\n"
    assert (play.host / "wheel").read_bytes() == b"\0wheel"
    assert (play.host / "late").read_text() == "late\n"
    assert not (play.host / "off").exists()
    assert [user["name"] for user in second["owned"]["users"]] == ["no-such-user"]
    assert second["compared"]["differs"] == []
    assert "+b one" in output

    before = play.there()
    third, _ = play.run()
    assert not third["owned"]["changed"]
    assert "path" not in third["owned"]
    assert slim(second["owned"])["path"] == ", ".join(every)
    assert (third["owned"]["pending"], third["owned"]["differs"]) == ({}, [])
    assert play.there() == before

    # What a wish changes, and what somebody else did, in check mode and then for good.
    (play.host / "key").write_text("old-old-old")
    (play.host / "link").unlink()
    (play.host / "d").chmod(0o700)
    before = play.there()
    names = ["d/a.conf", "d/b.conf", "key", "link", "off"]
    wish = {"word": "two", "wish": True}
    for words in (("--check", "--diff"), ("--diff",)):
        found, output = play.run(*words, **wish)
        assert found["owned"]["written"] == [str(play.host / name) for name in names]
        assert len(found["owned"]["diff"]) == len(names) + 1
        assert "-a one" in output
        assert "+a two" in output
        assert "directory root:root 0700" in output
        assert f"after: {play.host}/key (file root:root 0600)" in output
        # Neither the new key nor the old one is shown, at any level of detail.
        assert SECRET not in output
        assert "old-old-old" not in output
        if "--check" in words:
            assert play.there() == before
            assert len(found["compared"]["differs"]) == len(names) + 1
    assert found["compared"]["differs"] == []


def test_what_lies_in_the_way_fails_with_host_and_path(play: Play) -> None:
    (play.host / "key").mkdir()
    with pytest.raises(AssertionError) as said:
        play.run()
    assert f"gpu01: found a directory, where a file belongs at {play.host}/key, expected" in " ".join(
        str(said.value).split()
    )

"""The shared address of two gateways: the user's own keepalived is looked for first, and left alone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from minimax_metal.controller.ansible_programs import program

REPOSITORY = Path(__file__).parents[2]


def tasks() -> dict[str, dict[str, Any]]:
    found = yaml.safe_load((REPOSITORY / "roles/sglang_gateway/tasks/address.yml").read_text())
    return {task["name"]: task for task in found}


@pytest.mark.parametrize(
    ("content", "refused"),
    [
        (None, False),
        ("vrrp_instance mine {\n}\n", True),
        ("", True),
        ('script "/usr/local/bin/metal gateway healthy --config /etc/x"\n', False),
    ],
)
def test_a_keepalived_that_is_the_users_is_refused_before_anything_is_installed(
    tmp_path: Path, content: str | None, refused: bool
) -> None:
    path = tmp_path / "keepalived.conf"
    if content is not None:
        path.write_text(content)
    every = tasks()
    names = list(every)
    look, refuse = (
        "Read an existing configuration of keepalived",
        "Refuse a keepalived that somebody else configured",
    )
    assert names.index(look) < names.index(refuse) < names.index("Install keepalived")
    read = every[look]
    read["ansible.builtin.command"]["argv"][-1] = str(path)
    play = [
        {"hosts": "localhost", "gather_facts": False, "connection": "local", "tasks": [read, every[refuse]]}
    ]
    (tmp_path / "play.yml").write_text(yaml.safe_dump(play))
    done = subprocess.run(
        [program("ansible-playbook"), "--check", "-i", "localhost,", str(tmp_path / "play.yml")],
        env=os.environ | {"ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg")},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode != 0) == refused, done.stdout + done.stderr
    assert ("did not write" in done.stdout + done.stderr) == refused

"""The lists of the roles of engine, gateway and weights, rendered by Ansible for an ordinary host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.controller.adapter import gateway_from_variables, plan_from_variables
from tests.support.templates import REPOSITORY
from tests.unit.plan_helpers import raw_host

UNIT = "sglang@minimax-m2.5.service"
GPU_ROLES = ("sglang_runtime", "model_weights", "sglang_service", "post_check")


def planned(**variables: Any) -> dict[str, Any]:
    """The plan of a GPU host."""
    named = {f"metal_{name}": value for name, value in ({"model": "MiniMax-M2.5"} | variables).items()}
    plan = plan_from_variables("gpu01", named, raw_host("H200", 8))
    assert plan["fits"], plan["refusals"]
    return plan


class Host:
    """This machine, which no list is written to: its answers to `write: false`, by role."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def compared(self, plan: dict[str, Any], *roles: str, **more: Any) -> dict[str, dict[str, Any]]:
        """Return what `metal_owned` answers for each role."""
        parts = [
            str(path)
            for role in roles
            for part in ("defaults", "vars")
            if (path := REPOSITORY / "roles" / role / part / "main.yml").exists()
        ]
        tasks: list[dict[str, Any]] = []
        for role in roles:
            compare = {"write": False, "role": str(REPOSITORY / "roles" / role)}
            tasks.append({"minimax.metal.metal_owned": compare, "register": f"found_{role}"})
        answer = "{{ {" + ", ".join(f"'{role}': found_{role}" for role in roles) + "} | to_json }}"
        keep = {"content": answer, "dest": str(self.place / "answer.json"), "mode": "0600"}
        tasks.append({"ansible.builtin.copy": keep, "check_mode": False})
        play = {"hosts": "gpu01", "gather_facts": False, "vars_files": parts, "tasks": tasks}
        (self.place / "play.yml").write_text(json.dumps([play]))
        extra = {
            "metal_plan": plan,
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "metal_secrets_directory": str(self.place / "secrets"),
            **more,
        }
        (self.place / "extra.json").write_text(json.dumps(extra))
        (self.place / "hosts").write_text("[gpu_hosts]\ngpu01\n[gateway_hosts]\ngpu01\n")
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        done = subprocess.run(
            [program, "-i", "hosts", "play.yml", "-e", "@extra.json", "-vvv"],
            cwd=self.place, capture_output=True, text=True, timeout=240, check=False,
            env=os.environ | {"ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        for path in (self.place / "secrets").rglob("*"):
            if path.is_file() and path.suffix in {"", ".key"}:
                for line in path.read_text().splitlines():
                    assert "PRIVATE KEY" in line or line not in done.stdout + done.stderr, path
        found: dict[str, dict[str, Any]] = json.loads((self.place / "answer.json").read_text())
        return found


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_the_lists_of_a_gpu_host_name_what_its_plan_needs(host: Host) -> None:
    plan = planned(tls="fleet")
    found = host.compared(plan, *GPU_ROLES)
    service = found["sglang_service"]
    assert service["content"] == [
        "/etc/sglang",
        "/etc/sglang-tls",
        *[f"/etc/sglang-tls/{name}" for name in ("tls.key", "tls.crt", "ca.crt")],
        "/etc/sglang/minimax-m2.5",
        *[
            f"/etc/sglang/minimax-m2.5/{name}"
            for name in ("api_key", "admin_api_key", "accepted.json", "engine.yaml")
        ],
        *[
            f"/etc/systemd/system/{name}"
            for name in ("sglang.target", "metal-kernel-lines.service", "sglang-precompile.service", UNIT)
        ],
    ]
    assert set(service["pending"]) == {"key_files"}
    assert service["strays"] == []
    assert service["work"]
    weights = found["model_weights"]
    assert weights["content"][-1] == "/etc/minimax-metal/weights-brought-nginx"
    assert "/etc/minimax-metal/weights/minimax-m2.5.json" in weights["content"]
    assert set(weights["pending"]) == {"directories", "nginx"}
    runtime = found["sglang_runtime"]
    assert list(runtime["environments"]) == [plan["engine"]["environment"]]
    assert "sglang" in runtime["environments"][plan["engine"]["environment"]]["lacks"]
    assert found["post_check"]["content"] == ["/var/lib/minimax-metal/checks"]


def test_tokens_and_hosts_that_share_are_in_the_list_of_the_weights(host: Host, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_0123456789abcdef\n")
    found = host.compared(
        planned(),
        "model_weights",
        model_weights_token_files={"huggingface": str(tmp_path / "token")},
        __model_weights_members=[
            {"name": name, "path": planned()["model"]["path"], "address": name} for name in ("gpu01", "gpu02")
        ],
        __model_weights_secret_chosen={"secret": "5ec2e7" * 10, "note": "{}"},
    )["model_weights"]
    assert set(found["pending"]) == {"directories", "tokens", "share", "secret", "secret_note", "nginx"}
    assert found["pending"]["tokens"] == [
        "/etc/minimax-metal/tokens",
        "/etc/minimax-metal/tokens/huggingface",
    ]


def test_the_list_of_a_gateway_renders_for_its_plan(host: Host) -> None:
    plan = planned()
    gateway = gateway_from_variables(
        "gpu01", {"metal_tls": "fleet"}, raw_host("H200", 8), {}, {"gpu01": plan}
    )
    assert not gateway["refusals"], gateway["refusals"]
    found = host.compared(
        gateway,
        "sglang_gateway",
        sglang_gateway_virtual_address="10.0.0.100/24",
        sglang_gateway_virtual_interface="eth9",
        ansible_host="127.0.0.1",
    )["sglang_gateway"]
    here = "/etc/sglang-gateway"
    assert found["pending"] == {
        "sources": [
            f"{gateway['environment']}/minimax-metal",
            f"{gateway['environment']}/minimax-metal/{gateway['lock_file']}",
        ],
        "key_files": [f"{here}/{name}" for name in ("admin_key", "api_key", "tls.key", "tls.crt", "ca.crt")],
        "configuration": [f"{here}/admin.json"],
        "address": ["/etc/keepalived/sglang-gateway.secret", "/etc/keepalived/keepalived.conf"],
    }
    assert [user["name"] for user in found["users"]] == ["sglang-gateway"]
    assert found["packages"] == ["keepalived"]

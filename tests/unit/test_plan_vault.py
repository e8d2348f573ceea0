"""Encrypted variables: decrypted like in Ansible, never shown; without the password, the file is named."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from minimax_metal.cli import main
from minimax_metal.controller import inventory
from minimax_metal.controller.ansible_programs import program
from minimax_metal.controller.inventory import Reach, read_variables_and_secrets
from minimax_metal.controller.vault import MARK, decrypted_of, encrypted_files, is_encrypted, masked

# The case of ansible/ansible#36862 and ansible/awx#2319: an inline value, whose password nobody here has.
INLINE = """\
gpu_hosts:
  hosts: {gpu01: {ansible_connection: local}}
  vars:
    metal_model: MiniMax-M2.5
    metal_tls_key: !vault |
                $ANSIBLE_VAULT;1.1;AES256
                33383037323031663539313666333762353936373765333766636661663163336132306136636463
                3164323030366466663566316264613364646639336662660a666633353065316535303335316637
                37613139646633363535366264653835373764633131386666303639626233663062306466383336
                3835353739313763380a373364363061396239323539626431326234616533623861363830336161
                3137
    metal_tls_certificate: /etc/ssl/c.pem
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ANSIBLE_VAULT_PASSWORD_FILE", raising=False)


def test_without_the_password_the_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hosts.yml").write_text(INLINE)
    assert main(["plan", "-i", str(tmp_path / "hosts.yml")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(tmp_path / "hosts.yml") in said
    assert "--vault-password-file" in said
    assert "ANSIBLE_VAULT_PASSWORD_FILE" in said
    assert MARK not in said


def encrypted(tmp_path: Path, value: str, indent: int) -> str:
    done = subprocess.run(
        [program("ansible-vault"), "encrypt_string", "--vault-password-file", str(tmp_path / "pw"), value],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    first, *rest = done.stdout.splitlines()
    return "\n".join([first, *(" " * indent + line.strip() for line in rest)])


def test_nested_values_and_whole_files_are_decrypted_and_known_as_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pw").write_text("right\n")
    (tmp_path / "wrong").write_text("wrong\n")
    fleet = tmp_path / "fleet"
    (fleet / "group_vars").mkdir(parents=True)
    (fleet / "hosts.yml").write_text(
        "gpu_hosts:\n  hosts: {gpu01: {ansible_connection: local}}\n  vars:\n    metal_model: MiniMax-M2.5\n"
        f"    metal_port: {encrypted(tmp_path, 'no-port-7f3a', 6)}\n"
        "    metal_engine_extra_environment:\n"
        f"      A: {encrypted(tmp_path, 'value-of-a', 8)}\n"
        "    metal_engine_extra_args:\n"
        f"      - {encrypted(tmp_path, 'value-in-list', 8)}\n"
    )
    whole = fleet / "group_vars" / "gpu_hosts.yml"
    whole.write_text("metal_profile: default\n")
    vault = [program("ansible-vault"), "encrypt", "--vault-password-file", str(tmp_path / "pw"), str(whole)]
    subprocess.run(vault, check=True, capture_output=True)
    monkeypatch.setattr(inventory, "_gather", lambda *_: {"gpu01": {"reachable": False}})

    assert main(["plan", "-i", str(fleet)]) == 2
    assert str(whole) in capsys.readouterr().err
    assert main(["plan", "-i", str(fleet), "--vault-password-file", str(tmp_path / "wrong")]) == 2
    assert "does not open" in capsys.readouterr().err

    reach = Reach(*[("--vault-password-file", str(tmp_path / "pw"))] * 2)
    variables, secrets = read_variables_and_secrets([fleet], limit=None, reach=reach)
    assert variables["gpu01"]["metal_engine_extra_environment"] == {"A": "value-of-a"}
    assert variables["gpu01"]["metal_engine_extra_args"] == ["value-in-list"]
    assert variables["gpu01"]["metal_profile"] == "default"
    assert set(secrets) == {"no-port-7f3a", "value-of-a", "value-in-list"}

    assert main(["plan", "-i", str(fleet), "--vault-password-file", str(tmp_path / "pw"), "--json"]) == 1
    out = capsys.readouterr().out
    assert json.loads(out)[0]["refusals"][0]["code"]
    assert "no-port-7f3a" not in out
    assert "***" in out


def test_what_was_encrypted_is_masked_wherever_it_stands() -> None:
    listed = {"a": {MARK: "x"}, "b": ["y", {MARK: "z"}], "c": 1}
    assert is_encrypted(listed)
    secrets = decrypted_of(listed, {"a": {"deep": "secret-one"}, "b": ["y", 4711], "c": 1})
    assert secrets == ["secret-one", "4711"]
    assert masked({"k": ["is secret-one", "4711", ("x",)]}, secrets) == {"k": ["is ***", "***", ("x",)]}
    # A short one masks what it is, and not half a page.
    assert masked(["8", "108"], ["8"]) == ["***", "108"]


def test_encrypted_files_are_found_beside_the_inventory(tmp_path: Path) -> None:
    (tmp_path / "host_vars" / "gpu01").mkdir(parents=True)
    secret = tmp_path / "host_vars" / "gpu01" / "vault.yml"
    secret.write_text("$ANSIBLE_VAULT;1.1;AES256\n3338\n")
    (tmp_path / "hosts.yml").write_text("gpu_hosts: {hosts: {gpu01: }}\n")
    assert encrypted_files([tmp_path / "hosts.yml"]) == [str(secret)]
    assert encrypted_files(["gpu01,"]) == []

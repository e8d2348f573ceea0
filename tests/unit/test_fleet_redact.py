"""No secret is kept of a run: not as an argument, not in a text, not in a command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minimax_metal.fleet.redact import (
    MASK,
    Redactor,
    is_secret_name,
    secrets_of_directories,
    secrets_of_environment,
    secrets_of_extra_variables,
    slim,
)

CANARY = "canary-5up3r-53cr3t"


def test_arguments_of_a_module_are_not_kept() -> None:
    result = {
        "changed": True,
        "invocation": {"module_args": {"content": CANARY}},
        "stdout": CANARY,
        "content": CANARY,
        "ansible_facts": {"x": CANARY},
        "dest": "/etc/x",
        "diff": [{"before": CANARY, "after": CANARY, "after_header": "/etc/x"}],
        "results": [
            {"changed": True, "invocation": {"a": CANARY}, "item": CANARY, "_ansible_item_label": "a label"}
        ],
    }
    kept = slim(result)
    assert CANARY not in json.dumps(kept)
    assert kept["dest"] == "/etc/x"
    assert kept["diff"] == "/etc/x"
    assert kept["items"][0]["label"] == "a label"


def test_of_what_is_not_to_be_logged_only_what_became_of_it_is_kept() -> None:
    assert slim({"_ansible_no_log": True, "changed": True, "msg": CANARY, "dest": CANARY}) == {
        "changed": True
    }
    loop = slim({"changed": True, "results": [{"_ansible_no_log": True, "failed": True, "msg": CANARY}]})
    assert loop["items"] == [{"failed": True}]


def test_what_a_failed_task_said_is_kept_and_its_end_above_all() -> None:
    kept = slim({"failed": True, "stderr": "x" * 20_000 + "the reason", "msg": ["y" * 9000, "the last line"]})
    assert kept["stderr"].endswith("the reason")
    assert len(kept["stderr"]) < 9_000
    assert kept["msg"] == ["…", "the last line"]


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {CANARY}",
        "token hf_abcdefghijklmnopqrstuvwx",
        f"api_key='{CANARY}'",
        f'"admin_key": "{CANARY}"',
        f"--api-key={CANARY}",
        f"https://anna:{CANARY}@mirror.example/simple",
        f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----",
        f"server_args=ServerArgs(api_key='{CANARY}', port=8000)",
    ],
)
def test_what_looks_like_a_secret_is_masked_though_nobody_knows_it(text: str) -> None:
    masked = Redactor().text(text)
    assert CANARY not in masked
    assert "hf_a" not in masked
    assert MASK in masked


@pytest.mark.parametrize(
    "text",
    [
        "api_key=None",
        "12 tokens: 3 s",
        "key_file: /etc/sglang/api_key",
        "the token is refused",
        "max_tokens=4096",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert Redactor().text(text) == text


def test_known_secrets_are_masked_wherever_they_are() -> None:
    redactor = Redactor([CANARY, "short", CANARY + "-longer"])
    assert redactor.value({"a": [f"x{CANARY}y", 1], CANARY: None}) == {"a": [f"x{MASK}y", 1], MASK: None}
    assert redactor.text(f"{CANARY}-longer") == MASK
    assert redactor.text("short is too short to mask") == "short is too short to mask"


def test_secrets_are_known_from_where_users_put_them(tmp_path: Path) -> None:
    (tmp_path / "api_key").write_text(CANARY + "\n")
    assert CANARY in secrets_of_directories([tmp_path, tmp_path / "absent"])
    assert secrets_of_environment({"HF_TOKEN": CANARY, "PATH": "/bin"}) == [CANARY]
    words = [
        f"sglang_service_api_key={CANARY} a=b",
        json.dumps({"x": {"hf_token": CANARY}, "y": 1}),
        "@file.yml",
    ]
    assert secrets_of_extra_variables(words) == [CANARY, CANARY]


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("sglang_service_api_key", True),
        ("ANSIBLE_BECOME_PASS", True),
        ("HF_TOKEN", True),
        ("metal_tokens_per_request", False),
        ("nvidia_driver_repository_key", False),
    ],
)
def test_names_of_secrets(name: str, secret: bool) -> None:
    assert is_secret_name(name) is secret

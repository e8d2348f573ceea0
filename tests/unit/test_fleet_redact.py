"""No secret of a run is stored: not as an argument, not in a text, not in a command line."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimax_metal.common.redact import (
    MASK,
    Redactor,
    is_secret_name,
    secrets_of_directories,
    secrets_of_environment,
    secrets_of_extra_variables,
    slim,
)
from minimax_metal.common.secret_shapes import without_secrets

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
    (tmp_path / "more.yml").write_text(f"sglang_gateway_virtual_auth: {CANARY}\nx: !vault |\n  $ANSIBLE\n")
    assert secrets_of_extra_variables([f"@{tmp_path}/more.yml", f"{{hf_token: {CANARY}}}"]) == [CANARY] * 2


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("sglang_service_api_key", True),
        ("ANSIBLE_BECOME_PASS", True),
        ("HF_TOKEN", True),
        ("sglang_gateway_virtual_auth", True),
        ("sglang_gateway_admin_key", True),
        ("apiKey", True),
        ("x-api-key", True),
        ("metal_tokens_per_request", False),
        ("nvidia_driver_repository_key", False),
    ],
)
def test_names_of_secrets(name: str, secret: bool) -> None:
    assert is_secret_name(name) is secret


@pytest.mark.parametrize(
    "text",
    [
        f"AWS_SECRET_ACCESS_KEY={CANARY}",
        f"export AWS_SESSION_TOKEN='{CANARY}'",
        f"--api-key {CANARY} --port 8000",
        f"['sglang', '--api-key', '{CANARY}', '--port']",
        f'["--admin-api-key", "{CANARY}"]',
        f"-token {CANARY}",
        f"    auth_pass {CANARY}\n",
        "auth_pass c4n4ry",
        f"auth_pass: {CANARY}",
        f'{{"password": "{CANARY}"}}',
        f'{{\\"apiKey\\": \\"{CANARY}\\"}}',
        f"password: '{CANARY} with spaces'",
        f"metal_hf_token: !unsafe {CANARY}",
        f"client_secret => {CANARY}",
        f"x-api-key: {CANARY}",
        f"curl -H 'X-Auth-Token: {CANARY}'",
        f"Ocp-Apim-Subscription-Key: {CANARY}",
        f"Authorization: Basic {CANARY}",
        f"authorization: Token {CANARY}",
        f"Proxy-Authorization: Digest username=a, response={CANARY}",
        f'"Authorization": "Bearer {CANARY}"',
        f"Set-Cookie: session={CANARY}; HttpOnly",
        f"cookie: a=b; sid={CANARY}",
        f"https://{CANARY}@github.com/a/b",
        f"http://user:{CANARY}@proxy.example:3128",
        f"https://s3.example/x?X-Amz-Signature={CANARY}&a=1",
        f"https://h/x?access_token={CANARY}",
        f"curl -u admin:{CANARY} https://h",
        f"machine h login u password {CANARY}",
        f"tls:\n  private_key: |\n    {CANARY}\n    {CANARY}\nport: 1",
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{CANARY}",
        f"-----BEGIN PGP PRIVATE KEY BLOCK-----\n{CANARY}\n-----END PGP PRIVATE KEY BLOCK-----",
        f"sglang_gateway_virtual_auth={CANARY}",
        f"PGPASSWORD={CANARY}",
    ],
)
def test_a_secret_is_masked_in_every_form_that_programs_write(text: str) -> None:
    """The forms of sglang's argv, keepalived, curl, netrc, YAML, JSON, HTTP; before, half of them passed."""
    masked = Redactor().text(text)
    assert CANARY not in masked, masked
    assert "c4n4ry" not in masked
    assert MASK in masked


@pytest.mark.parametrize(
    "token",
    [
        "hf_" + "a1B2" * 8, "ms-1b2c3d4e-5f60-4718-9a0b-c1d2e3f40516", "ghp_" + "a1B2" * 9,
        "github_pat_" + "a1B2" * 9, "glpat-" + "a1B2" * 5, "AKIA" + "ABCD" * 4, "AIza" + "a1B2" * 9,
        "xoxb-" + "12345-" * 3, "sk-" + "a1B2" * 6, "nvapi-" + "a1B2" * 6,
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0xx.c2lnbmF0dXJl",
    ],
)  # fmt: skip
def test_tokens_of_known_makes_are_masked_where_nothing_names_them(token: str) -> None:
    assert Redactor().text(f"said {token}, and more") == f"said {MASK}, and more"


@pytest.mark.parametrize(
    "text",
    [
        "sudo: a password is required", "tokens per second: 1234.5", "max_total_num_tokens=443794",
        "chunked_prefill_size=8192, mem_fraction_static=0.85",
        "the key of the repository is /usr/share/keyrings/x.gpg",
        "https://huggingface.co/MiniMaxAI/MiniMax-M2.5", "ssh://git@github.com/a/b", "basic checks passed",
        "sudo-password: found a sudo that needs a password; needed the password", "NOPASSWD: ALL' into x",
        "token: refused by the hub", "api_key_file: /etc/sglang/api_key", "--api-key-file /etc/x",
        "token: null, password: None",
        "git@github.com: Permission denied (publickey,password).", "user ops: 3 failed",
    ],
)  # fmt: skip
def test_what_only_sounds_like_a_secret_stays(text: str) -> None:
    assert Redactor().text(text) == text


def test_keys_of_json_say_what_is_secret() -> None:
    shown = Redactor().value(
        {"apiKey": "abc", "nested": {"password": {"value": "x y"}}, "tokens": 3, "n": "ok"}
    )
    assert shown == {"apiKey": MASK, "nested": {"password": {"value": MASK}}, "tokens": 3, "n": "ok"}


def test_known_secrets_are_masked_as_json_and_in_urls_too() -> None:
    secret = 'a"b/c d+e%f'
    redactor = Redactor([secret])
    assert MASK in redactor.text(json.dumps({"x": secret}))
    assert "b/c" not in redactor.text(json.dumps({"x": secret}))
    assert redactor.text("?q=a%22b%2Fc%20d%2Be%25f") == f"?q={MASK}"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([
    "password", "api_key", "=", ": ", '"', "\\", "'", "://", "@", "-----BEGIN PRIVATE KEY-----",
    "eyJ", ".", "a" * 500, "--", "token", " ", "\n", "\n  ", "|", "authorization: ", "cookie: ", "login ",
    "!!str ", "-u ",
    "&sig=", "/",
]), max_size=80), st.integers(1, 40))  # fmt: skip
def test_masking_is_linear_in_time(parts: list[str], times: int) -> None:
    text = ("".join(parts) * times)[:200_000]
    began = time.process_time()
    without_secrets(text)
    first = time.process_time() - began
    began = time.process_time()
    without_secrets(text * 4)
    assert time.process_time() - began < 12 * first + 1.5
    assert first < 3.0


@pytest.mark.parametrize(
    "text",
    [
        f"ansible_become_pass: {CANARY}",
        f"ANSIBLE_BECOME_PASS={CANARY}",
        f"DB_PASS={CANARY}",
        f"PASS={CANARY}",
        f"SSHPASS={CANARY}",
        f"sshpass -p {CANARY} ssh gpu01",
        f"encryption_key={CANARY}",
        f"psk={CANARY}",
        f"api_key:\n  {CANARY}\n",
        f"api_key\t{CANARY}",
        f"api_key -> {CANARY}",
        f"?x=1%26api_key%3D{CANARY}",
        f"'password': u'{CANARY}'",
        f"password=&quot;{CANARY}&quot;",
        f"<password>{CANARY}</password>",
        f"set password {CANARY}",
        f"authentication auth-pass {CANARY}",
        f'{{"api_key": ["{CANARY}", "{CANARY}2"]}}',
        f'"api_key": [\n  "{CANARY}"\n]',
        f"secrets: [{CANARY}]",
        f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----BEGIN PRIVATE KEY-----\n{CANARY}\n",
    ],
)
def test_secrets_of_other_shapes_are_masked(text: str) -> None:
    assert CANARY not in without_secrets(text)


@pytest.mark.parametrize(
    "text",
    [
        "token usage: 0.03, #running-req: 1",
        "first pass: 3 of 4",
        "a token of 12 digits",
        "stop_token_ids=[1, 2, 3]",
        "secret: [1, 2]",
        "password authentication failed for user",
        "tokens:\n  - 12\n",
        "credentials:\n  user: anna\n",
    ],
)
def test_what_only_speaks_of_secrets_stays(text: str) -> None:
    assert without_secrets(text) == text


@pytest.mark.parametrize(
    "text",
    ["-----BEGIN PRIVATE KEY-----" * 40_000, "-" * 300_000, "--a" + "-a" * 150_000],
    ids=["keys without end", "dashes", "an option without end"],
)
def test_no_text_makes_the_masking_take_long(text: str) -> None:
    began = time.process_time()
    without_secrets(text)
    assert time.process_time() - began < 5

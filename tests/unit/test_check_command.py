"""The command of the post-check: from the plan and the role's settings, whatever type Ansible passes."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from minimax_metal.host.check import commands
from minimax_metal.plan.check_command import check_command
from minimax_metal.plan.model import Plan, ServicePlan
from minimax_metal.plan.reading import lenient
from tests.support.templates import REPOSITORY

SERVICE: dict[str, Any] = {
    "instance": "minimax-m2.5",
    "url": "http://127.0.0.1:8000",
    "check_arguments": ["--api-key-file", "/etc/sglang/minimax-m2.5/api_key"],
    "argv": ["--enable-metrics"],
}
PLAN: dict[str, Any] = {
    "checks": {"arguments": ["--model", "MiniMaxAI/MiniMax-M2.5"]},
    "engine": {"environment": "/opt/sglang/0.5.23-abc"},
}
DEFAULTS: dict[str, Any] = yaml.safe_load(
    (REPOSITORY / "roles/post_check/defaults/main.yml").read_text(encoding="utf-8")
)


def command(service: dict[str, Any] = SERVICE, **given: Any) -> list[str]:
    return check_command(
        lenient(ServicePlan, service), Plan.of_record(PLAN), DEFAULTS | given, "/var/lib/minimax-metal/checks"
    )


def test_the_defaults_give_the_command_that_the_program_takes() -> None:
    words = command()
    assert words[:7] == [
        "/usr/local/bin/metal", "check", "http://127.0.0.1:8000",
        "--report", "/var/lib/minimax-metal/checks/minimax-m2.5.json",
        "--junit", "/var/lib/minimax-metal/checks/minimax-m2.5.xml",
    ]  # fmt: skip
    assert words[-1] == "--metrics"
    assert "--bench" not in words
    taken = commands._parser().parse_args(words[2:])
    assert (taken.timeout, taken.long_prompt_share, taken.figures) == (300, 0.5, (1, 4))
    assert str(taken.api_key_file) == "/etc/sglang/minimax-m2.5/api_key"


def test_an_endpoint_without_metrics_is_not_asked_for_them() -> None:
    assert "--metrics" not in command(SERVICE | {"argv": []})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"post_check_figures": []}, ["--figures", "none"]),
        ({"post_check_figures": "1,8"}, ["--figures", "1,8"]),
        ({"post_check_skip": ["tool*", "image"]}, ["--skip=tool*", "--skip=image"]),
        ({"post_check_skip": "tool*, image"}, ["--skip=tool*", "--skip=image"]),
        ({"post_check_api_key_file": "/root/key"}, ["--api-key-file", "/root/key"]),
        ({"post_check_bench": True}, ["--bench", "--bench-python", "/opt/sglang/0.5.23-abc/bin/python"]),
        ({"post_check_bench": "yes"}, ["--bench", "--bench-python", "/opt/sglang/0.5.23-abc/bin/python"]),
        ({"post_check_extra_arguments": ["--abort-seconds", 3]}, ["--abort-seconds", "3"]),
    ],
)
def test_each_setting_is_in_the_command(given: dict[str, Any], words: list[str]) -> None:
    found = command(**given)
    assert words in [found[start : start + len(words)] for start in range(len(found))]


@pytest.mark.parametrize("given", [False, "false", "no", "0", ""])
def test_a_setting_that_is_off_is_off_as_a_text_too(given: Any) -> None:
    """``-e post_check_bench=false`` is a string, which Jinja takes for true."""
    assert "--bench" not in command(post_check_bench=given)

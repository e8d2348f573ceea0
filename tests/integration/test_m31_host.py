"""site.yml with MiniMax-M3.1-Flash on one lab host of four H20, the smallest that the catalogue serves it on.

The plan uses the tiny M3.1 in bfloat16 (lab/models/README.md lists what that can't show). ``METAL_LAB_NAME``
names a running lab that is used as it is, and left.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.host.check import questions
from tests.support.site import REPOSITORY, Lab, booted

pytestmark = [pytest.mark.lab, pytest.mark.timeout(3600)]

NAME = "MiniMaxAI/MiniMax-M3.1-Flash"
SETTINGS = {
    "metal_model": "M3.1",
    "metal_weights_source": "hf-mirror",
    "metal_hf_mirror_endpoint": "{{ lab_hub_url }}",
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reports")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, reports: Path) -> Iterator[Lab]:
    place = tmp_path_factory.mktemp("inventory")
    settings = {**SETTINGS, "post_check_reports_directory": str(reports)}
    (place / "hosts.json").write_text(json.dumps({"gpu_hosts": {"hosts": {"gpu01": settings}}}))
    (place / "group_vars").symlink_to(REPOSITORY / "inventories/lab/group_vars")
    with booted("m31", "m31", str(place)) as lab:
        yield lab


def ask(lab: Lab, **body: Any) -> dict[str, Any]:
    address = lab.ssh("gpu01", "hostname -I").split()[0]
    request = urllib.request.Request(
        f"http://{address}:8000/v1/chat/completions",
        json.dumps({"model": NAME, "temperature": 0, **body}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {lab.api_key}"},
    )
    with urllib.request.urlopen(request, timeout=300) as reply:  # noqa: S310  the lab's own host
        choice: dict[str, Any] = json.load(reply)["choices"][0]
    return choice


def test_site_ends_in_a_verified_reply(lab: Lab, reports: Path) -> None:
    run = lab.play("site.yml")
    assert run.returncode == 0, run.output
    (report,) = reports.rglob("*.json")
    rows = {row["name"]: row for row in json.loads(report.read_text())["checks"]}
    assert {name for name, row in rows.items() if row["status"] in {"failed", "limited"}} == set()
    for name in ("reasoning", "reasoning_effort", "tool_call", "tool_required", "image", "messages"):
        assert rows[name]["status"] == "passed", rows[name]
    assert all(
        level in rows["reasoning_effort"]["detail"] for level in ("low", "medium", "high", "xhigh", "max")
    )


def test_a_small_budget_is_spent_on_reasoning(lab: Lab) -> None:
    messages = [questions.text_message("user", questions.GREETING)]
    cut = ask(lab, messages=messages, max_tokens=48)
    assert (cut["finish_reason"], cut["message"]["content"] or "") == ("length", "")
    assert cut["message"]["reasoning_content"]
    whole = ask(lab, messages=messages, max_tokens=48, reasoning_effort="low")
    assert whole["message"]["content"] == "Hello from the lab."


def test_a_second_run_changes_nothing(lab: Lab) -> None:
    run = lab.play("site.yml")
    assert run.returncode == 0, run.output
    assert run.recap["gpu01"]["changed"] == 0, run.changed

"""Every unit of the product, rated by systemd: its exposure, and its memory limit."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.controller.adapter import plan_from_variables
from minimax_metal.host.accept.engine import GUARD, guard_text
from tests.support.templates import TEMPLATES, evaluate, render, role_variables
from tests.unit.plan_helpers import raw_host

EXPOSURE = 4.0
"""Highest allowed score of a unit; 10 is worst (issue 15)."""
UNITS = sorted(name.removesuffix(".j2") for name in TEMPLATES if name.endswith(".service.j2"))


def variables() -> dict[str, Any]:
    """What the roles pass to their templates, besides the plan."""
    sandboxes = {
        f"__{role}_sandbox": evaluate(role_variables(role), f"__{role}_sandbox")
        for role in ("sglang_service", "sglang_gateway")
    }
    return (
        sandboxes
        | {
            "__artefact_cache_configuration": "/etc/minimax-metal/artefact-cache.conf",
            "artefact_cache_directory": "/var/cache/minimax-metal/artefacts",
            "__model_weights_request": "/etc/minimax-metal/weights/m.json",
            "__model_weights_secret": "/etc/minimax-metal/share/secret",
            "__model_weights_runtime": "minimax-metal-share-m",
            "__model_weights_tokens": "/etc/minimax-metal/tokens",
            "__sglang_gateway_config": "/etc/sglang-gateway/gateway.json",
            "__sglang_gateway_state": "/var/lib/minimax-metal/gateway",
            "__sglang_gateway_credentials": {"gateway_api_key": "/etc/sglang-gateway/api_key"},
            "sglang_gateway_stop_timeout_seconds": 600,
            "host_tuning_shm_size": "64G",
            "__endpoint_firewall_rules": [],
        }
        | role_variables("model_weights", model_weights_token_files={"huggingface": "/x"})
    )


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All units of an ordinary host."""
    folder = tmp_path_factory.mktemp("units")
    named = {"metal_model": "MiniMax-M2.5", "metal_weights_adopt": ["/home/me"]}
    plan = plan_from_variables("gpu01", named, raw_host("H200", 8))
    assert plan["fits"], plan["refusals"]
    gateway = {"release": "sglang-gateway", "argv": ["smg", "launch", "--port", "30000"]}
    for name in UNITS:
        render(
            folder / name.replace("@", "@m"),
            f"{name}.j2",
            plan | (gateway if name.startswith("sglang-gateway") else {}),
            item=plan["services"][0],
            **variables(),
        )
    (folder / GUARD).write_text(
        guard_text(1, [plan["services"][0]["unit"]], Path("/run/systemd/system") / GUARD)
    )
    return folder


def value(text: str, name: str) -> str | None:
    found = re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)
    return found[-1] if found else None


def test_no_template_of_a_unit_is_left_out() -> None:
    assert len(UNITS) >= 11
    assert {"metal-weights@.service", "sglang@.service", "metal-kernel-lines.service"} <= set(UNITS)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("name", [*UNITS, GUARD])
def test_a_unit_is_exposed_to_little(units: Path, name: str) -> None:
    file = name.replace("@", "@m")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", f"./{file}"],
        cwd=units,
        check=False,
        capture_output=True,
        text=True,
    )
    found = re.search(r"Overall exposure level for .*: ([\d.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert float(found.group(1)) <= EXPOSURE, done.stdout


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_every_line(units: Path) -> None:
    files = [str(units / name.replace("@", "@m")) for name in (*UNITS, GUARD)]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", "--man=no", *files],
        check=False,
        capture_output=True,
        text=True,
    )
    said = [line for line in done.stderr.splitlines() if str(units) in line]
    assert [line for line in said if "is not executable" not in line] == []


@pytest.mark.parametrize("name", [*UNITS, GUARD])
def test_a_unit_says_how_much_memory_it_may_take(units: Path, name: str) -> None:
    text = (units / name.replace("@", "@m")).read_text(encoding="utf-8")
    assert re.fullmatch(r"[1-9][0-9]*[KMG]?|[1-9][0-9]?%", value(text, "MemoryMax") or ""), text


def test_each_service_has_a_user_of_its_own(units: Path) -> None:
    users = {
        name: value((units / name.replace("@", "@m")).read_text(encoding="utf-8"), "User")
        for name in ("sglang@.service", "metal-weights@.service", "metal-weights-share@.service",
                     "sglang-precompile.service", "sglang-gateway.service")
    }  # fmt: skip
    assert len(set(users.values()) - {None, "root"}) == len(users), users
    for name in users:
        assert (
            value((units / name.replace("@", "@m")).read_text(encoding="utf-8"), "SupplementaryGroups")
            is None
        )

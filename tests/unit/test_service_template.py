"""The unit files as on a host, checked by systemd itself."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.controller.adapter import plan_from_variables
from tests.support.templates import evaluate, render, role_variables
from tests.unit.plan_helpers import raw_host

UNIT = "sglang@minimax-m2.5.service"
EXPOSURE = 4.0
"""Highest allowed score of the sandbox (issue of the service); systemd 252 scores it 2.9."""


def planned(**variables: Any) -> dict[str, Any]:
    named = {f"metal_{name}": value for name, value in ({"model": "MiniMax-M2.5"} | variables).items()}
    plan = plan_from_variables("gpu01", named, raw_host("H200", 8))
    assert plan["fits"], plan["refusals"]
    return plan


def sandbox(**variables: Any) -> dict[str, Any]:
    merged: dict[str, Any] = evaluate(
        role_variables("sglang_service", **variables), "__sglang_service_sandbox"
    )
    return merged


def unit(folder: Path, plan: dict[str, Any], number: int = 0, **variables: Any) -> str:
    service = plan["services"][number]
    return render(
        folder / service["unit"],
        "sglang@.service.j2",
        plan,
        item=service,
        __sglang_service_sandbox=sandbox(**variables),
    )


def values(text: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The unit of an ordinary host, and its directory."""
    folder = tmp_path_factory.mktemp("units")
    return folder, unit(folder, planned())


def test_the_unit_can_be_read_as_it_is(usual: tuple[Path, str]) -> None:
    _, text = usual
    command = " ".join(text.replace("\\\n", " ").split("ExecStart=")[1].splitlines()[0].split())
    assert command.startswith("/usr/local/bin/metal supervise --instance minimax-m2.5")
    assert "--gpus 0,1,2,3,4,5,6,7 --secrets /etc/sglang/minimax-m2.5 -- /opt/sglang/" in command
    assert "--config /etc/sglang/minimax-m2.5/engine.yaml" in command
    assert values(text, "RestartPreventExitStatus") == ["70 78"]
    assert values(text, "CacheDirectory") == ["sglang sglang/0.5.23-h200-580"]
    assert values(text, "RuntimeDirectory") == ["sglang/minimax-m2.5"]
    assert values(text, "Wants") == [
        "network-online.target sglang-precompile.service metal-page-cache.service"
    ]
    assert not re.search(r"\n\n\n|[ \t]\n", text)


def test_parts_the_plan_leaves_out_leave_no_trace(tmp_path: Path) -> None:
    text = unit(tmp_path, planned(precompile=False, warm_weights=False, api_keys=False))
    assert values(text, "Wants") == ["network-online.target"]
    assert not {"--secrets", "--config", "LoadCredential"} & set(re.split(r"[\s=]+", text))


def test_certificates_are_handed_over_by_systemd(tmp_path: Path) -> None:
    text = unit(tmp_path, planned(tls_certificate="/etc/tls/chain.pem", tls_key="/etc/tls/private.pem"))
    assert values(text, "LoadCredential") == ["tls.crt:/etc/tls/chain.pem", "tls.key:/etc/tls/private.pem"]
    assert "--ready-url https://127.0.0.1:8000/health" in text


def test_two_replicas_share_nothing_but_kernels(tmp_path: Path) -> None:
    plan = planned(layout="2xtp4")
    first, second = unit(tmp_path, plan, 0), unit(tmp_path, plan, 1)
    assert "CUDA_VISIBLE_DEVICES=0,1,2,3" in values(first, "Environment")
    assert "CUDA_VISIBLE_DEVICES=4,5,6,7" in values(second, "Environment")
    assert values(first, "CacheDirectory") == values(second, "CacheDirectory")
    assert values(first, "RuntimeDirectory") != values(second, "RuntimeDirectory")


def test_each_directive_of_the_sandbox_can_be_set_left_out_or_repeated(tmp_path: Path) -> None:
    wishes = {
        "RestrictNamespaces": "no",
        "LockPersonality": None,
        "SystemCallFilter": ["@system-service", "~@resources"],
        "ProtectProc": "invisible",
    }
    text = unit(tmp_path, planned(), sglang_service_hardening=wishes)
    assert values(text, "RestrictNamespaces") == ["no"]
    assert values(text, "LockPersonality") == []
    assert values(text, "SystemCallFilter") == ["@system-service", "~@resources"]
    assert values(text, "ProtectProc") == ["invisible"]
    assert values(text, "ProtectSystem") == ["strict"]


def test_the_compiler_runs_once_and_before_the_endpoint(tmp_path: Path) -> None:
    plan = planned()
    name = "sglang-precompile.service"
    text = render(tmp_path / name, f"{name}.j2", plan, __sglang_service_sandbox=sandbox())
    assert values(text, "ConditionPathExists") == ["!" + plan["precompile"]["marker"]]
    copied = (
        f"+/usr/local/bin/metal kernels copy {plan['precompile']['cache']} {plan['kernel_cache']['path']}"
    )
    marker = plan["precompile"]["marker"].rpartition("/")[2]
    assert values(text, "ExecStartPost") == [
        f"/usr/bin/touch {plan['precompile']['cache']}/{marker}",
        f"{copied} \\",
    ]
    assert values(text, "Before") == [UNIT]
    assert "--host 127.0.0.1" in text


def test_a_release_of_an_earlier_version_is_compiled_by_the_same_user(tmp_path: Path) -> None:
    """A rollback applies a recorded plan, which has neither the compiler's user nor its cache."""
    plan, name = planned(), "sglang-precompile.service"
    new = render(tmp_path / name, f"{name}.j2", plan, __sglang_service_sandbox=sandbox())
    old = {key: value for key, value in plan["precompile"].items() if key not in {"user", "group", "cache"}}
    old["environment"] = plan["services"][0]["environment"]
    plan = plan | {"precompile": old}
    assert render(tmp_path / name, f"{name}.j2", plan, __sglang_service_sandbox=sandbox()) == new


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_sandbox_scores_as_the_issue_wants(usual: tuple[Path, str]) -> None:
    folder, _ = usual
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", f"./{UNIT}"],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
    )
    found = re.search(r"Overall exposure level for .*: ([\d.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert float(found.group(1)) <= EXPOSURE


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_has_nothing_against_any_unit(tmp_path: Path) -> None:
    plan = planned(allowed_cidrs=["10.0.0.0/8"])
    unit(tmp_path, plan)
    for name in (
        "sglang-precompile.service",
        "metal-page-cache.service",
        "minimax-metal-firewall.service",
        "sglang.target",
    ):
        render(tmp_path / name, f"{name}.j2", plan, __sglang_service_sandbox=sandbox())
    units = sorted(path for path in tmp_path.iterdir() if path.suffix in {".service", ".target"})
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", "--man=no", *map(str, units)],
        check=False,
        capture_output=True,
        text=True,
    )
    # What is not installed on the machine that runs the test is no fault of a unit's.
    said = [line for line in done.stderr.splitlines() if str(tmp_path) in line or line.startswith("sglang")]
    assert [line for line in said if "is not executable" not in line] == []

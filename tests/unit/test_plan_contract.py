"""The structure of the plan that roles read, and the guides' commands in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.controller.adapter import plan_from_variables, refusal_lines

PCI = {"H20": "0x2329", "H200": "0x2335", "H100": "0x2330"}
DEBIAN_12 = 'ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n'
DEBIAN_13 = 'ID=debian\nVERSION_ID="13"\nVERSION_CODENAME=trixie\n'
GIB = 2**30


def raw(gpu: str, count: int, release: str = DEBIAN_12, **more: Any) -> dict[str, Any]:
    return {
        "reachable": True,
        "hostname": "gpu01",
        "os_release": release,
        "machine": "x86_64",
        "kernel": "6.1.0",
        "python": "3.11.2",
        "pci_devices": [
            {"address": f"0000:{n:02x}:00.0", "vendor": "0x10de", "device": PCI[gpu], "class": "0x030200"}
            for n in range(count)
        ],
        "nvidia_smi": {"present": False},
        "driver_version_file": None,
        "disks": {"/srv/models": {"free_bytes": 2 * 10**12, "total_bytes": 4 * 10**12}},
        "packages": {},
        "listening_ports": [22],
        "user_is_root": True,
    } | more


KEYS = {
    "schema": None,
    "host": None,
    "fits": None,
    "refusals": None,
    "warnings": None,
    "differences": None,
    "platform": {"slug", "distribution", "version", "codename", "python", "architecture"},
    "model": {
        "name", "format", "served_name", "repositories", "revision", "path", "bytes", "files", "modalities",
        "max_sequence", "trust_remote_code",
    },
    "weights": {"bytes", "instance", "sources"},
    "gpus": {"model", "name", "count", "memory_bytes", "nvswitch", "indices"},
    "parallelism": {"tp", "ep", "replicas"},
    "host_tools": {"python", "uv_environment", "pip_environment"},
    "engine": {
        "release", "python", "managed_python", "lock_file", "lock_sha256", "digest", "environment",
        "extra_packages", "uv_environment",
    },
    "driver": {
        "branch", "minimum", "open_modules", "fabric_manager", "repository_slug", "pinning_package",
        "packages", "services", "held",
    },
    "cuda": {"version", "home", "packages", "build_packages"},
    "service": {
        "instance", "unit", "port", "host", "argv", "environment", "start_timeout_seconds",
        "stop_timeout_seconds", "nofile",
    },
    "capacity": {"kv_tokens", "max_sequence", "weights_bytes", "total_bytes"},
    "disk": {"needed_bytes", "path"},
    "checks": {"model", "image", "tool_calls", "reasoning_parser", "tool_parser", "arguments"},
}  # fmt: skip


def test_every_key_of_the_contract_is_there() -> None:
    plan = plan_from_variables("gpu01", {"metal_model": "MiniMax-M2.5"}, raw("H20", 4))
    for key, inner in KEYS.items():
        assert key in plan
        if inner:
            assert inner <= set(plan[key]), key
    assert plan["fits"]
    assert json.loads(json.dumps(plan)) == plan


def test_every_key_is_there_when_nothing_is_known() -> None:
    plan = plan_from_variables("gpu01", {}, None)
    assert set(KEYS) <= set(plan)
    assert not plan["fits"]
    assert {r["code"] for r in plan["refusals"]} == {"unreachable", "model-missing"}
    assert all(line.startswith("gpu01: ") and "\n" not in line for line in refusal_lines(plan))


GUIDE_4 = (
    "--tp-size 4 --tool-call-parser minimax-m2 --reasoning-parser minimax-append-think --host 0.0.0.0 "
    "--trust-remote-code --port 8000 --mem-fraction-static 0.85"
)
GUIDE_8 = (
    "--tp-size 8 --ep-size 8 --tool-call-parser minimax-m2 --trust-remote-code --host 0.0.0.0 "
    "--reasoning-parser minimax-append-think --port 8000 --mem-fraction-static 0.85"
)


@pytest.mark.parametrize(
    ("model", "gpu", "count", "words"),
    [
        ("MiniMax-M2.5", "H20", 4, GUIDE_4),
        ("MiniMax-M2.5", "H200", 8, GUIDE_8),
        ("MiniMax-M2.7", "H200", 8, GUIDE_8),
        (
            "MiniMax-M3",
            "H200",
            8,
            GUIDE_8.replace("minimax-m2", "minimax-m3")
            .replace("minimax-append-think", "minimax-m3")
            .replace("0.85", "0.75"),
        ),
    ],
)
def test_the_unit_holds_the_guides_command(model: str, gpu: str, count: int, words: str) -> None:
    extra = ["--device", "cpu"]
    variables = {"metal_model": model, "metal_engine_extra_args": extra}
    plan = plan_from_variables("gpu01", variables, raw(gpu, count))
    assert plan["refusals"] == []
    argv = plan["service"]["argv"]
    assert argv[:2] == [plan["engine"]["environment"] + "/bin/sglang", "serve"]
    assert argv[2:6] == [
        "--model-path",
        plan["model"]["path"],
        "--served-model-name",
        f"MiniMaxAI/{model}",
    ]
    config = ["--config", f"/etc/sglang/{model.lower()}/engine.yaml"]
    assert argv[6:] == [*words.split(), "--enable-metrics", *config, *extra]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 16])
def test_any_other_gpu_count_is_refused_with_the_count(count: int) -> None:
    plan = plan_from_variables("gpu01", {"metal_model": "MiniMax-M2.5"}, raw("H200", count))
    codes = {r["code"]: r for r in plan["refusals"]}
    if count == 0:
        assert "gpu-none" in codes
    else:
        assert str(count) in codes["gpu-count"]["found"]


def test_a_tiny_stand_in_from_an_overlay_plans_on_the_same_hosts(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yml"
    overlay.write_text(
        """
models:
  MiniMax-M2.5:
    formats:
      fp8: null
      bf16:
        revision: 0123456789abcdef0123456789abcdef01234567
        repositories: {huggingface: MiniMaxAI/MiniMax-M2.5, modelscope: MiniMax/MiniMax-M2.5}
        bytes: 4194304
        files: 9
        weight_memory_bytes: 4194304
        kv_bytes_per_token: 4096
        generations: {proven: ["9.0"]}
  MiniMax-M3:
    formats:
      bf16: {bytes: 5000000, files: 10, weight_memory_bytes: 5000000, kv_bytes_per_token: 2048}
"""
    )
    variables: dict[str, Any] = {"metal_model": "MiniMax-M2.5", "metal_catalog_overlay": str(overlay)}
    plan = plan_from_variables("gpu01", variables, raw("H20", 4))
    assert plan["refusals"] == []
    assert plan["model"]["format"] == "bf16"
    assert plan["model"]["bytes"] == plan["weights"]["bytes"] == 4194304
    assert plan["model"]["path"].endswith("/MiniMaxAI/MiniMax-M2.5/0123456789abcdef0123456789abcdef01234567")
    variables = {"metal_model": "MiniMax-M3", "metal_catalog_overlay": [str(overlay)]}
    plan = plan_from_variables("gpu02", variables, raw("H200", 8, DEBIAN_13))
    assert plan["refusals"] == []
    assert plan["capacity"]["kv_tokens"] > 0
    assert plan["engine"]["lock_file"] == "sglang-0.5.23-py3.13.txt"

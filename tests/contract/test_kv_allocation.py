"""The planned KV cache against an engine's allocation: tiny models on a CPU, as a device of a fixed size."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from lab.models.description import MODELS
from lab.models.training_run import trained
from minimax_metal.catalog import load_catalog
from minimax_metal.plan import Settings
from minimax_metal.plan.findings import Findings
from minimax_metal.plan.fit import find_fit
from minimax_metal.plan.host import Board, find_board
from minimax_metal.plan.what_if import what_if_facts
from tests.contract import device_memory
from tests.support.real_engine import running_engine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

DEVICE = 512 << 20
"""Bytes of each device."""
FRACTION = 0.6
FOR_PICTURES = 100 << 20
"""Bytes of each device that the engine reserves for images if a model accepts them: SGLANG_VLM_CACHE_SIZE_MB
of 0.5.23 (``mm_runtime_reservation_gb``). The plan does not count them: they are a thousandth of a GPU.
"""
NOT_IN_FILES = 1 << 20
"""Bytes of each device for tensors that are in no file: rotary tables, the router in float32. A page is one
token on a CPU.
"""


def planned(name: str, dtype: str, tp: int) -> tuple[int, int]:
    """The planned tokens of KV cache, and bytes of one on all devices, from the lab overlay's values."""
    weights = sum(path.stat().st_size for path in trained(MODELS[name]).glob("*.safetensors"))
    own = MODELS[name].catalogue
    form = {**own["formats"]["bf16"], "weight_memory_bytes": weights, "bytes": weights, "files": 9}
    catalog = load_catalog([{"models": {name: {**own, "formats": {**own["formats"], "bf16": form}}}}])
    variables = {
        "metal_model": name, "metal_kv_cache_dtype": dtype, "metal_tp_size": tp, "metal_ep_size": 1,
        "metal_mem_fraction_static": FRACTION,
    }  # fmt: skip
    settings = Settings.from_variables("gpu01", variables)
    found = Findings(accept=frozenset())
    facts = what_if_facts("RTX PRO 6000", 4, catalog.platforms["debian12"], catalog)
    board = find_board(settings, facts, catalog, found)
    assert isinstance(board, Board)
    # Not Hopper and not SM10x, where the engine takes narrow index keys and a packed pool; a CPU has neither.
    assert board.capability == "12.0"
    fit = find_fit(settings, catalog.models[name]["bf16"], replace(board, memory_bytes=DEVICE), found)
    assert fit is not None
    assert fit.capacity.kv_tokens is not None
    assert fit.capacity.kv_bytes_per_token is not None
    return fit.capacity.kv_tokens, fit.capacity.kv_bytes_per_token


@pytest.mark.parametrize(
    ("name", "dtype", "tp"),
    [
        ("MiniMax-M2.5", "auto", 1),
        ("MiniMax-M2.5", "auto", 2),
        ("MiniMax-M3", "auto", 1),
        ("MiniMax-M3", "fp8_e4m3", 1),
        ("MiniMax-M3.1-Flash", "auto", 2),
    ],
)
def test_the_engine_allocates_what_the_plan_says(tmp_path: Path, name: str, dtype: str, tp: int) -> None:
    tokens, per_token = planned(name, dtype, tp)
    environ = {**device_memory.write(tmp_path / "plugin"), device_memory.NAME: str(DEVICE >> 20)}
    more = ["--mem-fraction-static", str(FRACTION), "--kv-cache-dtype", dtype]
    # A CPU has no attention on fp8: what is looked at here is allocated before the first request.
    if dtype != "auto":
        more.append("--skip-server-warmup")
        environ["SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION"] = "false"
    with running_engine(tmp_path, name, tp, more=more, environ=environ) as engine:
        information = engine.get("/server_info")
        logged = re.findall(r"max_total_num_tokens=(\d+)", engine.log.read_text())
    usage = information["internal_states"][0]["memory_usage"]
    allocated = usage["token_capacity"]
    assert {int(one) for one in logged} == {allocated}
    each = per_token / tp
    pictures = FOR_PICTURES if MODELS[name].images else 0
    expected = tokens - pictures / each
    print(f"{name} {dtype} tp {tp}: planned {tokens}, {expected:.0f} without pictures, allocated {allocated}")
    assert abs(allocated - expected) * each <= NOT_IN_FILES
    # And a token of it takes what the plan says; the figure is in thousandths of a GiB.
    assert usage["kvcache"] * 2**30 == pytest.approx(allocated * each, abs=2**30 / 1000)

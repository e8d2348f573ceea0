"""The planned launch lines of MiniMax-M3.1 against the engine's own rules for it."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lab.engine.environment import environment
from minimax_metal.catalog import packaged_catalog
from minimax_metal.plan import Plan
from tests.unit.plan_helpers import decide

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

CATALOG = packaged_catalog()
(CHECKPOINT,) = CATALOG.models["MiniMax-M3.1-Flash"].values()
HOPPER, BLACKWELL = ("H20", "H100", "H200"), ("B200", "B300")
LIFTED = ["engine-kernels"]
"""On Blackwell the plan refuses what must be built by hand; the engine's rules come after that."""
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"{gpu} plain": (gpu, {}) for gpu in (*HOPPER, *BLACKWELL)},
    **{f"{gpu} fp8 KV": (gpu, {"kv_cache_dtype": "fp8_e4m3"}) for gpu in ("H200", "B200")},
    **{f"{gpu} bfloat16 KV": (gpu, {"kv_cache_dtype": "bfloat16"}) for gpu in ("H200", "B200")},
    **{f"{gpu} draft": (gpu, {"speculative_draft": True}) for gpu in (*HOPPER, *BLACKWELL)},
    "H200 draft by its flag": ("H200", {"engine_extra_args": ["--speculative-algorithm", "DSPARK"]}),
    "B200 draft by its flag": ("B200", {"engine_extra_args": ["--speculative-algorithm", "DSPARK"]}),
    "B200 draft over two stages": (
        "B200",
        {"speculative_draft": True, "tp_size": 4, "engine_extra_args": ["--pp-size", "2"]},
    ),
    "B200 another algorithm": ("B200", {"engine_extra_args": ["--speculative-algorithm", "EAGLE3"]}),
    "H200 another algorithm": ("H200", {"engine_extra_args": ["--speculative-algorithm=EAGLE3"]}),
    "H200 DFLASH": ("H200", {"engine_extra_args": ["--speculative-algorithm", "DFLASH"]}),
    "B200 bfloat16 KV by its flag": ("B200", {"engine_extra_args": ["--kv-cache-dtype", "bfloat16"]}),
    "H200 its own pages": ("H200", {"engine_extra_args": ["--page-size", "128"]}),
    "H200 smaller pages": ("H200", {"engine_extra_args": ["--page-size", "64"]}),
}


@cache
def plans() -> dict[str, Plan]:
    """The plan of each case; if it refuses, with the refusals lifted, so that there is a line to judge."""
    made = {}
    for name, (gpu, settings) in CASES.items():
        made[name] = decide(gpu, 8, model="M3.1", accept_refusals=LIFTED, **settings)
    return made


@cache
def answers() -> dict[str, dict[str, Any]]:
    """The engine's answers to each case, queried once."""
    questions = []
    for name, (gpu, settings) in CASES.items():
        codes = {one.code for one in plans()[name].refusals}
        lifted = decide(gpu, 8, model="M3.1", accept_refusals=[*LIFTED, *codes], **settings)
        assert lifted.services, name
        service = lifted.services[0]
        words = service.argv[next(i for i, word in enumerate(service.argv) if word.startswith("--")) :]
        # Keys are in a file of the host's.
        at = words.index("--config")
        questions.append(
            {
                "argv": [*words[:at], *words[at + 2 :]],
                "capability": lifted.gpus.compute_capability if lifted.gpus else "",
                "environment": service.environment,
            }
        )
    asked = subprocess.run(
        [str(environment()), str(Path(__file__).with_name("overrides_probe.py"))],
        input=json.dumps(questions), capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr[-2000:]
    return dict(zip(CASES, json.loads(asked.stdout), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_the_plan_refuses_what_the_engine_refuses(name: str) -> None:
    codes = [one.code for one in plans()[name].refusals]
    assert bool(codes) == ("error" in answers()[name]), (codes, answers()[name])
    assert set(codes) <= {"speculative", "fault-m31-kv-dtype-blackwell", "fault-m31-page-size"}


@pytest.mark.parametrize("gpu", HOPPER)
def test_hopper_gets_the_kernels_that_the_catalogue_names(gpu: str) -> None:
    chosen = answers()[f"{gpu} plain"]["chosen"]
    assert (chosen["moe_runner_backend"], chosen["attention_backend"]) == ("marlin", "fa3")
    assert chosen["page_size"] == CHECKPOINT.kv_page_size == 128
    assert "kv_cache_dtype" not in chosen  # the model's own, as the plan counts it


@pytest.mark.parametrize("gpu", BLACKWELL)
def test_blackwell_gets_a_packed_cache_and_the_draft(gpu: str) -> None:
    chosen = answers()[f"{gpu} plain"]["chosen"]
    assert chosen["kv_cache_dtype"] == "fp8_e4m3"
    assert chosen["page_size"] == CHECKPOINT.kv_page_size
    assert CHECKPOINT.draft is not None
    assert answers()[f"{gpu} draft"]["algorithm"] == CHECKPOINT.draft.arguments[-1] == "DSPARK"
    assert answers()[f"{gpu} plain"]["algorithm"] is None

"""The programs of `metal accept` with the engine's own Python: unmodified libraries, and no GPU.

Their results on GPUs need a real host (docs/accept.md). Here the ranks communicate over gloo, and every other
program gets as far as looking for a GPU.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from lab.engine import environment
from minimax_metal.host.accept.sandbox import PROGRAMS, last_object


def run(program: str, **parameters: Any) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(
        [
            str(environment()),
            str(PROGRAMS / f"{program}.py"),
            json.dumps(parameters),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    return done.returncode, last_object(done.stdout), done.stderr


def test_ranks_exchange_and_get_right_sums() -> None:
    status, answer, errors = run("all_reduce", count=3, device="cpu", sizes=[1 << 16, 1 << 18])
    assert (status, answer.get("ok")) == (0, True), errors
    assert set(answer["bandwidths"]) == {"65536", "262144"}
    assert answer["bandwidth"] == max(answer["bandwidths"].values()) > 0


def test_one_card_has_nobody_to_exchange_with() -> None:
    status, answer, _ = run("all_reduce", count=1, device="cpu")
    assert (status, answer["ok"]) == (1, False)


@pytest.mark.parametrize(
    "program", ["cuda_cards", "compile_triton", "compile_flashinfer", "compile_deep_gemm"]
)
def test_without_a_driver_cuda_says_so(program: str) -> None:
    status, answer, _ = run(program, count=4)
    assert (status, answer["ok"]) == (1, False)
    assert "Found no NVIDIA driver" in answer["error"]


def test_what_the_programs_call_is_there() -> None:
    """Names and parameters of the libraries in the engine's lock; a release that renames one fails here."""
    code = (
        "import inspect, json, deep_gemm\n"
        "from deep_gemm.utils.math import per_block_cast_to_fp8, per_token_cast_to_fp8\n"
        "import flashinfer.activation, triton, torch.distributed\n"
        "print(json.dumps({'token': list(inspect.signature(per_token_cast_to_fp8).parameters),\n"
        "  'block': list(inspect.signature(per_block_cast_to_fp8).parameters),\n"
        "  'gemm': callable(deep_gemm.fp8_gemm_nt),\n"
        "  'silu': list(inspect.signature(flashinfer.activation.silu_and_mul).parameters),\n"
        "  'group': list(inspect.signature(torch.distributed.init_process_group).parameters)}))\n"
    )
    done = subprocess.run(
        [str(environment()), "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    names = last_object(done.stdout)
    assert names, done.stderr
    assert "use_ue8m0" in names["token"]
    assert "use_ue8m0" in names["block"]
    assert names["gemm"] is True
    assert names["silu"][0] == "input"
    assert "device_id" in names["group"]

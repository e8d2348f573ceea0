"""Why an engine ended, from words that real engines and kernels wrote."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path

import pytest

from minimax_metal.service import gpus, incidents
from minimax_metal.service.diagnosis import EXIT_GPU, EXIT_NEVER, diagnose, find_xids
from minimax_metal.service.health import Judge, parse_figures
from minimax_metal.service.output import Output, Secrets

WORDS = {
    "launch_server.py: error: unrecognized arguments: --frobnicate": ("arguments", EXIT_NEVER, EXIT_NEVER),
    "ValueError: Model architectures ['MiniMaxM9ForCausalLM'] are not supported for now. Supported "
    "architectures: dict_keys([...])": ("architecture", EXIT_NEVER, EXIT_NEVER),
    "ValueError: The output_size of gate's and up's weight = 192 is not divisible by weight quantization "
    "block_n = 128.": ("parallelism", EXIT_NEVER, EXIT_NEVER),
    "RuntimeError: Artifact not found locally: 64d3/fmha/x.cubin (looked at /opt/x). FLASHINFER_NO_DOWNLOAD "
    "is set": ("kernel-missing", EXIT_NEVER, None),
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
    "79.11 GiB": ("memory", EXIT_NEVER, None),
    "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.": (
        "memory", EXIT_NEVER, None,
    ),
    "[Errno 98] error while attempting to bind on address ('0.0.0.0', 8000): address already in use": (
        "port", EXIT_NEVER, EXIT_NEVER,
    ),
    "OSError: [Errno 28] No space left on device: '/var/cache/sglang/triton'": ("disk-full", None, None),
    "RuntimeError: CUDA error: uncorrectable ECC error encountered": ("gpu-ecc", EXIT_GPU, EXIT_GPU),
    "RuntimeError: No CUDA GPUs are available": ("driver", None, None),
    "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:2356, remote process exited": (
        "nccl", None, None,
    ),
    "[2026-11-22 01:01:07 TP0] KeyError: 'model.layers.61.mlp'": ("engine", None, None),
}  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), WORDS.items(), ids=[code for code, _, _ in WORDS.values()])
def test_the_engines_words_are_read(line: str, expected: tuple[str, int | None, int | None]) -> None:
    code, at_start, later = expected
    lines = ["[2026-11-22 01:01:07 TP0] Load weight begin. avail mem=13.73 GB", line, "Killed"]
    for ready, status in ((False, at_start), (True, later)):
        reason = diagnose(lines, ready=ready)
        assert reason is not None
        assert (reason.code, reason.status) == (code, status)
        assert "\n" not in reason.text


def test_words_that_say_nothing_give_no_reason() -> None:
    # Seen on a healthy engine without a GPU: no reason for its end.
    seen = "multimem all-gather disabled (Found no NVIDIA driver on your system.)"
    assert diagnose([seen, "The server is fired up and ready to roll!"], ready=True) is None


KERNEL = [
    "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.126.20  Release Build",
    "NVRM: Xid (PCI:0000:18:00): 31, pid=2331, name=python, Ch 00000008, MMU Fault",
    "NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
]


def test_a_fault_of_a_gpu_comes_before_the_engines_words() -> None:
    xids = find_xids(KERNEL)
    assert [(xid.number, xid.device, xid.rule.operator) for xid in xids] == [
        (31, "0000:18:00", False),
        (79, "0000:3b:00", True),
    ]
    reason = diagnose(["RuntimeError: CUDA error: unspecified launch failure"], xids, ready=True)
    assert reason is not None
    assert reason.status == EXIT_GPU
    assert "Xid 79 on 0000:3b:00 (GPU has fallen off the bus): drain the host" in reason.text
    mild = diagnose(["RuntimeError: CUDA error: an illegal memory access"], xids[:1], ready=True)
    assert mild is not None
    assert mild.status is None


def read(*chunks: bytes, secrets: Secrets | None = None) -> tuple[Output, str]:
    sink = io.StringIO()
    output = Output(io.BufferedReader(io.BytesIO(b"".join(chunks))), secrets or Secrets(()), sink)  # type: ignore[arg-type]
    output.run()
    return output, sink.getvalue()


def test_the_phase_goes_forward_only() -> None:
    lines = [
        (b"[TP1] Init parallel begin.", "starting the ranks"),
        (b"[TP0] Load weight begin. avail mem=94 GB", "loading weights"),
        (b"Multi-thread loading shards:  41% Completed | 51/126 [00:09<00:13]\r", "loading weights, 41 %"),
        (b"[TP0] Load weight end. elapsed=0.07 s", "weights are loaded"),
        (b"[TP1] Load weight begin. avail mem=94 GB", "weights are loaded"),
        (
            b"[TP0] Capture decode CUDA graph begin. This can take up to several minutes",
            "capturing CUDA graphs",
        ),
        (b"The server is fired up and ready to roll!", "warmed up"),
    ]
    said = b""
    for line, phase in lines:
        said += line + b"\n"
        assert read(said)[0].phase == phase


def test_lines_of_work_are_counted_and_passed_on() -> None:
    output, text = read(b"a\n\nDecode batch, #running-req: 1\nPrefill batch, #new-seq: 1\nno end")
    assert output.worked == 2
    assert text == "a\nDecode batch, #running-req: 1\nPrefill batch, #new-seq: 1\nno end\n"
    assert output.last(1) == ["no end"]


def test_a_key_is_taken_out_of_every_line(tmp_path: Path) -> None:
    (tmp_path / "api_key").write_text("short")
    (tmp_path / "admin_api_key").write_text("short-and-longer\n")
    output, text = read(b"key=short-and-longer, key=short\n", secrets=Secrets.of_directory(tmp_path))
    assert text == "key=***, key=***\n"
    assert output.last(1) == ["key=***, key=***"]


def test_reports_are_kept_and_the_oldest_dropped(tmp_path: Path) -> None:
    incident = incidents.Incident(
        "m", "crash", "exited with status 1", None, None, "warmed up", 3.0, 1, [], ["last words"]
    )
    now = time.time()
    for number in range(incidents.KEPT + 3):
        path = incidents.write_report(tmp_path, incident, now + number)
        os.utime(path, (now - 60 * number, now - 60 * number))
    kept = incidents.reports(tmp_path, "m")
    assert len(kept) == incidents.KEPT
    content = json.loads(kept[-1].read_text())
    assert (content["schema"], content["output"], content["kind"]) == (1, ["last words"], "crash")
    assert (
        incidents.recent(tmp_path, "m", 10 * 60 + 30, now) == 8
    )  # the three newest by name are the oldest here


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return program


def answer(program: Path, gpu_rows: str, apps: str = "", status: int = 0) -> None:
    asks = f"case $1 in\n--query-gpu*) printf '{gpu_rows}';;\n*) printf '{apps}';;\nesac"
    program.write_text(f"#!/bin/sh\n{asks}\nexit {status}\n")
    program.chmod(0o755)


def test_who_holds_gpu_memory_before_a_start(smi: Path) -> None:
    answer(smi, "0, GPU-a, 411\\n1, GPU-b, 71234\\n2, GPU-c, 70000\\n", "GPU-b, 1, /usr/bin/vllm, 71000\\n")
    memory = gpus.read_memory([0, 1])
    assert memory is not None
    assert memory.taken == ["GPU 1: 71000 MiB held by /usr/bin/vllm (pid 1)"]
    answer(smi, "0, GPU-a, 70000\\n", "GPU-a, 4194304, python, 70000\\n")
    ghost = gpus.read_memory([0])
    assert ghost is not None
    assert "held by a process that is gone" in ghost.taken[0]
    answer(smi, "0, GPU-a, 70000\\n")
    unlisted = gpus.read_memory([0])
    assert unlisted is not None
    assert unlisted.taken == ["GPU 0: 70000 MiB in use and no process listed"]


def test_an_nvidia_smi_that_fails_is_said(smi: Path) -> None:
    answer(smi, "Unable to determine the device handle for GPU0: Unknown Error", status=255)
    with pytest.raises(gpus.GpuError, match="ended with 255: Unable to determine the device handle"):
        gpus.read_memory([0])
    smi.unlink()
    assert gpus.read_memory([0]) is None


def figures(running: float, tokens: float) -> str:
    return (
        "# HELP sglang:num_running_reqs The number of running requests.\n"
        f'sglang:num_running_reqs{{engine_type="unified",tp_rank="0"}} {running}\n'
        f"sglang:num_queue_reqs 0.0\nsglang:generation_tokens_total {tokens}\n"
    )


def test_a_hang_is_repeated_failure_without_progress() -> None:
    judge, sick = Judge(patience=60), lambda: False
    busy = parse_figures(figures(2, 10))
    assert busy is not None
    assert (busy.busy, busy.running) == (True, 2)
    assert [judge.look(now, True, busy, 0, sick) for now in (0, 30, 59)] == [False] * 3
    # A long prefill: no tokens yet, but the engine says that it computes.
    assert not judge.look(70, True, busy, 1, sick)
    assert [judge.look(now, True, busy, 1, sick) for now in (100, 129, 131, 140)] == [False] * 4
    assert "2 of 3" in judge.note
    assert judge.look(150, True, busy, 1, sick)


def test_an_answer_or_a_token_forgives_everything() -> None:
    judge = Judge(patience=10)
    assert not judge.look(0, True, None, 0, lambda: True)
    for now in (20, 30):
        assert not judge.look(now, False, None, 0, lambda: False)
    assert judge.strikes == 2
    assert not judge.look(40, True, parse_figures(figures(1, 5)), 0, lambda: False)
    assert judge.strikes == 0
    idle = parse_figures(figures(0, 5))
    assert [judge.look(50 + step, True, idle, 0, lambda: True) for step in range(5)] == [False] * 5


def test_a_scrape_without_the_engines_figures_is_none() -> None:
    assert parse_figures("python_gc_objects_collected_total 3.0\n") is None

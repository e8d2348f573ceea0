"""Why an engine ended, from messages of real engines and kernels."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path

import pytest

from minimax_metal.host.engine import explain as explain_module
from minimax_metal.host.engine import gpus, health, incidents
from minimax_metal.host.engine.diagnosis import EXIT_GPU, EXIT_NEVER, diagnose, find_events, find_xids
from minimax_metal.host.engine.health import Judge, parse_figures
from minimax_metal.host.engine.output import Journal, Output, Secrets

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
    said: list[str] = []
    output = Output(
        io.BufferedReader(io.BytesIO(b"".join(chunks))),
        secrets or Secrets(()),
        said.append,
    )
    output.run()
    return output, "".join(f"{line}\n" for line in said)


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


INCIDENT = incidents.Incident(
    "m", "crash", "exited with status 1", None, None, "warmed up", 3.0, 1, [], ["last words"]
)


def test_reports_are_kept_and_the_oldest_dropped(tmp_path: Path) -> None:
    for number in range(incidents.KEPT + 3):
        incidents.write_report(tmp_path, INCIDENT, 1e9 + number, at=1000.0 + 60 * number)
    kept = incidents.reports(tmp_path, "m")
    assert len(kept) == incidents.KEPT
    content = json.loads(kept[-1].read_text())
    assert (content["schema"], content["output"], content["kind"]) == (2, ["last words"], "crash")
    assert kept[-1].name.startswith("000023-2001")
    assert incidents.recent(tmp_path, "m", 7 * 60 + 30, at=1000.0 + 60 * 22) == 8


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path) -> None:
    """The newest report was deleted after a clock jump back, and all of the last hour after one forward."""
    for number in range(incidents.KEPT):
        incidents.write_report(tmp_path, INCIDENT, 2e9 + number, at=1000.0 + number)
    newest = incidents.write_report(tmp_path, INCIDENT, 1e9, at=99_000.0)
    assert incidents.reports(tmp_path, "m")[-1] == newest
    for path in incidents.reports(tmp_path, "m"):
        os.utime(path, (1e9, 1e9))
    assert incidents.recent(tmp_path, "m", 3600.0, at=99_001.0) == 1
    # What an older release kept, and what is not a report at all, is not counted.
    (tmp_path / "m/20261122T060143.676034Z.json").write_text('{"schema": 1}')
    (tmp_path / "m/000099-x.json").write_text("[")
    assert incidents.recent(tmp_path, "m", 3600.0, at=99_001.0) == 1


def test_a_report_follows_no_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "incidents").mkdir()
    (tmp_path / "incidents/m").symlink_to(elsewhere)
    with pytest.raises(OSError, match=r"."):
        incidents.write_report(tmp_path / "incidents", INCIDENT)
    assert list(elsewhere.iterdir()) == []
    assert incidents.reports(tmp_path / "incidents", "m") == []


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
    assert memory.taken == ["GPU 1: 71000 MiB used by /usr/bin/vllm (pid 1)"]
    answer(smi, "0, GPU-a, 70000\\n", "GPU-a, 4194304, python, 70000\\n")
    ghost = gpus.read_memory([0])
    assert ghost is not None
    assert "used by a process that no longer exists" in ghost.taken[0]
    answer(smi, "0, GPU-a, 70000\\n")
    unlisted = gpus.read_memory([0])
    assert unlisted is not None
    assert unlisted.taken == ["GPU 0: 70000 MiB in use and no process listed"]


def test_one_threshold_for_listed_and_unlisted_memory(smi: Path) -> None:
    """30 MiB of NVIDIA's MPS server blocked the start (field case g1); "[N/A]" was read as 0."""
    answer(smi, "0, GPU-a, 441, Disabled\\n", "GPU-a, 2214, nvidia-cuda-mps-server, 30\\n")
    assert gpus.read_memory([0]).taken == []  # type: ignore[union-attr]
    answer(smi, "0, GPU-a, 70000, Disabled\\n", "GPU-a, 1, nvidia-cuda-mps-server, [N/A]\\n")
    told = gpus.read_memory([0]).taken  # type: ignore[union-attr]
    assert told == ["GPU 0: an unknown amount of memory used by NVIDIA's MPS server (pid 1)"]
    answer(smi, "0, GPU-a, [N/A], [N/A]\\n", "GPU-a, 1, python3, [N/A]\\n")
    assert gpus.read_memory([0]).taken != []  # type: ignore[union-attr]
    answer(smi, "0, GPU-a, [N/A], [N/A]\\n", "GPU-a, 1, nv-hostengine, [N/A]\\n")
    assert gpus.read_memory([0]).taken == []  # type: ignore[union-attr]


@pytest.mark.parametrize("cell", ["[GPU is lost]", "[Unknown Error]", "[GPU requires reset]", "ERR!"])
def test_a_cell_that_is_an_error_names_a_sick_gpu(smi: Path, cell: str) -> None:
    """gpud PR#1133, nvidia_gpu_exporter#393; "[GPU is lost]" for an index ended the supervisor."""
    answer(smi, f"0, GPU-a, 411, Disabled\\n3, GPU-d, {cell}, Disabled\\n")
    with pytest.raises(gpus.GpuError, match=r"^GPU 3: nvidia-smi reports") as raised:
        gpus.read_memory([0, 3])
    assert raised.value.operator
    assert gpus.read_memory([0]) is not None, "another replica's GPU is no matter of this one"
    answer(smi, f"0, GPU-a, 411, Disabled\\n{cell}, {cell}, {cell}, {cell}\\n")
    with pytest.raises(gpus.GpuError, match=r"^GPU 3: not in nvidia-smi's list"):
        gpus.read_memory([0, 3])


@pytest.mark.parametrize("status", [0, 14])
def test_a_corrupted_inforom_is_named_where_it_is_this_replica_s(smi: Path, status: int) -> None:
    """nvidia-smi(1), "RETURN VALUE" 14; before, the table's rows were the reason, cut at 200 characters."""
    smi.write_text(
        "#!/bin/sh\ncase $1 in\n*bus_id*) printf '0, 00000000:18:00.0\\n3, 00000000:BA:00.0\\n';;\n"
        "--query-gpu*) printf '0, GPU-a, 4, Disabled\\n3, GPU-d, 4, Disabled\\n"
        "WARNING: infoROM is corrupted at gpu 0000:BA:00.0\\n';;\nesac\n"
        f"exit {status}\n"
    )
    smi.chmod(0o755)
    with pytest.raises(
        gpus.GpuError, match=r"warns: the GPU at 0000:BA:00.0: infoROM is corrupted"
    ) as raised:
        gpus.read_memory([0, 3])
    assert raised.value.operator
    assert "nvidia-smi --gpu-reset" in raised.value.remedy
    assert gpus.read_memory([0]) is not None, "another replica's GPU is no matter of this one"


def test_mig_is_seen_and_an_older_nvidia_smi_is_asked_without_it(smi: Path) -> None:
    answer(smi, "0, GPU-a, 411, Disabled\\n2, GPU-c, 411, Enabled\\n")
    memory = gpus.read_memory([0, 2])
    assert memory is not None
    assert memory.mig == (2,)
    smi.write_text(
        '#!/bin/sh\ncase "$1" in *mig*) echo \'Field "mig.mode.current" is not a valid field to query.\'\n'
        "exit 2;; "
        "--query-gpu*) echo '0, GPU-a, 411';; esac\n"
    )
    assert gpus.read_memory([0]).used_mib == {0: 411}  # type: ignore[union-attr]


def test_an_nvidia_smi_that_fails_is_said(smi: Path) -> None:
    answer(smi, "Unable to determine the device handle for GPU5: 0000:BA:00.0: Unknown Error", status=255)
    with pytest.raises(
        gpus.GpuError, match="ended with 255: Unable to determine the device handle"
    ) as raised:
        gpus.read_memory([0])
    assert "GPU5 (0000:BA:00.0) is lost" in str(raised.value)
    smi.unlink()
    assert gpus.read_memory([0]) is None


def test_an_nvidia_smi_that_hangs_is_left_behind_and_a_stop_is_heard(
    smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi.write_text("#!/bin/sh\nexec sleep 300\n")
    smi.chmod(0o755)
    monkeypatch.setattr(gpus, "ANSWER_SECONDS", 0.3)
    with pytest.raises(gpus.GpuError, match="did not answer within"):
        gpus.read_memory([0])
    monkeypatch.setattr(gpus, "ANSWER_SECONDS", 250.0)
    begun = time.monotonic()
    with pytest.raises(gpus.GpuError):
        gpus.read_memory([0], lambda: True)
    assert time.monotonic() - begun < 60


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


@pytest.mark.parametrize(
    "text",
    [
        "sglang:num_running_reqs NaN\nsglang:num_queue_reqs 1e999\n",
        "sglang:num_running_reqs -1e308\nsglang:num_queue_reqs +Inf\n",
        "sglang:num_running_reqs e\n",
        'sglang:num_running_reqs{a="}"} \nsglang:num_running_reqs{\n',
        "<html><body>502 Bad Gateway</body></html>",
        "sglang:" * 100_000,
        "sglang:x{\n" * 50_000,
        "",
    ],
)
def test_odd_metrics_are_no_figures_and_raise_nothing(text: str) -> None:
    """NaN and 1e999 ended the watch in silence."""
    found = parse_figures(text)
    assert found is None or (found.running >= 0 and found.queued >= 0)


def test_a_watch_that_fails_says_so_and_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def broken(_opener: object, url: str, _timeout: float) -> tuple[str, str]:
        asked.append(url)
        raise RuntimeError("odd")

    monkeypatch.setattr(health, "ask", broken)
    watch = health.Watch("http://127.0.0.1:9/health", 0.01, 60.0, lambda: 0)
    watch.start()
    deadline = time.monotonic() + 60
    while len(asked) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    watch.halted.set()
    assert len(asked) >= 3
    assert "retrying" in watch.note


def test_a_stuck_journal_holds_nobody_up() -> None:
    read_end, write_end = os.pipe()
    journal = Journal()
    journal.start()
    for number in range(40):
        journal.say(f"{number} " + "x" * 1_000_000, write_end)
    journal.finish(0.1)
    got = b""
    while b"lines were dropped" not in got or not got.endswith(b"end\n"):
        got += os.read(read_end, 1 << 20)
        if len(got) > 15_000_000:
            journal.say("end", write_end)
    assert got.startswith(b"0 xxx")
    os.close(read_end)
    journal.say("nobody reads this", write_end)
    journal.finish(5.0)
    assert journal.is_alive(), "a journal that is gone ends nothing"
    os.close(write_end)


def test_hostile_lines_of_the_kernel_are_read_for_so_long_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 40 ms a line: many beginnings of what one of the patterns looks for.
    hostile = ["DMAR: " * 330] * 5_000
    started = time.monotonic()
    find_events(hostile, seconds=0.5)
    assert time.monotonic() - started < 3
    started = time.monotonic()
    find_events(hostile, seconds=60, stop=lambda: time.monotonic() - started > 0.5)
    assert time.monotonic() - started < 3
    for head in ("", "kernel: [1.000001] "):
        monkeypatch.setattr(explain_module, "SECONDS", 1.5)
        started = time.monotonic()
        explain_module.explain("\n".join(f"{head}{line}" for line in hostile))
        assert time.monotonic() - started < 20


def test_a_report_with_a_number_that_is_no_time_counts_as_none(tmp_path: Path) -> None:
    for number, uptime in enumerate(("9" * 400, "NaN", "-1", "null", "[]")):
        path = tmp_path / "m" / f"{number + 1:06d}-20261129T000000.000000Z.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"boot": "", "uptime": ' + uptime + "}")
    assert incidents.recent(tmp_path, "m", 3600.0, at=10.0) == 0

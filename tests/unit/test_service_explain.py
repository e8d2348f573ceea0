"""``metal explain`` with messages of real engines and kernels; each case names its public source."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from minimax_metal.host.engine import explain
from minimax_metal.host.engine.diagnosis import EXIT_GPU, EXIT_NEVER, Who, advice, diagnose, kernel
from minimax_metal.host.engine.diagnosis.rules import rules
from minimax_metal.plan.settings import SETTINGS

DATA = Path(__file__).parent / "data"
CASES: list[dict[str, Any]] = [
    case
    for name in ("ends.yml", "ends_systems.yml")
    for case in yaml.safe_load((DATA / name).read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_an_end_is_understood(case: dict[str, Any]) -> None:
    reason = explain.explain(case["log"])
    assert reason is not None
    assert (reason.code, str(reason.who)) == (case["code"], case["who"]), reason.text
    for words in case.get("says", ()):
        assert words in reason.text
    for words in case.get("not", ()):
        assert words not in reason.text
    assert "\n" not in reason.text
    assert reason.evidence, "an answer shows what it was read from"
    assert case["source"]


def test_a_driver_that_starts_says_nothing_bad() -> None:
    # open-gpu-kernel-modules nv.c and the kernel's lines about a module that DKMS built
    assert explain.explain(
        "Mar 30 10:00:01 gpu01 kernel: nvidia: loading out-of-tree module taints kernel.\n"
        "Mar 30 10:00:01 gpu01 kernel: nvidia: module verification failed: signature and/or required key "
        "missing - tainting kernel\n"
        "Mar 30 10:00:01 gpu01 kernel: nvidia-nvswitch3: open (major=510)\n"
        "Mar 30 10:00:01 gpu01 kernel: NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.126.20\n"
        "Mar 30 10:00:01 gpu01 kernel: NVRM: GPU at PCI:0000:18:00: GPU-00000000-0000-0000-0000-000000000000"
    ) is None  # fmt: skip


def test_a_remedy_names_settings_that_exist_with_values_that_they_take() -> None:
    declared = {one.name: one for one in SETTINGS}
    roles = "\n".join(
        path.read_text(encoding="utf-8")
        for path in (Path(__file__).parents[2] / "roles").glob("*/meta/argument_specs.yml")
    )
    remedies = [rule.remedy for rule in rules()] + [rule.remedy for rule in kernel.rules()]
    seen = 0
    for remedy in (*remedies, *(value for value in vars(advice).values() if isinstance(value, str))):
        for name, value in re.findall(
            r"\b((?:metal_[a-z_]+[a-z])|[a-z_]+_manage)\b(?:: (true|false|\d+))?", remedy
        ):
            seen += 1
            if not name.startswith("metal_"):
                assert f"      {name}:" in roles, remedy
            elif value:
                kind = declared[name].kind
                assert (kind == "bool") == (value in {"true", "false"}), (name, kind, remedy)
            else:
                assert name in declared, remedy
    assert seen > 50


def by_name(name: str) -> str:
    return str(next(case["log"] for case in CASES if case["name"].startswith(name)))


def test_what_graph_capture_wraps_is_final_for_lack_of_memory_only() -> None:
    build, memory = (explain.explain(by_name(name)) for name in ("E1", "the wrapper around memory"))
    assert build is not None
    assert memory is not None
    assert (build.who, build.status) == (Who.USER, None)
    assert (memory.who, memory.status) == (Who.USER, EXIT_NEVER)


def test_the_supervisor_s_status_follows_who_acts() -> None:
    for case in CASES:
        reason = explain.explain(case["log"])
        assert reason is not None
        if reason.who == Who.OPERATOR:
            assert reason.status in {EXIT_GPU, None}
        elif reason.who == Who.RESTART:
            assert reason.status is None, case["name"]
        else:
            assert reason.status in {EXIT_NEVER, None}, case["name"]


PREFIXES = {
    "short": "Nov 20 03:11:07 gpu03 metal[7]: ",
    "short-precise": "Nov 20 03:11:07.123456 gpu03 metal[7]: ",
    "short-iso": "2026-11-20T03:11:07+00:00 gpu03 metal[7]: ",
    "short-iso in systemd 252": "2026-11-20T03:11:07+0000 gpu03 metal[7]: ",
    "short-iso-precise": "2026-11-20T03:11:07.123456+01:00 gpu03 metal[7]: ",
    "short-full": "Fri 2026-11-20 03:11:07 UTC gpu03 metal[7]: ",
    "short-unix": "1795144267.123456 gpu03 metal[7]: ",
    "short-monotonic": "[171167.620236] gpu03 metal[7]: ",
    "docker compose": "sglang-1  | ",
    "docker --timestamps": "2026-11-20T03:11:07.123456789Z ",
    "cri": "2026-11-20T03:11:07.123456789Z stderr F ",
    "kubectl --prefix": "[pod/sglang-0/server] ",
    "syslog": "<30>Nov 20 03:11:07 gpu03 metal[7]: ",
    "terminal": "\x1b[31m",
    "with-unit": "Fri 2026-11-20 03:11:07 UTC gpu03 sglang@minimax-m2.5.service[7]: ",
}


@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
@pytest.mark.parametrize("name", ["E1", "E7", "E9", "E10", "a wrong option", "chained"])
def test_prefixes_of_journals_and_containers_are_taken_off(prefix: str, name: str) -> None:
    plain = explain.explain(by_name(name))
    dressed = explain.explain("\n".join(prefix + line for line in by_name(name).splitlines()))
    assert plain is not None
    assert dressed is not None
    assert (dressed.code, dressed.cause) == (plain.code, plain.cause)


def test_json_journals_are_read() -> None:
    kernel = {
        "MESSAGE": "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.",
        "_TRANSPORT": "kernel",
    }
    own = {"MESSAGE": list(b"torch.AcceleratorError: CUDA error: unspecified launch failure\xff")}
    text = "\n".join(json.dumps(entry) for entry in (own, kernel))
    reason = explain.explain(text)
    assert reason is not None
    assert reason.code == "gpu-xid"
    docker = explain.explain(json.dumps({"log": "KeyError: 'experts'\n", "stream": "stderr"}))
    assert docker is not None
    assert docker.cause == "KeyError: 'experts'"
    export = explain.explain("_PID=7\nMESSAGE=KeyError: 'experts'\n_COMM=python\n")
    assert export is not None
    assert export.cause == "KeyError: 'experts'"


def test_the_last_start_of_a_journal_counts() -> None:
    text = (
        "Nov 20 03:11:07 h systemd[1]: Starting sglang@m.service - x...\n"
        "Nov 20 03:12:07 h metal[7]: RuntimeError: No CUDA GPUs are available\n"
        "Nov 20 04:11:07 h systemd[1]: Starting sglang@m.service - x...\n"
        "Nov 20 04:12:07 h metal[9]: launch_server.py: error: unrecognized arguments: --frobnicate\n"
    )
    reason = explain.explain(text)
    assert reason is not None
    assert reason.code == "arguments"


def test_an_earlier_end_is_judged_by_its_own_start() -> None:
    """The first start after an engine that was ready and stopped in order."""
    text = (
        "Nov 20 01:00:00 h systemd[1]: Starting sglang@m.service - x...\n"
        "Nov 20 01:10:00 h metal[5]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n"
        "Nov 20 02:00:00 h systemd[1]: Starting sglang@m.service - x...\n"
        "Nov 20 02:10:00 h metal[6]: [2026-11-20 02:10:00 TP0] Decode batch. #running-req: 1\n"
        "Nov 20 02:11:00 h metal[6]: metal supervise: SIGTERM: draining, up to 10 min\n"
    )
    reason = explain.explain(text)
    assert reason is not None
    assert (reason.code, reason.who) == ("memory", Who.USER)


def run(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "minimax_metal.cli", "explain", *arguments],
        input=text, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_the_command_s_answers_and_exit_statuses(tmp_path: Path) -> None:
    done = run("-", "--json", text=by_name("E7"))
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["code"], answer["who"]) == (EXIT_GPU, "gpu-reset", "operator")
    assert any("busy or unavailable" in line for line in answer["evidence"])
    log = tmp_path / "log"
    log.write_text(by_name("a wrong option"))
    done = run(str(log))
    assert done.returncode == EXIT_NEVER
    assert "unrecognized arguments: --frobnicate" in done.stdout
    assert "metal_engine_extra_args" in done.stdout
    assert run("-", text="all is well\n").returncode == explain.EXIT_NOTHING
    assert run("-", text=by_name("words that no rule")).returncode == 0
    for wrong in (("/nonexistent",), (str(tmp_path),), ("x", "--unit", "y")):
        done = run(*wrong)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


HOSTILE = {
    "error words": "CUDA error CUDA out of memory NCCL error address already in use is not divisible by ",
    "dots": "a." * 900 + " ",
    "capitals": "A" * 1900 + " ",
    "spaces": " " * 1900,
    "brackets": "[" * 1900,
    "escapes": "\x1b[" * 900,
    "braces": '{"a":' * 380,
    "not found": "No such file or directory: ' does not exist .safetensors missing ",
    "kernel": "NVRM: GPU 0000:3b:00.0 BAR 1 AER: lost oom-kill: Out of memory [Hardware Error] uncorrect ",
    "options": "increase --mem-fraction-static reduce --max-running-requests raise lower ",
}


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE)
def test_hostile_lines_end_in_time(unit: str) -> None:
    """300 lines of 20,000 characters; the old patterns took 80 s for 200 lines of 2,000."""
    program = (
        "import sys; from minimax_metal.host.engine.diagnosis import *\n"
        "lines = [(sys.argv[1] * 20000)[:20000]] * 300\n"
        "diagnose(lines, find_xids(lines), ready=False, events=find_events(lines), seconds=1e9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, unit], check=False, timeout=90, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_a_diagnosis_has_a_deadline_and_hears_a_stop() -> None:
    lines = ["KeyError: 'a'"] * 1000
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 10

    reason = diagnose(lines, ready=False, stop=stop)
    assert reason is not None
    assert len(asked) == 11
    assert diagnose(lines, ready=False, seconds=-1.0) is None


def _journal(*lines: tuple[int, str]) -> str:
    return "\n".join(
        json.dumps({"__REALTIME_TIMESTAMP": str(moment), "SYSLOG_IDENTIFIER": program, "MESSAGE": words})
        for moment, words in lines
        for program in ["metal" if words[:3] != "Sta" else "systemd"]
    )


def test_what_a_running_engine_warned_of_is_no_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Seen on a healthy host: the engine's warning was given as the cause of an end that never was.
    warning = (
        "Tokenizer for /srv/models/x is still TokenizersBackend after retries with --trust-remote-code. "
        "Model-specific attributes may be missing."
    )
    healthy = _journal((100, "Starting sglang@m.service - SGLang..."), (200, warning))
    monkeypatch.setattr(explain, "is_active", lambda unit: True)
    monkeypatch.setattr(explain, "read_unit", lambda unit: healthy)
    assert explain.main(["--unit", "m"]) == 0
    assert "m is active" in capsys.readouterr().out
    assert explain.main(["--unit", "m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["running"] is True
    crashed = _journal(
        (10, "Starting sglang@m.service - SGLang..."), (20, "CUDA out of memory. Tried to allocate")
    )
    monkeypatch.setattr(explain, "read_unit", lambda unit: crashed + "\n" + healthy)
    explain.main(["--unit", "m"])
    assert "CUDA out of memory" in capsys.readouterr().out
    monkeypatch.setattr(explain, "is_active", lambda unit: False)
    monkeypatch.setattr(explain, "read_unit", lambda unit: healthy)
    explain.main(["--unit", "m"])
    assert "is active" not in capsys.readouterr().out

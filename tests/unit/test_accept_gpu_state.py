"""`metal accept` on hosts whose GPUs are listed but unusable, with output from real machines."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimax_metal.common.errors import UserError
from minimax_metal.host.accept import boot, fabric
from minimax_metal.host.accept import machine as machines
from minimax_metal.host.accept.context import Context
from minimax_metal.host.accept.machine import TIMED_OUT, Answer, Local
from minimax_metal.host.accept.report import Report, parse
from minimax_metal.host.accept.smi import parse_log, sick_values
from tests.support.acceptance import fake, host, published

H100 = published("log-8-h100.txt")
MIG = "nvidia-smi --query-gpu=index,mig.mode.current --format=csv,noheader"
LIST = "".join(f"GPU {n}: NVIDIA H100 80GB HBM3 (UUID: GPU-{n})\n" for n in range(8))


def listed(log: str = H100) -> Context:
    context = host("H100", 8)
    fake(context).answers |= {
        "nvidia-smi -L": Answer(0, LIST),
        "nvidia-smi -q": Answer(0, log),
        MIG: Answer(0, "".join(f"{n}, Disabled\n" for n in range(8))),
    }
    return context


def test_sound_gpus_pass() -> None:
    assert boot.check_gpus(listed()).state == "passed"


def test_mig_fails_with_the_command_that_turns_it_off() -> None:
    context = listed()
    fake(context).answers[MIG] = Answer(0, "0, Disabled\n2, Enabled\n5, Enabled\n")
    outcome = boot.check_gpus(context)
    assert (outcome.state, outcome.found) == ("failed", "MIG on GPU 2, 5")
    assert "nvidia-smi -i 2,5 -mig 0" in outcome.remedy


@pytest.mark.parametrize("words", ["Unknown Error", "GPU is lost", "GPU requires reset", "[Unknown Error]"])
def test_a_value_that_the_driver_can_not_read_fails(words: str) -> None:
    # nvidia_gpu_exporter#393: the table says ERR!, nvidia-smi -q has words for it.
    second = H100.index("GPU 00000000:2A:00.0")
    line = next(one for one in H100[second:].splitlines() if "Persistence Mode" in one)
    head, tail = H100[:second], H100[second:]
    log = head + tail.replace(line, line.partition(":")[0] + f": {words}", 1)
    outcome = boot.check_gpus(listed(log))
    assert outcome.state == "failed"
    assert outcome.found.startswith(f"GPU 1 (00000000:2A:00.0): Persistence Mode: {words}")
    assert "reset" in outcome.remedy


def test_published_logs_of_sound_gpus_hold_no_sick_value() -> None:
    for path in (Path(__file__).parent / "data" / "accept").glob("*.txt"):
        for gpu in parse_log(path.read_text()).gpus:
            assert list(sick_values(gpu.log)) == [], path.name


@pytest.mark.parametrize(
    ("status", "out", "remedy"),
    [
        (255, "Unable to determine the device handle for GPU5: 0000:BA:00.0: Unknown Error\n", "reset"),
        (0, "Unable to determine the device handle for GPU5: 0000:BA:00.0: Unknown Error\n" + LIST, "reset"),
        (6, "No devices were found\n", "dmesg"),
    ],
)
def test_a_lost_gpu_fails_with_what_to_do(status: int, out: str, remedy: str) -> None:
    # dcgm-exporter#604
    context = listed()
    fake(context).answers["nvidia-smi -L"] = Answer(status, out)
    outcome = boot.check_gpus(context)
    assert outcome.state == "failed"
    assert out.splitlines()[0] in outcome.found
    assert remedy in outcome.remedy


@pytest.mark.parametrize(
    "head",
    [
        "Driver Version                            : 610.57.04 [Deprecated; use KMD Version]",
        "KMD Version                               : 610.57.04",
        "Driver Version                            : [Deprecated]\nKMD Version           : 610.57.04 (open)",
    ],
)
def test_prose_behind_a_version_is_no_part_of_it(head: str) -> None:
    # R610's form; the fabric manager of the same version was "another" one before.
    line = next(one for one in H100.splitlines() if one.startswith("Driver Version"))
    context = listed(H100.replace(line, head))
    assert context.log is not None
    assert context.log.driver == "610.57.04"
    fake(context).units["nvidia-fabricmanager.service"] = {"ActiveState": "active", "Result": "success"}
    fake(context).answers["dpkg-query"] = Answer(0, "610.57.04-1 install ok installed\n")
    outcome = fabric.check_fabric(context)
    assert outcome.state == "passed", outcome.found


def test_a_program_that_hangs_does_not_hold_the_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # subprocess.run waits without a limit for a killed program whose child keeps the pipes.
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\ntrap '' TERM\necho begun\nsleep 60 &\nsleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(machines, "PATH", f"{tmp_path}:/usr/bin:/bin")
    began = time.monotonic()
    answer = Local().run("nvidia-smi", "-q", seconds=0.5)
    assert time.monotonic() - began < 10
    assert (answer.status, answer.out) == (TIMED_OUT, "")
    assert "nvidia-smi did not answer within" in answer.error


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
PARTS = ["check", "state", "found", "expected", "remedy", "figures", "seconds"]


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(["host", "time", "model", "gpus", "engine", "driver", "schema"]), JUNK),
    JUNK | st.lists(st.dictionaries(st.sampled_from(PARTS), JUNK), max_size=3),
)
def test_any_report_of_a_host_is_printed_or_refused_in_one_line(head: dict[str, Any], checks: Any) -> None:
    # TypeError, OverflowError and rich's MarkupError ended the command before.
    texts = dict.fromkeys(["host", "time", "model", "gpus", "engine"], "x")
    found: Report | None = None
    try:
        found = parse(json.dumps(texts | head | {"checks": checks}), "report.json")
    except UserError as error:
        lines = str(error).splitlines()
    else:
        lines = [found.summary]
    assert len(lines) == 1
    if found is None:
        return
    output = io.StringIO()
    found.print(output)
    assert "\x1b" not in output.getvalue()
    found.as_json()


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", "[]", "null", "\x00", '{"checks": [{}]}'])
def test_a_report_that_is_none_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match="holds no report"):
        parse(text, "report.json")


def test_escapes_and_markup_of_a_host_are_not_acted_on() -> None:
    one = {"check": "[/bold]x", "state": "failed", "found": "\x1b[2Jgone\r\n[red]", "seconds": 1e999}
    head = dict.fromkeys(["host", "time", "model", "gpus", "engine"], "\x1b]0;title\x07x")
    output = io.StringIO()
    parse(json.dumps(head | {"checks": [one]}), "report.json").print(output)
    assert "[/bold]x" in output.getvalue()
    assert "gone [red]" in output.getvalue()
    assert "\x1b" not in output.getvalue()

"""The sandbox of `metal accept` is the engine's own; the engine is started again whatever happens."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.common.errors import UserError
from minimax_metal.host.accept.compute import Compute
from minimax_metal.host.accept.engine import GUARD, guard_text, stopped
from minimax_metal.host.accept.machine import Answer
from minimax_metal.host.accept.sandbox import (
    PROGRAMS,
    SAME,
    Ran,
    Sandbox,
    last_object,
    resolve,
    service_lines,
    sweep,
    unit_text,
)
from minimax_metal.host.accept.suite import CHECKS, Run
from tests.support.acceptance import FakeMachine, fake, host, planned, published
from tests.support.templates import evaluate, render, role_variables

UNIT = "sglang@minimax-m2.5.service"
GOOD: dict[str, Any] = {
    "ok": True, "seconds": 3.0, "version": "1", "torch": "2.14.1", "cuda": "13.0",
    "cards": [{"capability": "9.0"}], "bandwidth": 470e9, "nccl": "2.30.7",
}  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The output of `systemctl cat` for the role's own unit with an operator's drop-in."""
    plan = planned("H20", 4)
    sandbox = evaluate(role_variables("sglang_service"), "__sglang_service_sandbox")
    unit = render(
        tmp_path_factory.mktemp("unit") / UNIT,
        "sglang@.service.j2",
        plan,
        item=plan["services"][0],
        __sglang_service_sandbox=sandbox,
    )
    return (
        f"# /etc/systemd/system/{UNIT}\n{unit}\n"
        f"# /etc/systemd/system/{UNIT}.d/50-mine.conf\n"
        "[Service]\n# mine\nEnvironment=NCCL_DEBUG=INFO\nSystemCallFilter=\nLogExtraFields=INSTANCE=%i\n"
    )


def test_everything_of_the_service_is_kept_but_what_starts_it(text: str) -> None:
    made = unit_text(
        text, UNIT, "system-sglang.slice", ["/opt/x/bin/python", "/p.py", '{"count": 4}'], Path("/run/o"), 60
    )
    kept = made.split("[Service]\n")[1].splitlines()
    theirs = list(service_lines(text))
    dropped = [line for line in theirs if resolve(line, UNIT) not in kept]
    assert {line.partition("=")[0] for line in dropped} == {
        "Type", "NotifyAccess", "ExecStart", "KillMode", "Restart", "RestartPreventExitStatus", "RestartSec",
        "TimeoutStartSec", "TimeoutStopSec", "RuntimeDirectory",
    }  # fmt: skip
    # The sandbox, the user, the limits, the environment: each line, in its order, the drop-in's last.
    assert [line for line in kept if line in {resolve(one, UNIT) for one in theirs}] == [
        resolve(line, UNIT) for line in theirs if line not in dropped
    ]
    assert "User=sglang" in kept
    assert "LimitMEMLOCK=infinity" in kept
    assert kept.index("SystemCallFilter=@system-service pidfd_getfd") < kept.index("SystemCallFilter=")
    assert "LogExtraFields=INSTANCE=minimax-m2.5" in kept
    assert sum(line.startswith("ExecStart=") for line in kept) == 1
    assert "api_key" not in made
    assert "Wants=" not in made


def test_a_name_that_systemd_would_put_in_is_that_of_the_instance() -> None:
    assert resolve("A=%i %n %p %N 100%% %t", UNIT) == (
        "A=minimax-m2.5 sglang@minimax-m2.5.service sglang sglang@minimax-m2.5 100%% %t"
    )


def test_the_properties_of_the_roles_sandbox_are_all_compared() -> None:
    # SystemCallErrorNumber and the like are properties of the same name.
    sandbox = evaluate(role_variables("sglang_service"), "__sglang_service_sandbox")
    assert set(sandbox) <= set(SAME)


def test_the_answer_is_the_last_object() -> None:
    assert last_object('{"ok": false}\nnoise\n{"ok": true}\nmore noise\n{broken\n') == {"ok": True}
    assert last_object("noise") == {}


def made_unit(machine: FakeMachine, units: Path) -> str:
    return next(
        words.rpartition(" ")[2]
        for words in machine.asked
        if words.startswith("systemctl start metal-accept-")
    )


class Starting(FakeMachine):
    """A machine whose systemd runs the unit: it writes the program's output."""

    def __init__(self, base: FakeMachine, output: Path, said: str) -> None:
        super().__init__(base.answers, base.files, base.nodes, base.times, base.units)
        self.output, self.said = output, said
        self.seen: list[str] = []

    def run(self, *command: str, seconds: float = 60.0) -> Answer:
        if command[:2] == ("systemctl", "start"):
            name = command[2]
            (self.output / name.removesuffix(".service") / "out").write_text(self.said, encoding="utf-8")
        if command[:3] == ("systemctl", "show", "--timestamp=unix") and command[-1].startswith(
            "metal-accept-"
        ):
            self.seen.append(command[-1])
            self.units.setdefault(command[-1], dict(self.units[UNIT]))
        return super().run(*command, seconds=seconds)


def sandbox(tmp_path: Path, text: str, said: str) -> tuple[Sandbox, Starting]:
    base = fake(host("H20", 4))
    base.answers["systemctl cat"] = Answer(0, text)
    machine = Starting(base, tmp_path / "output", said)
    return Sandbox(machine, UNIT, "/opt/x/bin/python", tmp_path / "units", tmp_path / "output"), machine


def test_a_program_answers_and_nothing_is_left(tmp_path: Path, text: str) -> None:
    box, machine = sandbox(tmp_path, text, 'noise\n{"ok": true, "version": "3.8.0"}\n')
    ran = box.run("compile_triton", 60.0, count=4)
    assert ran.ok
    assert ran.answer["version"] == "3.8.0"
    assert list((tmp_path / "units").iterdir()) == []
    assert list((tmp_path / "output").iterdir()) == []
    assert machine.asked.count("systemctl daemon-reload") == 2


def test_what_a_killed_run_left_is_taken_away(tmp_path: Path) -> None:
    units, output = tmp_path / "units", tmp_path / "output"
    (output / "metal-accept-a4808959").mkdir(parents=True)
    units.mkdir()
    for name in ("metal-accept-a4808959.service", GUARD, "other.service"):
        (units / name).write_text("")
    machine = fake(host("H20", 4))
    sweep(machine, units, output)
    assert {file.name for file in units.iterdir()} == {GUARD, "other.service"}
    assert not output.exists()
    assert machine.asked == ["systemctl stop metal-accept-a4808959.service", "systemctl daemon-reload"]


def test_another_sandbox_is_no_pass(tmp_path: Path, text: str) -> None:
    box, machine = sandbox(tmp_path, text, '{"ok": true}\n')
    machine.units[UNIT] = {**machine.units[UNIT], "ProtectSystem": "strict"}
    started = Starting.run

    def loosened(self: Starting, *command: str, seconds: float = 60.0) -> Answer:
        if command[-1].startswith("metal-accept-"):
            self.units[command[-1]] = {**self.units[UNIT], "ProtectSystem": "no"}
        return started(self, *command, seconds=seconds)

    machine.run = loosened.__get__(machine)  # type: ignore[method-assign]  # one test's systemd
    ran = box.run("cuda_cards", 60.0, count=4)
    assert not ran.ok
    assert ran.words == "a sandbox that differs from the engine's: ProtectSystem"


def test_a_program_that_says_nothing_is_told_by_its_end() -> None:
    assert Ran({}, "was killed by signal 31", "Traceback\nBad system call\n").words == (
        "the program was killed by signal 31: Bad system call"
    )


@pytest.mark.parametrize("program", sorted(path.stem for path in PROGRAMS.glob("c*.py")))
def test_a_program_without_torch_says_so(program: str) -> None:
    # This Python has no torch, which is as good as any reason.
    done = subprocess.run(
        [sys.executable, str(PROGRAMS / f"{program}.py"), '{"count": 4}'],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    answer = last_object(done.stdout)
    assert (done.returncode, answer["ok"]) == (1, False)
    assert answer["error"].startswith("ModuleNotFoundError: No module named")


# The engine ------------------------------------------------------------------------------------------------


def test_the_guard_is_there_before_the_engine_stops_and_goes_after_it(tmp_path: Path) -> None:
    context = host("H20", 4)
    with stopped(context.machine, context.services, tmp_path):
        asked = fake(context).asked
        assert asked.index(f"systemctl start {GUARD}") < asked.index(f"systemctl stop {UNIT}")
        assert f"ExecStopPost=/usr/bin/systemctl start --no-block {UNIT}" in (tmp_path / GUARD).read_text()
    assert fake(context).asked[-1] == f"systemctl stop {GUARD}"


def test_an_interrupt_starts_the_engine_again(tmp_path: Path) -> None:
    context = host("H20", 4)
    with pytest.raises(KeyboardInterrupt), stopped(context.machine, context.services, tmp_path):
        raise KeyboardInterrupt
    assert fake(context).asked[-1] == f"systemctl stop {GUARD}"


def test_without_a_guard_nothing_is_stopped(tmp_path: Path) -> None:
    context = host("H20", 4)
    fake(context).answers[f"systemctl start {GUARD}"] = Answer(1, "", "Failed to start")
    with (
        pytest.raises(UserError, match="was left running"),
        stopped(context.machine, context.services, tmp_path),
    ):
        pass
    assert f"systemctl stop {UNIT}" not in fake(context).asked


def test_the_guard_is_a_unit_that_systemd_reads(tmp_path: Path) -> None:
    file = tmp_path / GUARD
    file.write_text(guard_text(1, [UNIT], file), encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False
    )
    assert [line for line in done.stderr.splitlines() if GUARD in line] == []


# A run -----------------------------------------------------------------------------------------------------


class Box(Sandbox):
    """A sandbox whose programs give the test's answers."""

    def __init__(self, answer: Callable[[str], Ran], seen: list[str]) -> None:
        self.answer, self.seen = answer, seen

    def run(self, program: str, seconds: float, **parameters: Any) -> Ran:
        self.seen.append(program)
        return self.answer(program)


def run(answer: Callable[[str], Ran], *, active: bool, **options: Any) -> tuple[Run, list[str]]:
    context = host("H200", 8)
    machine = fake(context)
    if not active:
        machine.units[UNIT] = {**machine.units[UNIT], "ActiveState": "inactive"}
    machine.answers["nvidia-smi -q"] = Answer(0, published("log-8-h100.txt"))
    seen: list[str] = []
    made = Run(
        context,
        lambda service: Box(answer, seen),
        only=["cuda", "nccl", "triton", "flashinfer", "deep_gemm"],
        **options,
    )
    made.report()
    return made, seen


def states(made: Run) -> dict[str, str]:
    return {one.check: one.state for one in made.outcomes}


def test_with_free_gpus_every_program_runs() -> None:
    made, seen = run(lambda program: Ran(GOOD, "exited with 0", ""), active=False)
    assert set(states(made).values()) == {"passed"}
    assert seen == ["cuda_cards", "all_reduce", "compile_triton", "compile_flashinfer", "compile_deep_gemm"]


def test_beside_an_engine_only_the_cards_are_looked_at() -> None:
    made, seen = run(lambda program: Ran(GOOD, "exited with 0", ""), active=True)
    assert seen == ["cuda_cards"]
    assert states(made)["cuda"] == "passed"
    assert {state for check, state in states(made).items() if check != "cuda"} == {"skipped"}
    assert "--stop-engine" in made.outcomes[-1].remedy
    assert UNIT in made.outcomes[-1].found


def test_without_cards_the_rest_is_not_tried() -> None:
    words = "RuntimeError: Found no NVIDIA driver on your system."
    made, seen = run(lambda program: Ran({"ok": False, "error": words}, "exited with 1", ""), active=False)
    assert seen == ["cuda_cards"]
    assert states(made)["cuda"] == "failed"
    assert made.outcomes[0].found == words
    assert made.outcomes[-1].found == "no card to compute on: see check cuda"


def test_a_kernel_that_does_not_compile_fails_its_own_check() -> None:
    bad = Ran({"ok": False, "error": "RuntimeError: Ninja build failed"}, "exited with 1", "")
    made, _ = run(
        lambda program: bad if program == "compile_flashinfer" else Ran(GOOD, "exited with 0", ""),
        active=False,
    )
    assert [check for check, state in states(made).items() if state == "failed"] == ["flashinfer"]


def test_what_breaks_in_a_check_is_a_finding() -> None:
    def broken(program: str) -> Ran:
        raise OSError("Read-only file system")

    made, _ = run(broken, active=False)
    assert states(made)["cuda"] == "failed"
    assert "Read-only file system" in made.outcomes[0].found


def test_old_cards_need_no_deep_gemm() -> None:
    context = host("A100-80GB", 8, model_format=None)
    outcome = Compute(context, lambda service: Box(lambda program: Ran(GOOD, "", ""), [])).compile(
        "deep_gemm", "x"
    )
    assert outcome.state == "skipped"


def test_every_check_has_a_name_and_says_what_it_is_for() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS) == 19
    assert all(check.about for check in CHECKS)


def test_parameters_reach_a_program_as_json() -> None:
    made = unit_text(
        "[Service]\nUser=sglang\n", UNIT, "s.slice", ["/p", json.dumps({"count": 4})], Path("/o"), 1
    )
    line = next(line for line in made.splitlines() if line.startswith("ExecStart="))
    assert line == 'ExecStart=/p "{\\"count\\": 4}"'

"""Whether the run that holds a lock has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minimax_metal.controller.run.holder import ended, this_run

BOOT = "1c64d1a5-7f4a-4a3e-8d55-0a3a9d0e2a11"


def machine(proc: Path, boot: str = BOOT, space: str = "pid:[4026531836]") -> Path:
    (proc / "sys/kernel/random").mkdir(parents=True)
    (proc / "sys/kernel/random/boot_id").write_text(boot + "\n")
    (proc / "self/ns").mkdir(parents=True)
    (proc / "self/ns/pid").symlink_to(space)
    return proc


def process(proc: Path, pid: int, began: int) -> None:
    (proc / str(pid)).mkdir(exist_ok=True)
    # The form of proc_pid_stat(5): the name of the program may hold spaces and parentheses.
    fields = " ".join(["S", *("0" for _ in range(18)), str(began), "0"])
    (proc / str(pid) / "stat").write_text(f"{pid} (ansible) play) {fields}\n")


def test_a_run_of_this_machine_has_ended_when_its_process_is_gone(tmp_path: Path) -> None:
    proc = machine(tmp_path / "proc")
    process(proc, 41, 700)
    holder = this_run(41, ["playbooks/rollout.yml"], proc)
    assert holder["command"] == "rollout.yml"
    assert holder["run"].endswith("Z-41")
    assert not ended(holder, proc)
    # The number was given to another process since.
    process(proc, 41, 900)
    assert ended(holder, proc)
    (proc / "41/stat").unlink()
    assert ended(holder, proc)


@pytest.mark.parametrize(
    "other", [{"boot": "7f0c2f0e-0000-4000-8000-000000000000"}, {"space": "pid:[4026532999]"}], ids=str
)
def test_of_a_run_of_another_machine_or_container_nothing_is_known(
    tmp_path: Path, other: dict[str, str]
) -> None:
    """Two containers may have the same name; the process of a run in the other is not visible from here."""
    there = machine(tmp_path / "there", **other)
    process(there, 41, 700)
    assert not ended(this_run(41, ["site.yml"], there), machine(tmp_path / "here"))


@pytest.mark.parametrize("text", ["?", "", "a b", f"{BOOT} pid:[4026531836]", "a b c d", None])
def test_of_a_lock_that_names_no_process_nothing_is_known(tmp_path: Path, text: str | None) -> None:
    proc = machine(tmp_path / "proc")
    assert not ended({"pid": 41, "process": text}, proc)
    assert not ended({"pid": "../1", "process": f"{BOOT} pid:[4026531836] 700"}, proc)


def test_without_proc_nothing_is_known(tmp_path: Path) -> None:
    assert this_run(41, ["site.yml"], tmp_path)["process"] == "?"
    assert not ended({"pid": 41, "process": f"{BOOT} pid:[4026531836] 700"}, tmp_path)


def test_a_real_process_that_ends() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        holder = this_run(child.pid, ["stop.yml"])
        assert not ended(holder)
        assert not ended(this_run(os.getpid(), ["stop.yml"]))
    finally:
        child.communicate(b"\n", timeout=30)
    assert ended(holder)

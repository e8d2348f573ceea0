"""What the engine's supervisor may read of the kernel's log: the driver's lines, lack of memory, no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minimax_metal.host.engine import incidents, kernel_lines

XID = "NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
# mm/oom_kill.c and mm/memcontrol.c of Linux 6.1: pr_warn("%s invoked oom-killer: …"), __oom_kill_process().
OOM = [
    "python invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE|__GFP_COMP), order=0, oom_score_adj=0",
    "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,task=python,pid=812,uid=998",
    "Memory cgroup out of memory: Killed process 812 (python) total-vm:1048576kB, anon-rss:1kB, UID:998",
    "oom_reaper: reaped process 812 (python), now anon-rss:0kB, file-rss:0kB, shmem-rss:0kB",
]
OTHERS = [
    'audit: type=1400 apparmor="DENIED" operation="open" name="/etc/shadow"',
    "IN=eth0 OUT= MAC=52:54 SRC=10.0.0.7 DST=10.0.0.1 PROTO=TCP",
    "EXT4-fs (sda1): mounted filesystem",
    "Bedroom-light: zoom-kill",
]


def entry(message: object, seconds: float) -> str:
    return json.dumps({"MESSAGE": message, "__REALTIME_TIMESTAMP": str(int(seconds * 1e6))})


def test_the_driver_and_lack_of_memory_are_handed_out_and_nothing_else() -> None:
    for line in [XID, *OOM, "nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 22013, Fatal, Link 29"]:
        assert kernel_lines.of_journal(entry(line, 5)) == (5.0, line)
    for line in OTHERS:
        assert kernel_lines.of_journal(entry(line, 5)) is None


@pytest.mark.parametrize("line", ["", "not JSON", "[]", "{}", '{"MESSAGE": null}', "null", '"text"', "1"])
def test_what_is_no_entry_is_passed_over(line: str) -> None:
    assert kernel_lines.of_journal(line) is None


def test_bytes_controls_and_long_lines_become_one_printable_line() -> None:
    found = kernel_lines.of_journal(entry(list(b"NVRM: \xff\x1b[2Jtext\n1.0 forged" + b"x" * 90_000), 1.5))
    assert found is not None
    assert not {"\x1b", "\n"} & set(found[1])
    assert len(found[1]) <= kernel_lines.LENGTH


def test_only_the_newest_lines_are_kept_and_a_time_selects_them(tmp_path: Path) -> None:
    place = tmp_path / "kernel-lines"
    lines = kernel_lines.Lines(place)
    assert lines.add(entry(f"NVRM: {number}", number) for number in range(kernel_lines.KEPT + 50))
    lines.write()
    assert place.stat().st_mode & 0o777 == 0o640
    assert len(kernel_lines.read(0, place)) == kernel_lines.KEPT
    assert kernel_lines.read(kernel_lines.KEPT + 48, place) == [
        f"NVRM: {kernel_lines.KEPT + 48}",
        f"NVRM: {kernel_lines.KEPT + 49}",
    ]


def test_the_supervisor_reads_them_and_survives_their_absence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "kernel-lines"
    monkeypatch.setattr(kernel_lines.read, "__defaults__", (place,))
    assert incidents.kernel_lines(0) == []
    os.mkfifo(place)
    assert incidents.kernel_lines(0) == []
    place.unlink()
    place.write_text(f"not-a-time x\n4.0 early\n5.5 {XID}\n", encoding="utf-8")
    assert incidents.kernel_lines(5) == [XID]


def test_lines_are_there_soon_and_the_end_of_the_journal_is_the_end(tmp_path: Path) -> None:
    place = tmp_path / "kernel-lines"
    program = (
        "import sys, time\n"
        f"print({entry(XID, 7)!r}, flush=True)\n"
        f"print({entry(OTHERS[0], 7)!r}, flush=True)\n"
        f"sys.stdout.write({entry(OOM[0], 8)!r}); sys.stdout.flush()\n"
        "sys.stdin.readline()\n"
    )
    source = (
        "import sys; from pathlib import Path; from minimax_metal.host.engine import kernel_lines as k\n"
        f"print(k.follow(Path({str(place)!r}), [sys.executable, '-c', 'import time\\n' + {program!r} +"
        " 'time.sleep(1.5); print()']))"
    )
    child = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 20
        while kernel_lines.read(0, place) != [XID] and time.monotonic() < deadline:
            time.sleep(0.05)
        # A line that is not ended is not one yet.
        assert kernel_lines.read(0, place) == [XID]
        assert child.wait(20) == 0
    finally:
        child.kill()
    assert kernel_lines.read(0, place) == [XID, OOM[0]]

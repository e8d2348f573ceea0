"""Rounds of a pull with faults at random moments, and the account of what the hub was asked for twice.

Every round pulls the same model into a new directory while faults happen, as often as it takes, and ends with
every byte verified, or fails. The only bytes that may be sent twice are those in flight when a connection was
cut, and those that a fault makes worthless (a corrupted file, the beginning that a mirror sends unasked).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minimax_metal.host.weights.manifest import FOLDER
from minimax_metal.host.weights.request import Request
from tests.support.hub import Hub

WORKERS = 3
RATE = 6_000_000
"""Bytes per second and connection: slow enough to catch a pull halfway."""
IN_FLIGHT = 400_000
"""Bytes per connection that a kill may cost: what hub and kernel buffer between two reads of the client."""
RUNS = 25
"""Pulls in one round at most."""

LINE_FAULTS = ("cut", "stall", "corrupt", "truncate", "ignore-ranges", "429", "503", "slow")
HOST_FAULTS = ("kill", "term", "reboot", "power", "full", "twice", "remove")


@dataclass
class Round:
    """One round: its events, how often, and their allowed cost."""

    number: int
    seed: int
    did: list[str] = field(default_factory=list)
    interruptions: int = 0
    excused: int = 0
    """Bytes that a fault made worthless."""
    spent: int = 0
    allowed: int = 0

    def __str__(self) -> str:
        return (
            f"round {self.number} (seed {self.seed}): {', '.join(self.did)}: {self.interruptions} "
            f"interruptions, {self.spent} bytes sent twice, {self.allowed} allowed"
        )


def play(number: int, seed: int, hub: Hub, folder: Path) -> Round:
    """Run one round; raise AssertionError if it ends in anything but verified weights."""
    chance = random.Random(seed)  # noqa: S311  reproducible on purpose
    it = Round(number, seed)
    host = chance.sample(HOST_FAULTS, k=chance.choice((0, 1, 1, 2)))
    line = chance.sample(LINE_FAULTS, k=chance.choice((1, 1, 2)) if host else 2)
    kind = chance.choice(("huggingface", "hf-mirror", "modelscope"))
    it.did = [kind, *line, *host]
    skip = len(hub.lines())
    hub.fail(*_rules(line, hub, chance), {"fault": "throttle", "rate": RATE})
    with _place(folder / f"round-{number}", "full" in host) as place:
        raw = {"path": str(place / "srv" / "m" / "r"), "sources": [hub.source(kind)]}
        file = place / "request.json"
        file.write_text(json.dumps(raw))
        request = Request.parse(raw)
        acts = [name for name in host if name != "twice"]
        for _ in range(RUNS):
            act = acts.pop() if acts else None
            status = _run(file, request, act, "twice" in host, chance, it)
            if status == 0:
                break
            assert status in {1, 4, 5, -signal.SIGKILL, -signal.SIGTERM}, f"{it}: exit status {status}"
            # A mirror that is truncated or corrupt for good is put right by its owner between two pulls.
            if status in {1, 5}:
                hub.fail({"fault": "throttle", "rate": RATE})
        else:
            raise AssertionError(f"{it}: not there after {RUNS} pulls")
        _judge(it, hub, request, skip)
    return it


def _rules(faults: list[str], hub: Hub, chance: random.Random) -> Iterator[dict[str, Any]]:
    """Yield the hub's rules for network faults, each on a random shard and byte."""
    shards = [path for path in hub.files if path.endswith(".safetensors")]
    for fault in faults:
        path = chance.choice(shards)
        match = f"{hashlib.sha256(hub.files[path]).hexdigest()}|FilePath={path}"
        at, times = chance.randrange(len(hub.files[path])), chance.choice((1, 1, 2, 3))
        rule: dict[str, Any] = {"match": match, "after": at, "times": times, "rate": RATE}
        if fault in {"429", "503"}:
            rule |= {"fault": "busy", "status": int(fault), "match": "", "times": chance.randrange(1, 12)}
            rule |= {"retry_after": chance.choice((None, 0, 1))}
        elif fault == "slow":
            rule |= {"fault": "throttle", "rate": RATE / 8}
        else:
            rule |= {"fault": fault}
        if fault == "ignore-ranges":
            # Only seen by who asks for a range: the connection before is cut.
            yield rule | {"fault": "cut", "times": 1}
            rule |= {"times": 2}
        yield rule


@contextlib.contextmanager
def _place(folder: Path, small: bool) -> Iterator[Path]:
    """Yield a directory; ``small``: on a separate disk that something else fills."""
    folder.mkdir(parents=True)
    if not small:
        yield folder
        shutil.rmtree(folder)
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "metal-test", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


def _run(file: Path, request: Request, act: str | None, twice: bool, chance: random.Random, it: Round) -> int:
    """Run the pull once, with one event during it; return its exit status."""
    ballast = file.with_name("ballast")
    if act == "full":
        room = shutil.disk_usage(file.parent).free
        with ballast.open("wb") as full:
            full.write(b"\0" * max(0, room - chance.randrange(1_000_000, 12_000_000)))
    process = _start(file)
    other = _start(file) if twice else None
    timer: threading.Timer | None = None
    try:
        if act in {"kill", "term", "reboot", "power"}:
            it.interruptions += 1
            number = signal.SIGTERM if act == "term" else signal.SIGKILL
            timer = threading.Timer(chance.uniform(0.3, 2.5), _signal(process, number))
            timer.start()
        status = process.wait(timeout=120)
        if other is not None:
            # It waited for the first, and has found the work done or goes on with it.
            assert other.wait(timeout=120) in {0, 1, 4, 5}
            status = 0 if other.returncode == 0 else status
    finally:
        if timer is not None:
            timer.cancel()
            timer.join()
        for running in (process, other):
            if running is not None and running.poll() is None:
                running.kill()
                running.wait()
    ballast.unlink(missing_ok=True)
    if status not in {0, -signal.SIGKILL, -signal.SIGTERM}:
        it.interruptions += 1  # whatever ended it, connections were open
    if act in {"reboot", "power"} and status != 0:
        _reboot(request, power=act == "power", chance=chance, it=it)
    if act == "remove" and status == 0:
        # Somebody loses a shard of the finished directory: the pull brings back that one and no other.
        lost = chance.choice(sorted(request.path.glob("*.safetensors")))
        it.excused += lost.stat().st_size
        lost.unlink()
        return 1
    return status


def _start(file: Path) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "minimax_metal.cli", "weights", "pull", "--request", str(file)),
            *("--workers", str(WORKERS)),
            *("--stall", "1", "--backoff", "0.05", "--interval", "1", "--spare", "0", "--patience", "20"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> Callable[[], None]:
    def send() -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)

    return send


def _reboot(request: Request, *, power: bool, chance: random.Random, it: Round) -> None:
    """Leave the staging directory as after a reboot; ``power``: the last bytes never reached the disk.

    The marks get the name of another boot. A power cut may cost whatever follows the last mark.
    """
    parts = request.staging / FOLDER / "parts"
    for marks in parts.glob("*.marks") if parts.is_dir() else ():
        marks.write_text(re.sub(r"boot \S+", "boot another", marks.read_text()))
        part = marks.with_suffix("")
        if not part.exists():
            continue
        size = part.stat().st_size
        known = [int(line.split()[0]) for line in marks.read_text().splitlines() if line[:1].isdigit()]
        it.excused += size - max(known, default=0)
        if power and size:
            with part.open("r+b") as file:
                file.seek(
                    chance.randrange(max(known, default=0), size) if size > max(known, default=0) else 0
                )
                file.write(b"\0" * min(50_000, size - file.tell()))


def _judge(it: Round, hub: Hub, request: Request, skip: int) -> None:
    """Compare the end of a round with the model, and the hub's transfer log with what was allowed."""
    found = {
        path.relative_to(request.path).as_posix(): path.read_bytes()
        for path in request.path.rglob("*")
        if path.is_file() and FOLDER not in path.parts
    }
    assert found == hub.files, f"{it}: other bytes than published"
    assert not request.staging.exists(), f"{it}: something is left over"
    spent = 0
    for path, answers in hub.bodies(skip).items():
        size = len(hub.files[path])
        spent += sum(sent for _, sent, _ in answers) - size
        corrupted = sum(sent for _, sent, fault in answers if fault == "corrupt")
        it.excused += size if corrupted else 0
        if sum(fault == "corrupt" for _, _, fault in answers) > 1:
            it.excused += size * (sum(fault == "corrupt" for _, _, fault in answers) - 1)
        it.excused += sum(sent for _, sent, fault in answers if fault == "ignore-ranges")
        # The hub can't see how much of what it handed over arrived before a line was dropped.
        it.excused += IN_FLIGHT * sum(fault in {"stall", "truncate"} for _, _, fault in answers)
    it.allowed = it.excused + it.interruptions * WORKERS * IN_FLIGHT
    it.spent = spent
    assert spent <= it.allowed, f"{it}: {spent} bytes were sent twice, {it.allowed} may be"

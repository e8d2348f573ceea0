"""Rounds of a shared pull in which hosts are lost and come back, plus network faults.

Three hosts pull the same model. In every round one or two things happen at random moments: a pull is killed,
its nginx stops, both stop (a host without power), a host serves other bytes; the hub also fails in one of the
ways of :mod:`lab.hub.faults`. A round ends with every byte verified on every host, and the hub was asked
twice only for what was in flight or lost with a host.
"""

from __future__ import annotations

import hashlib
import random
import re
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.fleet import Fleet, Member, fleet
from tests.support.hub import Hub

HOSTS = 3
PIECE = 500_000
RATE = 3_000_000
RUNS = 12
"""Starts of one host's pull in a round, at most."""
KNOBS = ("--workers", "4", "--stall", "2", "--backoff", "0.05", "--patience", "20")
HOST_FAULTS = ("kill", "term", "power", "silence", "zeros", "none")
LINE_FAULTS = ("cut", "stall", "corrupt", "429", "503", "none")


@dataclass
class Round:
    """One round: its events, and their cost."""

    number: int
    seed: int
    did: list[str] = field(default_factory=list)
    spent: int = 0
    allowed: int = 0

    def __str__(self) -> str:
        return (
            f"round {self.number} (seed {self.seed}): {', '.join(self.did)}: "
            f"{self.spent} bytes were read twice, {self.allowed} may be"
        )


def play(number: int, seed: int, hub: Hub, folder: Path) -> Round:
    """Run one round; raise AssertionError if it ends in anything but verified weights everywhere."""
    chance = random.Random(seed)  # noqa: S311  reproducible on purpose
    acts = chance.sample(HOST_FAULTS, k=chance.choice((1, 1, 2)))
    line = chance.choice(LINE_FAULTS)
    kind = chance.choice(("huggingface", "modelscope"))
    it = Round(number, seed, [kind, line, *acts])
    skip = len(hub.lines())
    hub.fail(*_rules(line, hub, chance), {"fault": "throttle", "rate": RATE})
    with fleet(folder, HOSTS, lambda _: [hub.source(kind)], piece_bytes=PIECE) as found:
        found.start(*KNOBS)
        upset = threading.Thread(target=_upset, args=(found, hub, acts, chance, folder), daemon=True)
        upset.start()
        _until_verified(found, upset, it)
        for member in found.members:
            assert member.tree() == hub.files, f"{it}: {member.name} has other bytes than published"
            assert not member.request.staging.exists(), f"{it}: something is left over on {member.name}"
    _judge(it, hub, skip)
    return it


def _rules(fault: str, hub: Hub, chance: random.Random) -> list[dict[str, Any]]:
    shard = chance.choice([path for path in hub.files if path.endswith(".safetensors")])
    match = f"{hashlib.sha256(hub.files[shard]).hexdigest()}|FilePath={shard}"
    rule: dict[str, Any] = {"match": match, "times": chance.choice((1, 2)), "rate": RATE}
    if fault == "none":
        return []
    if fault in {"429", "503"}:
        return [{"fault": "busy", "status": int(fault), "match": "", "times": 6, "retry_after": 1}]
    # Counted from the beginning of an answer, but for the byte of the file that is spoiled.
    after = chance.randrange(len(hub.files[shard])) if fault == "corrupt" else chance.randrange(PIECE)
    return [{**rule, "fault": fault, "after": after}]


def _upset(found: Fleet, hub: Hub, acts: list[str], chance: random.Random, folder: Path) -> None:
    for act in acts:
        time.sleep(chance.uniform(0.5, 3.0))
        member = chance.choice(found.members)
        if act in {"kill", "term"}:
            member.kill(signal.SIGKILL if act == "kill" else signal.SIGTERM)
        elif act == "power":
            member.end()
            time.sleep(chance.uniform(0.2, 2.0))
            member.serve()
        elif act == "silence":
            member.silence()
            time.sleep(chance.uniform(0.2, 2.0))
            member.serve()
        elif act == "zeros":
            _spoil(member, hub, folder)


def _spoil(member: Member, hub: Hub, folder: Path) -> None:
    zeros = folder / "zeros"
    for path, content in hub.files.items():
        (zeros / path).parent.mkdir(parents=True, exist_ok=True)
        (zeros / path).write_bytes(bytes(len(content)))
    member.silence()
    member.serve(lambda text: re.sub(r'try_files "[^"]*/\$2" [^;]*;', f'try_files "{zeros}/$2" =404;', text))


def _until_verified(found: Fleet, upset: threading.Thread, it: Round) -> None:
    """Start pulls again like their units, until all have ended well."""
    deadline = time.monotonic() + 240
    starts = dict.fromkeys((member.name for member in found.members), 1)
    while time.monotonic() < deadline:
        statuses = {member.name: member.pull.poll() for member in found.members if member.pull is not None}
        if not upset.is_alive() and all(status == 0 for status in statuses.values()):
            return
        for member in found.members:
            status = statuses.get(member.name)
            if status in {None, 0}:
                continue
            assert status in {1, -signal.SIGKILL, -signal.SIGTERM}, f"{it}: {status}: {member.output[-1500:]}"
            starts[member.name] += 1
            assert starts[member.name] <= RUNS, f"{it}: {member.output[-1500:]}"
            time.sleep(0.3)
            member.start(*KNOBS)
        time.sleep(0.1)
    raise AssertionError(f"{it}: not there: " + "\n".join(member.output[-800:] for member in found.members))


def _judge(it: Round, hub: Hub, skip: int) -> None:
    """Compare the hub's transfer log with what may be read twice."""
    size = sum(map(len, hub.files.values()))
    shard = max(map(len, hub.files.values()))
    for answers in hub.bodies(skip).values():
        it.spent += sum(sent for _, sent, _ in answers)
    it.spent -= size
    # What a pull has on its way: a piece for each of its workers. A host that is lost may have been the only
    # one with what it read itself; whoever hands out zeros is as good as lost for what it read.
    for act in it.did[2:]:
        if act in {"kill", "term", "silence"}:
            it.allowed += 4 * PIECE
        if act in {"silence", "power", "zeros"}:
            it.allowed += size // 2 + 4 * PIECE
    # A spoiled file is read again as a whole, by one host; a cut connection costs what it had sent.
    if it.did[1] == "corrupt":
        it.allowed += 2 * 2 * shard
    if it.did[1] in {"cut", "stall"}:
        it.allowed += 2 * 2 * PIECE
    # Two hosts that take over the same piece in the same moment.
    it.allowed += 2 * PIECE
    assert it.spent <= it.allowed, str(it)

"""A renewal of the sharing secret, killed at any point, is completed correctly by the next command."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from minimax_metal.host.weights.share.renewal import DROP, FOUND, RENEW, renewed

FIRST, OLD = "ab12cd34" * 8, "1f2e3d4c" * 8
NOW = 1_800_000_000.0
HOSTS = ("a", "b", "c")


class Host:
    """A host's files, and those with which its piece server was started; times are counted steps."""

    def __init__(self, secret: str, generation: int, holders: Sequence[str]) -> None:
        self.files = {
            "secret": secret,
            "note": json.dumps({"generation": generation, "holders": list(holders), "renewed": NOW}),
        }
        self.written, self.started, self.served = 0, 1, secret

    def read(self, name: str) -> dict[str, Any]:
        contents = [self.files["secret"], self.files["note"]]
        slurped = [{"content": base64.b64encode(one.encode()).decode()} for one in contents]
        return {"inventory_hostname": name, FOUND: {"results": slurped}}


class Fleet:
    """The tasks of roles/model_weights/tasks/rotate.yml, one host at a time, in any order of hosts."""

    def __init__(self, holders: Sequence[str] = HOSTS) -> None:
        self.hosts = {name: Host(f"{OLD}\n{FIRST}\n", 3, holders) for name in HOSTS}
        self.clock = 1
        self.fresh = (f"{number:08x}{'89abcdef' * 7}" for number in itertools.count(1))

    def play(self, do: str, order: Sequence[str]) -> Iterator[str]:
        """Run the steps; the run is killed when its caller stops asking."""
        rows = [host.read(name) for name, host in self.hosts.items()]
        chosen = renewed(rows, HOSTS, next(self.fresh), NOW + self.clock, do)
        changed = set()
        for file in ("secret", "note"):
            for name in order:
                host = self.hosts[name]
                if host.files[file] != chosen[file]:
                    self.clock += 1
                    host.files[file] = chosen[file]
                    if file == "secret":
                        host.written = self.clock
                        changed.add(name)
                yield f"{file} {name}"
        for name in order:
            host, self.clock = self.hosts[name], self.clock + 1
            if name in changed or host.written > host.started:
                host.started, host.served = self.clock, host.files["secret"]
            yield f"server {name}"


def cases() -> Iterator[tuple[str, tuple[str, ...], int]]:
    for do in (RENEW, DROP):
        for order in (HOSTS, HOSTS[::-1], ("b", "c", "a")):
            for steps in range(10):
                yield do, order, steps


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize(("do", "order", "steps"), list(cases()))
def test_finish_after_a_run_that_was_killed_anywhere(
    do: str, order: Sequence[str], steps: int, gone: bool
) -> None:
    fleet = Fleet((*HOSTS, "gone") if gone else HOSTS)
    reached = list(itertools.islice(fleet.play(do, order), steps))
    list(fleet.play(DROP, HOSTS))
    left = {host.files["secret"] for host in fleet.hosts.values()}
    assert len(left) == 1
    assert {host.served for host in fleet.hosts.values()} == left, "a server goes on with another secret"
    (secret,) = left
    assert len(secret.split()) == 1
    if gone or (do == RENEW and reached):
        assert secret.strip() != OLD, "the renewal is lost"
    assert FIRST not in secret
    before = {name: (dict(host.files), host.started) for name, host in fleet.hosts.items()}
    list(fleet.play(DROP, HOSTS))
    assert {name: (dict(host.files), host.started) for name, host in fleet.hosts.items()} == before


@pytest.mark.parametrize("steps", range(1, 10))
def test_a_renewal_that_was_killed_is_done_again_and_cuts_no_pull(steps: int) -> None:
    fleet = Fleet()
    list(itertools.islice(fleet.play(RENEW, HOSTS[::-1]), steps))
    list(fleet.play(RENEW, HOSTS))
    (secret,) = {host.files["secret"] for host in fleet.hosts.values()}
    assert {host.served for host in fleet.hosts.values()} == {secret}
    current, before = secret.split()
    assert OLD not in {current, FIRST}
    # Until all were reached, pulls had none but the old one.
    assert (before == OLD) == (steps < len(HOSTS))


def test_a_play_for_the_weights_ends_a_renewal_that_was_killed() -> None:
    fleet = Fleet()
    list(itertools.islice(fleet.play(RENEW, ("c", "b", "a")), 1))
    list(fleet.play("", HOSTS))
    (secret,) = {host.files["secret"] for host in fleet.hosts.values()}
    assert secret == fleet.hosts["a"].served
    assert secret.split()[1:] == [OLD], "the old one is valid for a day from now"

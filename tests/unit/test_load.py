"""The load generator's plan and its reconciliation; against a simulated engine, once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.load import Request, plan, reconcile, summary
from tests.support.simulated import simulated_engine

ROOT = Path(__file__).parents[2]


def test_every_run_has_streams_plain_answers_and_long_ones() -> None:
    kinds = Counter(request.kind for request in plan(200, 20, 900, 0.05, "r"))
    assert kinds == {"long": 10, "stream": 90, "plain": 100}
    assert len({request.id for request in plan(200, 20, 900, 0.05, "r")}) == 200
    assert {request.kind for request in plan(10, 20, 900, 0.0, "r")} == {"stream", "plain"}


def write(path: Path, entries: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


WHOLE = [{"id": "r-0", "event": "received"}, {"id": "r-0", "event": "whole"}]
REFUSED = [{"id": "r-0", "event": "received"}, {"id": "r-0", "event": "refused"}]
ABORTED = [{"id": "r-0", "event": "received"}, {"id": "r-0", "event": "aborted"}]


@pytest.mark.parametrize(
    ("fate", "one", "other", "words"),
    [
        ("whole", WHOLE, [], None),
        ("whole", REFUSED, WHOLE, None),
        ("refused", REFUSED, REFUSED, None),
        ("failed", [], [], None),
        ("truncated", ABORTED, [], None),
        ("whole", WHOLE, WHOLE, "complete for the client, on servers {'received': 2, 'whole': 2}"),
        ("whole", ABORTED, WHOLE, "complete for the client"),
        ("whole", [], [], "complete for the client"),
        ("failed", WHOLE, [], "failed for the client, complete on a server"),
        ("whole", WHOLE[:1], WHOLE, "received 2 times, ended 1 times"),
        ("whole", WHOLE, [{"id": "r-9", "event": "received"}], "r-9: seen by a server"),
        ("whole", WHOLE, [{"id": "other-9", "event": "received"}], None),
    ],
)
def test_client_and_servers_are_compared_one_by_one(
    fate: str, one: list[dict[str, object]], other: list[dict[str, object]], words: str | None, tmp_path: Path
) -> None:
    client = write(tmp_path / "load.jsonl", [{"id": "r-0", "fate": fate}])
    wrong = reconcile(client, [write(tmp_path / "a.jsonl", one), write(tmp_path / "b.jsonl", other)])
    assert bool(wrong) == bool(words)
    assert words is None or words in wrong[0]


def test_what_was_not_whole_is_counted() -> None:
    requests = [Request("r-0", "plain", 5, sent=1.0, ended=2.0, fate=fate) for fate in ("whole", "truncated")]
    said = summary(requests)
    assert (said["requests"], said["whole"], said["truncated"], said["failed"]) == (2, 1, 1, 0)


def test_a_run_on_a_simulated_engine_adds_up(tmp_path: Path) -> None:
    bounds = ("--max-running-requests", "2", "--max-queued-requests", "0")
    with simulated_engine(tmp_path, *bounds, environment={"SIMULATED_TOKEN_SECONDS": "0.01"}) as engine:
        log = tmp_path / "load.jsonl"
        done = subprocess.run(
            [sys.executable, ROOT / "benchmarks/load.py", "run",
             "--url", engine.url, "--model", "MiniMaxAI/MiniMax-M2.5",
             "--rate", "200", "--requests", "30", "--tokens", "30", "--long-share", "0.1",
             "--long-tokens", "60", "--log", log],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        said = json.loads(done.stdout)
        assert done.returncode == 1, done.stderr  # some were refused, and that was not allowed
        assert said["whole"] + said["refused"] == 30
        assert said["whole"] >= 2
        assert said["refused"] >= 1
        assert reconcile(log, [engine.log]) == []
        assert len(engine.events("whole")) == said["whole"]


def test_a_load_that_is_ended_counts_what_it_sent(tmp_path: Path) -> None:
    with simulated_engine(tmp_path, environment={"SIMULATED_TOKEN_SECONDS": "0.01"}) as engine:
        log = tmp_path / "load.jsonl"
        load = subprocess.Popen(
            [sys.executable, ROOT / "benchmarks/load.py", "run",
             "--url", engine.url, "--model", "MiniMaxAI/MiniMax-M2.5",
             "--rate", "50", "--requests", "100000", "--tokens", "30", "--long-tokens", "60", "--log", log],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while len(engine.events("whole")) < 5 and time.monotonic() < deadline:
                assert load.poll() is None
                time.sleep(0.1)
            load.send_signal(signal.SIGTERM)
            said = json.loads(load.communicate(timeout=60)[0])
        finally:
            load.kill()
        assert load.returncode == 0
        assert 5 <= said["requests"] == said["whole"] == len(log.read_text().splitlines())
        assert reconcile(log, [engine.log]) == []

"""Whether a replica works as well as before."""

from __future__ import annotations

import http.server
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from minimax_metal.common.errors import UserError
from minimax_metal.host import soak
from minimax_metal.host.soak import Figures, parse, worse
from minimax_metal.plan.model import Plan
from minimax_metal.plan.rollout.state import Wishes, begin
from minimax_metal.plan.rollout.works import Work, compared_by
from tests.support.plugins import load_plugin
from tests.support.simulated import simulated_engine

SCRAPE = """
# TYPE sglang:http_responses_total counter
sglang:http_responses_total{endpoint="/v1/chat/completions",method="POST",status_code="200"} 90.0
sglang:http_responses_total{endpoint="/v1/chat/completions",method="POST",status_code="500"} 7.0
sglang:http_responses_total{endpoint="/v1/models",method="GET",status_code="500"} 40.0
sglang:http_responses_total{endpoint="/v1/loads",method="GET",status_code="200"} 5000.0
sglang:http_responses_total{endpoint="/health",method="GET",status_code="503"} 40.0
sglang:num_aborted_requests_total{model_name="m"} 3.0
sglang:time_to_first_token_seconds_sum{model_name="m"} 45.0
sglang:time_to_first_token_seconds_count{model_name="m"} 90.0
sglang:inter_token_latency_seconds_sum{model_name="m"} 9.0
sglang:inter_token_latency_seconds_count{model_name="m"} 900.0
"""
BEFORE = Figures(
    answers=1000, failures=0, first_sum=500, first_count=1000, between_sum=100, between_count=10_000
)


def test_a_scrape_is_read() -> None:
    found = parse(SCRAPE)
    assert found == Figures(97, 10, 45.0, 90, 9.0, 900)
    assert found.first == 0.5
    assert found.between == 0.01
    assert parse("process_cpu_seconds_total 1.0") is None


def test_what_was_counted_before_is_taken_off_unless_the_engine_began_anew() -> None:
    assert Figures(answers=30).since(Figures(answers=10)) == Figures(answers=20)
    assert Figures(answers=5).since(Figures(answers=10)) == Figures(answers=5)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (Figures(answers=100), None),
        (Figures(answers=100, failures=1), None),
        (Figures(answers=100, failures=2), "found 2 of 100 answers failed, expected at most 1.0%"),
        (
            Figures(answers=100, first_sum=150, first_count=100),
            "the first token at 1.500 s, 0.500 s before",
        ),
        (Figures(answers=10, first_sum=15, first_count=10), None),
        (Figures(answers=100, between_sum=100, between_count=1000), "the inter-token latency at 0.100 s"),
        # Twice as long, yet by less than a mean over few requests can tell.
        (Figures(answers=100, between_sum=30, between_count=1000), None),
    ],
)
def test_worse_than_before_is_said_in_one_line(now: Figures, said: str | None) -> None:
    found = worse(now, BEFORE, errors=0.01 if said is None or "%" in said else 0.5, latency=2.0, requests=20)
    assert (found is None) if said is None else (found is not None and said in found)


def test_a_host_that_served_nothing_before_is_held_to_the_limit_alone() -> None:
    assert worse(Figures(answers=100, first_sum=900, first_count=100), None, 0.01, 2.0, 20) is None
    assert worse(Figures(answers=100, failures=3), None, 0.01, 2.0, 20) is not None


class Engine(http.server.BaseHTTPRequestHandler):
    """Answers until it has answered ``good`` requests, and 500 afterwards; its metrics count them."""

    good = 10**9
    answered = failed = 0
    lock = threading.Lock()

    def do_GET(self) -> None:
        labels = 'endpoint="/v1/chat/completions",method="POST",status_code="{}"'
        line = f"sglang:http_responses_total{{{{{labels}}}}} {{}}\n"
        body = (line.format(200, Engine.answered) + line.format(500, Engine.failed)).encode()
        self.reply(200, body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        with Engine.lock:
            fine = Engine.answered < Engine.good and self.headers["Authorization"] == "Bearer key"
            Engine.answered += fine
            Engine.failed += not fine
        self.reply(200 if fine else 500, b"{}")

    def reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an engine that counts."""
    monkeypatch.setattr(Engine, "answered", 0)
    monkeypatch.setattr(Engine, "failed", 0)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_trial_finds_what_fails_under_load(
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    key = tmp_path_factory.mktemp("key") / "api_key"
    key.write_text("key\n")
    words = ["trial", url, "--model", "m", "--count", "30", "--concurrency", "8", "--api-key-file", str(key)]
    assert soak.main(words) == 0
    assert "30 trial requests, 8 at once" in capsys.readouterr().out
    monkeypatch.setattr(Engine, "good", 40)
    assert soak.main(words) == 1
    assert "found 20 of 30 trial requests failed (HTTP 500)" in capsys.readouterr().out


def test_a_watch_ends_as_soon_as_a_replica_does_worse(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(soak, "PAUSE_SECONDS", 0.05)
    assert soak.main(["figures", url]) == 0
    before = capsys.readouterr().out
    assert json.loads(before)["answers"] == 0
    earlier = json.dumps({"before": json.loads(before), "batch": None})
    monkeypatch.setattr("sys.stdin", io.StringIO(earlier))
    assert soak.main(["watch", url, "--seconds", "0.2"]) == 0
    said, seen = capsys.readouterr().out.splitlines()
    assert said.startswith("0 answers, 0 failed")
    assert Figures(**json.loads(seen)) == Figures()

    real = soak.scrape
    looked: list[Figures | None] = []

    def then_fail(url: str) -> Figures | None:
        looked.append(real(url))
        Engine.failed += 5 if len(looked) == 1 else 0
        return looked[-1]

    monkeypatch.setattr(soak, "scrape", then_fail)
    monkeypatch.setattr("sys.stdin", io.StringIO(earlier))
    assert soak.main(["watch", url, "--seconds", "60"]) == 1
    assert "found 5 of 5 answers failed" in capsys.readouterr().out


def test_an_engine_that_dies_during_the_watch_is_worse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(soak, "PAUSE_SECONDS", 0.01)
    answers = iter([Figures(), None, None, None])
    monkeypatch.setattr(soak, "scrape", lambda _url: next(answers))
    monkeypatch.setattr("sys.stdin", io.StringIO("null"))
    assert soak.main(["watch", "http://127.0.0.1:1", "--seconds", "60"]) == 1
    assert "three times in a row" in capsys.readouterr().out


def test_a_replica_is_compared_with_the_batch_before_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(soak, "PAUSE_SECONDS", 0.01)
    answers = iter([Figures(), *[Figures(answers=50, first_sum=100, first_count=50)] * 100])
    monkeypatch.setattr(soak, "scrape", lambda _url: next(answers))
    # Before the change this host was as slow; the others with the new release are not.
    slow = asdict(Figures(answers=50, first_sum=100, first_count=50))
    quick = asdict(Figures(answers=50, first_sum=5, first_count=50))
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"before": slow, "batch": quick})))
    assert soak.main(["watch", "http://127.0.0.1:1", "--seconds", "60"]) == 1
    assert "at 2.000 s, 0.100 s in the previous batch" in capsys.readouterr().out


def test_another_input_is_refused() -> None:
    with pytest.raises(UserError, match="found no earlier metrics in the input"):
        soak.read_earlier("[1]")
    assert soak.read_earlier("") == (None, None)


def test_a_replica_is_compared_with_its_like_in_the_last_batch_that_had_one() -> None:
    filters = load_plugin("filter/metal_rollout")
    large, small = (
        compared_by(Plan.of_record({"model": {"served_name": "m"}, "gpus": {"count": count, "model": "H20"}}))
        for count in (8, 4)
    )
    works = [
        Work(host, "switch", serving=1, pools=("m",), compared_by=kind)
        for host, kind in (("a", large), ("b", large), ("c", small), ("d", large))
    ]
    printed = {"stdout_lines": ["10 answers, 0 failed", json.dumps(asdict(Figures(answers=10)))]}
    done = {"__rollout_result": {"result": "done", "message": ""}}
    hostvars = {
        "a": done | {"__rollout_soak": {"results": [printed, printed]}},
        "b": done | {"__rollout_soak": {"results": [printed, printed]}},
        "c": done | {"__rollout_soak": {"results": [printed]}},
        # What an answer of another shape counts, nobody knows; one that failed its soak is no measure.
        "d": {"__rollout_result": {"result": "returned", "message": "slow"}}
        | {"__rollout_soak": {"results": [printed]}},
    }
    rollout = begin(works, [], Wishes(batches=(2, 1, 1), min_ready=0)).as_dict()
    seen = {"outside": {}, "asked": False}
    for batch in (["a", "b"], ["c"], ["d"]):
        rollout = filters.metal_rollout_before(rollout, batch, hostvars, list(hostvars), seen)
        rollout = filters.metal_rollout_after(rollout, hostvars, list(hostvars))
    assert {kind: count["answers"] for kind, count in rollout["counted"].items()} == {large: 40, small: 10}
    assert rollout["stop"] == "d did not get its release"
    text = filters.metal_soak_input(json.dumps(asdict(Figures(answers=7))), large, rollout["counted"])
    assert soak.read_earlier(text) == (Figures(answers=7), Figures(answers=40))
    unknown = filters.metal_soak_input("null", "another", rollout["counted"])
    assert soak.read_earlier(unknown) == (None, None)


def test_the_simulated_engine_counts_what_a_soak_looks_at(tmp_path: Path) -> None:
    # So that a bad release can be shown on lab hosts: 500s after the first three, and a slow pace.
    environment = {"SIMULATED_FAULTS": "late_errors:3", "SIMULATED_TOKEN_SECONDS": "0.03"}
    with simulated_engine(tmp_path, environment=environment) as engine:
        empty = soak.scrape(engine.url)
        words = [
            "trial",
            engine.url,
            "--model",
            "MiniMaxAI/MiniMax-M2.5",
            "--count",
            "5",
            "--concurrency",
            "1",
        ]
        assert soak.main(words) == 1
        counted = soak.scrape(engine.url)
    assert empty == Figures()
    assert counted is not None
    assert (counted.answers, counted.failures) == (5, 2)
    assert counted.first_count == 3
    assert counted.first is not None
    assert counted.first >= 0.03
    assert counted.between is not None
    assert counted.between >= 0.03

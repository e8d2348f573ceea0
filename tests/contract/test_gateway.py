"""`metal gateway` against the real gateway (smg, from the production lock), in front of simulated engines."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from minimax_metal.common.files import write_atomic
from tests.support.gateway import ADMIN_KEY, CLIENT_KEY, MODEL, RealGateway, real_gateway, words
from tests.support.simulated import SimulatedEngine, free_port, simulated_engine

pytestmark = pytest.mark.slow
LONG = 1500  # tokens of 20 ms: 30 s


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[tuple[SimulatedEngine, SimulatedEngine]]:
    keyed = tmp_path / "engine.yaml"
    keyed.write_text(f'api-key: "{CLIENT_KEY}"\nadmin-api-key: "other-{ADMIN_KEY}"\n')
    pace = {"SIMULATED_TOKEN_SECONDS": "0.02"}
    arguments = ("--config", str(keyed))
    with (
        simulated_engine(tmp_path, *arguments, environment=pace) as one,
        simulated_engine(tmp_path, *arguments, environment=pace) as other,
    ):
        yield one, other


@pytest.fixture
def gateway(tmp_path: Path, engines: tuple[SimulatedEngine, SimulatedEngine]) -> Iterator[RealGateway]:
    with real_gateway(tmp_path, *(engine.url for engine in engines)) as running:
        done = running.metal("sync")
        assert done.stdout.strip() == "2 workers, 0 drained, all ready: unchanged", done
        yield running


def wait(what: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.2)


def test_a_drain_waits_for_what_runs_and_lets_nothing_new_in(
    gateway: RealGateway, engines: tuple[SimulatedEngine, SimulatedEngine]
) -> None:
    running = gateway.ask_meanwhile("long", LONG)
    wait(lambda: any(engine.events("first") for engine in engines))
    busy = next(engine for engine in engines if engine.events("first"))
    idle = next(engine for engine in engines if engine is not busy)

    soon = gateway.metal("drain", "--worker", busy.url, "--timeout", "8")
    assert (soon.returncode, soon.stdout.strip().rpartition(" ")[2]) == (1, "changed")
    assert "requests in flight after 8 s: 1" in soon.stdout
    for number in range(6):
        assert gateway.ask(f"new-{number}") == 200
    wait(lambda: set(idle.events("whole")) >= {f"new-{number}" for number in range(6)})
    assert busy.events("received") == ["long"]

    # smg has forgotten the worker by now: only the engine's own count keeps this from returning too early.
    done = gateway.metal("drain", "--worker", busy.url, "--timeout", "90")
    assert (done.returncode, done.stdout.strip().rpartition(" ")[2]) == (0, "unchanged"), done
    wait(lambda: busy.events("whole") == ["long"])
    running.join()
    # By its words: smg merges a chat stream's pieces into events of some 80 characters, so bytes say nothing.
    streamed = [answer for answer in gateway.answers if words(answer[1]) != 5]
    assert [(status, words(text)) for status, text in streamed] == [(200, LONG)]
    assert streamed[0][1].endswith("data: [DONE]\n\n")

    # Started again, the gateway keeps it out.
    gateway.stop()
    gateway.start()
    assert gateway.metal("sync").stdout.strip() == "1 workers, 1 drained, all ready: unchanged"
    assert gateway.workers()[busy.url]["status"] == "out"

    back = gateway.metal("undrain", "--worker", busy.url)
    assert (back.returncode, back.stdout.strip().rpartition(" ")[2]) == (0, "changed"), back
    again = gateway.metal("undrain", "--worker", busy.url)
    assert (again.returncode, again.stdout.strip().rpartition(" ")[2]) == (0, "unchanged"), again
    idle_drained = gateway.metal("drain", "--worker", idle.url, "--timeout", "60")
    assert idle_drained.returncode == 0
    assert gateway.ask("after") == 200
    wait(lambda: busy.events("whole")[-1] == "after")


def test_keys_are_asked_for_and_shown_nowhere(gateway: RealGateway) -> None:
    assert gateway.ask("right") == 200
    assert gateway.ask("wrong", key="wrong-key-0123456789") == 401
    for path, key, expected in (
        ("/workers", CLIENT_KEY, 401),
        ("/workers", "", 401),
        ("/workers", ADMIN_KEY, 200),
    ):
        request = urllib.request.Request(gateway.url + path)  # noqa: S310  # loopback
        request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310  # loopback
                status = answer.status
        except urllib.error.HTTPError as error:
            status = error.code
        assert status == expected, (path, key, status)
    assert gateway.process is not None
    for name in ("cmdline", "environ"):
        shown = Path(f"/proc/{gateway.process.pid}/{name}").read_bytes()
        assert CLIENT_KEY.encode() not in shown
        assert ADMIN_KEY.encode() not in shown
    for file in gateway.directory.iterdir():
        if file.is_file() and file.name != "engine.yaml":
            assert CLIENT_KEY not in file.read_text(errors="replace"), file
            assert ADMIN_KEY not in file.read_text(errors="replace"), file


def test_models_are_pools_of_their_own_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    second = ("--served-model-name", "MiniMaxAI/MiniMax-M3")
    with (
        simulated_engine(tmp_path) as m2,
        simulated_engine(tmp_path, *second) as m3,
        real_gateway(tmp_path, m2.url, m3.url) as gateway,
    ):
        assert gateway.metal("sync").returncode == 0
        for number in range(3):
            assert gateway.ask(f"m2-{number}") == 200
            assert gateway.ask(f"m3-{number}", model="MiniMaxAI/MiniMax-M3") == 200
        assert m2.events("whole") == ["m2-0", "m2-1", "m2-2"]
        assert m3.events("whole") == ["m3-0", "m3-1", "m3-2"]
        assert gateway.ask("nobody", model="someone/else") == 404
        with urllib.request.urlopen(gateway.metrics_url, timeout=20) as answer:  # noqa: S310  # loopback
            figures = answer.read().decode()
        assert f'smg_worker_requests_total{{worker="{m3.url}",model="MiniMaxAI/MiniMax-M3"}} 3' in figures


def test_a_worker_that_comes_back_is_taken_back(tmp_path: Path) -> None:
    with simulated_engine(tmp_path) as one, real_gateway(tmp_path, one.url) as gateway:
        gateway.metal("sync")
        port = int(one.url.rpartition(":")[2])
        with simulated_engine(tmp_path) as other:
            gateway.configure(one.url, other.url)
            done = gateway.metal("sync")
            assert done.stdout.strip() == "2 workers, 0 drained, all ready: changed", done
            one.process.kill()
            one.process.wait()
            wait(lambda: gateway.workers()[one.url]["status"] != "ready")
            assert gateway.ask("meanwhile") == 200
            with simulated_engine(tmp_path, port=port):
                wait(lambda: gateway.workers()[one.url]["status"] == "ready", 120)


def test_a_drain_of_what_is_not_there_says_so(gateway: RealGateway) -> None:
    done = gateway.metal("drain", "--worker", "http://gpu77:8000")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "metal gateway: http://gpu77:8000 is not a worker of this gateway; known are "
    )
    assert json.loads((gateway.directory / "workers.json").read_text())["version"] == 1


def test_under_overload_no_replica_takes_more_than_its_planned_share(tmp_path: Path) -> None:
    """Two replicas that run 2 and 6 requests at a time; sixty simultaneous clients."""
    pace = {"SIMULATED_TOKEN_SECONDS": "0.02"}
    small = ("--max-running-requests", "2", "--max-queued-requests", "2")
    large = ("--max-running-requests", "6", "--max-queued-requests", "6")
    with (
        simulated_engine(tmp_path, *small, environment=pace) as two,
        simulated_engine(tmp_path, *large, environment=pace) as six,
        real_gateway(tmp_path, two.url, six.url, retries=3, queued_per_worker=2) as gateway,
    ):
        gateway.metal("sync")
        threads = [gateway.ask_meanwhile(f"many-{number}", 50) for number in range(60)]
        for thread in threads:
            thread.join()
        statuses = [status for status, _ in gateway.answers]
        # 503: no replica has room, says the gateway. 429: the queue of each that it asked was full.
        assert 200 in statuses
        assert set(statuses) & {429, 503}
        assert set(statuses) <= {200, 429, 503}
        assert statuses.count(200) == len(two.events("whole")) + len(six.events("whole"))
        for engine, most in ((two, 4), (six, 12)):
            assert most_at_once(engine) <= most
        assert len(two.events("whole")) < len(six.events("whole"))


def most_at_once(engine: SimulatedEngine) -> int:
    """Return the largest number of accepted requests that an engine had at a time, running and waiting."""
    entries = [json.loads(line) for line in engine.log.read_text().splitlines()]
    refused = {entry["id"] for entry in entries if entry["event"] == "refused"}
    now = most = 0
    for entry in entries:
        if entry["id"] not in refused:
            now += {"received": 1, "whole": -1, "aborted": -1}.get(entry["event"], 0)
            most = max(most, now)
    return most


def test_a_burst_leaves_a_worker_in_service(tmp_path: Path) -> None:
    """150 at once for 20 running and 20 waiting. When a full queue was a 503, the circuit breaker kept the
    worker out for 58 s; the guard answers 429, which smg does not count as a failure of the worker.
    """
    limits = ("--max-running-requests", "20", "--max-queued-requests", "20")
    pace = {"SIMULATED_TOKEN_SECONDS": "0.02"}
    with (
        simulated_engine(tmp_path, *limits, environment=pace) as one,
        real_gateway(tmp_path, one.url) as gateway,
    ):
        gateway.metal("sync")
        threads = [gateway.ask_meanwhile(f"burst-{number}", 50) for number in range(150)]
        for thread in threads:
            thread.join()
        statuses = [status for status, _ in gateway.answers]
        assert statuses.count(200) >= 40
        assert statuses.count(429) > 10  # what opened the breaker: its threshold is 10
        began = time.monotonic()
        assert gateway.ask("after") == 200
        assert time.monotonic() - began < 5
        assert gateway.workers()[one.url]["status"] == "ready"


def test_a_full_worker_is_passed_over_while_another_has_room(tmp_path: Path) -> None:
    pace = {"SIMULATED_TOKEN_SECONDS": "0.02"}
    with (
        simulated_engine(
            tmp_path, "--max-running-requests", "1", "--max-queued-requests", "1", environment=pace
        ) as full,
        simulated_engine(tmp_path, environment=pace) as free,
        real_gateway(tmp_path, full.url, free.url, retries=3, policy="round_robin") as gateway,
    ):
        gateway.metal("sync")
        away = RealGateway(tmp_path, full.url, "", ())  # past the gateway
        busy = [away.ask_meanwhile(f"direct-{number}", 250) for number in range(2)]
        wait(lambda: len(full.events("received")) == 2)
        threads = [gateway.ask_meanwhile(f"many-{number}", 5) for number in range(20)]
        for thread in [*threads, *busy]:
            thread.join()
        assert [status for status, _ in gateway.answers] == [200] * 20
        assert full.events("refused")


OPEN = {"/health", "/health_generate", "/liveness", "/readiness", "/v1/models", "/engine_metrics"}
"""Routes that smg 1.13 answers without a key (docs/gateway.md lists them)."""
ASKED = {
    *OPEN, "/", "/docs", "/flush_cache", "/get_loads", "/get_model_info", "/get_server_info", "/ha/status",
    "/metrics", "/model_info", "/openapi.json", "/parse/function_call", "/server_info", "/v1/conversations/x",
    "/v1/loads", "/v1/models/x", "/v1/realtime", "/v1/responses/x", "/v1/tokenizers", "/wasm", "/workers",
}  # fmt: skip


def ask(gateway: RealGateway, method: str, path: str, body: Any = None, **headers: str) -> int:
    connection = http.client.HTTPConnection(gateway.url.removeprefix("http://"), timeout=60)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with contextlib.closing(connection):
        # A server that refuses a body before it is read may close the connection under whoever still sends.
        with contextlib.suppress(ConnectionError):
            connection.request(method, path, body, named, encode_chunked=not isinstance(body, (str, bytes)))
        try:
            return connection.getresponse().status
        except (ConnectionError, http.client.HTTPException):
            return 0


def test_what_is_open_without_a_key_is_known(gateway: RealGateway) -> None:
    assert {path for path in ASKED if ask(gateway, "GET", path) == 200} == OPEN
    for path in ("/v1/chat/completions", "/v1/messages", "/generate", "/v1/completions", "/v1/responses"):
        assert ask(gateway, "POST", path, "{}", Content_Type="application/json") == 401
    # smg takes a key in Authorization alone; engines take it in x-api-key too.
    assert ask(gateway, "POST", "/v1/messages", "{}", X_Api_Key=CLIENT_KEY) == 401


def test_a_request_that_is_too_large_is_refused_with_and_without_its_length(
    tmp_path: Path, engines: tuple[SimulatedEngine, SimulatedEngine]
) -> None:
    with real_gateway(tmp_path, engines[0].url, max_request_mib=2) as gateway:
        gateway.metal("sync")
        headers = {"Authorization": f"Bearer {CLIENT_KEY}", "Content_Type": "application/json"}
        path = "/v1/chat/completions"
        assert ask(gateway, "POST", path, b"x" * 2**22, **headers) in {0, 413}
        assert ask(gateway, "POST", path, (b"x" * 2**18 for _ in range(20)), **headers) in {0, 413}
        assert ask(gateway, "POST", path, b"x" * 2**22) in {0, 401, 413}
        assert gateway.ask("small") == 200
        assert engines[0].events("received") == ["small"]


class Impostor(BaseHTTPRequestHandler):
    """An impostor that took the port of an engine that is down, and records what it receives."""

    told: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.told.append(f"{self.path.partition('?')[0]} {self.headers.get('Authorization')}")
        named = json.dumps({"data": [{"id": MODEL}], "served_model_name": MODEL, "proof": "0" * 64}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(named)))
        self.end_headers()
        self.wfile.write(named)

    do_POST = do_GET  # noqa: N815  # the name that the server calls

    def log_message(self, *_: Any) -> None:
        pass


def test_who_took_an_engines_port_gets_neither_keys_nor_prompts(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "api_key").write_text(CLIENT_KEY)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    own = {"METAL_SECRETS": str(secrets), "METAL_IDENTITY": url}
    watch = [sys.executable, "-m", "minimax_metal.cli", "gateway", "watch", "--config"]
    with (
        simulated_engine(tmp_path, port=port, environment=own) as one,
        real_gateway(tmp_path, url, proves=True, health_interval_seconds=1) as gateway,
    ):
        assert "0 drained, not ready" not in gateway.metal("sync").stdout
        watching = subprocess.Popen([*watch, str(gateway.configuration)])
        try:
            assert gateway.ask("proven") == 200
            one.process.kill()
            one.process.wait()
            wait(lambda: gateway.workers()[url]["status"] == "unproven", 30)
            with ThreadingHTTPServer(("127.0.0.1", port), Impostor) as taken:
                threading.Thread(target=taken.serve_forever, args=(0.05,), daemon=True).start()
                deadline = time.monotonic() + 8
                while time.monotonic() < deadline:
                    assert gateway.ask("secret") in {404, 503}
                    time.sleep(0.5)
                for verb in (("sync", "--timeout", "2"), ("undrain", "--worker", url, "--timeout", "2")):
                    gateway.metal(*verb)
                    assert gateway.ask("secret") in {404, 503}
                taken.shutdown()
            # Asked for its proof, without a key, and for nothing else.
            assert set(Impostor.told) == {"/metal/identity None"}
            with simulated_engine(tmp_path, port=port, environment=own):
                wait(lambda: gateway.workers()[url]["status"] == "ready", 60)
                assert gateway.ask("again") == 200
        finally:
            watching.terminate()
            watching.wait()


def test_both_keys_open_the_gateway_and_its_engine_while_they_are_changed(tmp_path: Path) -> None:
    old, new, manager = CLIENT_KEY, "newer-client-key-0123456789", "engine-managers-key-0123"
    keys = tmp_path / "engine-keys"
    keys.mkdir()
    (keys / "engine.yaml").write_text(f'api-key: "{old}"\nadmin-api-key: "{manager}"\n')

    def engine_takes(*accepted: str) -> None:
        text = json.dumps({"api_key": accepted, "admin_api_key": [manager]})
        write_atomic(keys / "accepted.json", text, mode=0o640)

    engine_takes(old, new)
    with (
        simulated_engine(
            tmp_path, "--config", str(keys / "engine.yaml"), environment={"METAL_SECRETS": str(keys)}
        ) as engine,
        real_gateway(tmp_path, engine.url) as gateway,
    ):
        gateway.stop()
        # As the role writes it: the key in use first.
        (gateway.directory / "keys/api_key").write_text(f"{new}\n{old}\n")
        (gateway.directory / "keys/admin_key").write_text(f"{ADMIN_KEY}\nolder-{ADMIN_KEY}\n")
        gateway.start()
        done = gateway.metal("sync")
        assert "all ready" in done.stdout, done
        assert [gateway.ask("both", key=key) for key in (old, new, "nobodys-key-0123456789")] == [
            200,
            200,
            401,
        ]
        # The old one stops working with the engine's file, before the gateway is started anew.
        engine_takes(new)
        assert [gateway.ask("done", key=key) for key in (old, new)] == [401, 200]
        assert gateway.process is not None
        shown = Path(f"/proc/{gateway.process.pid}/cmdline").read_bytes()
        assert not [key for key in (old, new) if key.encode() in shown]

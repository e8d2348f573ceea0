"""Drain, hang and keys: the supervisor with an engine of the real one's server and plug-in interface."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from minimax_metal.host.engine import supervise
from minimax_metal.host.engine.control import EXIT_STOPPED
from minimax_metal.host.engine.diagnosis import EXIT_NEVER
from minimax_metal.host.engine.drain import Drain
from tests.unit.test_service_supervise import PATIENCE, Run, Starter, gone, starter  # noqa: F401  # a fixture

ENGINE = Path(__file__).parents[1] / "support" / "asgi_engine.py"
USER_KEY, ADMIN_KEY = "canary-user-4c1d", "canary-admin-9b72"


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    directory = tmp_path / "secrets"
    directory.mkdir()
    (directory / "api_key").write_text(USER_KEY + "\n")
    (directory / "admin_api_key").write_text(ADMIN_KEY + "\n")
    return directory


def start(starter: Starter, mode: str, *options: str, stop: float = 30, canary: str = "") -> Run:  # noqa: F811
    import sys

    starter.engine.write_text(ENGINE.read_text())
    run = starter(
        "",
        *options,
        stop=stop,
        command=[sys.executable, str(starter.engine), "{port}", mode],
        environment={"CANARY": canary},
    )
    run.wait_for("READY=1")
    return run


def post(run: Run, path: str) -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", run.port, timeout=PATIENCE)
    try:
        connection.request("POST", path)
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return response.status, response.read().decode(), headers
    finally:
        connection.close()


class Stream(threading.Thread):
    """A slow request, from a thread."""

    def __init__(self, run: Run, seconds: float) -> None:
        super().__init__(daemon=True)
        self.run_, self.seconds = run, seconds
        self.text = ""
        self.begun = threading.Event()

    def run(self) -> None:
        url = f"http://127.0.0.1:{self.run_.port}/generate?{self.seconds}"
        request = urllib.request.Request(url, method="POST")
        with (
            contextlib.suppress(http.client.IncompleteRead),
            urllib.request.urlopen(request, timeout=PATIENCE) as response,  # noqa: S310  # loopback
        ):
            self.text += response.readline().decode()
            self.begun.set()
            self.text += response.read().decode()


@pytest.mark.parametrize("mode", ["good", "unhealthy"])
def test_a_stop_loses_nothing_and_takes_nothing_new(starter: Starter, mode: str) -> None:  # noqa: F811
    run = start(starter, mode)
    stream = Stream(run, 3)
    stream.start()
    assert stream.begun.wait(PATIENCE)
    run.process.send_signal(signal.SIGTERM)
    run.wait_for("requests in flight,")
    status, body, headers = post(run, "/generate?1")
    assert status == 503
    assert json.loads(body)["type"] == "ServiceUnavailableError"
    assert (headers["retry-after"], headers["connection"]) == ("5", "close")
    # What only reads is answered until the end.
    with urllib.request.urlopen(f"http://127.0.0.1:{run.port}/metrics", timeout=PATIENCE) as response:
        assert response.status == 200
    stream.join(PATIENCE)
    assert stream.text.endswith("end\n")
    assert run.process.wait(timeout=PATIENCE) == EXIT_STOPPED
    assert "engine stopped after" in run.said()
    assert starter.reports() == []


def test_a_drain_is_bounded(starter: Starter) -> None:  # noqa: F811
    run = start(starter, "good", stop=1)
    stream = Stream(run, 3600)
    stream.start()
    assert stream.begun.wait(PATIENCE)
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(timeout=PATIENCE) == EXIT_STOPPED
    assert "1 requests did not finish within 1 s: cut off" in run.said()


def test_keys_are_in_nothing_that_the_engine_says(starter: Starter, secrets: Path) -> None:  # noqa: F811
    run = start(starter, "good", "--secrets", str(secrets), canary=USER_KEY)
    request = urllib.request.Request(f"http://127.0.0.1:{run.port}/server_info")  # loopback
    request.add_header("x-api-key", USER_KEY)
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:  # noqa: S310  # loopback
        assert json.load(response) == {"api_key": "***", "tp_size": 4}
    assert "'api_key': '***'" in run.said()
    # A path that the engine itself opens to the clients' key.
    assert [guarded(run, key) for key in (None, USER_KEY, ADMIN_KEY)] == [401, 401, 404]
    run.process.terminate()  # a kill would leave the engine behind
    run.process.wait(timeout=PATIENCE)
    crash = start(starter, "good", "--secrets", str(secrets), canary=ADMIN_KEY)
    assert "'api_key': '***'" in crash.said()
    for place in [run.output, crash.output, *starter.directory.rglob("incidents/*/*.json")]:
        assert USER_KEY not in place.read_text()
        assert ADMIN_KEY not in place.read_text()


def test_an_engine_without_its_guard_is_never_ready(starter: Starter, secrets: Path) -> None:  # noqa: F811
    import sys

    identity = {"METAL_IDENTITY": "http://gpu01:8000"}
    starter.engine.write_text(ENGINE.read_text())
    plain = [sys.executable, str(starter.engine), "{port}", "good"]
    options = ("--secrets", str(secrets))
    run = starter("", *options, command=plain, environment=identity)
    run.wait_for("READY=1")
    run.process.terminate()
    run.process.wait(timeout=PATIENCE)
    # The engine can't load the plug-in, and goes on without it.
    hidden = ["env", "--unset=PYTHONPATH", *plain]
    run = starter("", *options, command=hidden, environment=identity, start=60)
    run.wait_for("STATUS=waiting: the engine answers without its guard (/metal/identity: 404)")
    assert run.process.wait(timeout=PATIENCE) == EXIT_NEVER
    assert not [message for message in run.read() if "READY=1" in message]


def guarded(run: Run, key: str | None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", run.port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request(
            "POST", "/scale_elastic_ep", headers={"Authorization": f"Bearer {key}"} if key else {}
        )
        return connection.getresponse().status


def test_an_engine_that_gets_nowhere_is_ended(starter: Starter) -> None:  # noqa: F811
    run = start(starter, "stall", "--watch-interval", "0.2", "--hang-timeout", "1")
    threading.Thread(target=lambda: _ignore(run), daemon=True).start()
    assert run.process.wait(timeout=PATIENCE) == supervise.EXIT_HUNG
    assert "hung (no token, no progress for" in run.said()
    (report,) = starter.reports()
    assert (report["kind"], report["exit_status"]) == ("hang", supervise.EXIT_HUNG)


def _ignore(run: Run) -> None:
    try:
        post(run, "/generate?1")
    except (OSError, http.client.HTTPException):
        return


def test_a_server_that_no_longer_answers_is_ended(
    starter: Starter,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from minimax_metal.host.engine import health

    # The figures' own time-out, in this process: the rest of the way is tested above.
    monkeypatch.setattr(health, "FIGURES_TIMEOUT_SECONDS", 0.3)
    run = start(starter, "deaf", "--watch-interval", "3600")
    with urllib.request.urlopen(f"http://127.0.0.1:{run.port}/slow_down", timeout=PATIENCE):
        pass
    watch = health.Watch(f"http://127.0.0.1:{run.port}/health", 0.1, 1.0, lambda: 0)
    watch.start()
    assert watch.hung.wait(PATIENCE)
    assert "no answer" in watch.note
    # Deaf to a stop as well: a second request does not wait for it.
    run.process.send_signal(signal.SIGTERM)
    run.wait_for("left to exit")
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(timeout=PATIENCE) == EXIT_STOPPED


def test_work_that_takes_long_is_no_hang(starter: Starter) -> None:  # noqa: F811
    run = start(starter, "good", "--watch-interval", "0.2", "--hang-timeout", "0.5")
    status, body, _ = post(run, "/generate?3")
    assert status == 200
    assert body.endswith("end\n")
    time.sleep(1.0)  # idle: asked for a token at each look
    assert run.process.poll() is None
    assert any("requests running" in message for message in run.read())


def test_a_taken_port_is_said_before_anything_is_loaded(starter: Starter) -> None:  # noqa: F811
    run = start(starter, "good")
    second = starter("", command=["/bin/sleep", "60"], port=run.port)
    assert second.process.wait(timeout=PATIENCE) == 78
    assert f"port {run.port} is taken" in second.said()
    assert f"ss -ltnp 'sport = :{run.port}'" in second.said()
    assert [report["code"] for report in starter.reports()] == ["port"]
    assert run.process.poll() is None


def test_an_engine_that_can_never_start_is_not_started_again(starter: Starter) -> None:  # noqa: F811
    words = (
        "launch_server.py: error: argument --tool-call-parser: invalid choice: 'minimax' (choose from 'auto')"
    )
    run = starter("", command=["/bin/sh", "-c", f"printf '%s\\n' \"{words}\" >&2; exit 2"])
    assert run.process.wait(timeout=PATIENCE) == 78
    assert "invalid choice: 'minimax'" in run.said()
    assert "Traceback" not in run.said()
    assert starter.reports()[0]["code"] == "arguments"


def test_nobody_is_left(starter: Starter) -> None:  # noqa: F811
    run = start(starter, "good")
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(timeout=PATIENCE) == 0
    assert gone(run.process.pid)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{run.port}/health", timeout=1)


def test_nothing_that_the_engine_leaves_beside_the_drain_is_waited_for(tmp_path: Path) -> None:
    drain = Drain(tmp_path)
    os.mkfifo(tmp_path / "drain.1")
    (tmp_path / "drain.2").symlink_to("/dev/zero")
    texts = ("9" * 10_000, "-5", "\u0663", "x", " 2\n", "1")
    for name, text in enumerate(texts, 3):
        (tmp_path / f"drain.{name}").write_text(text, encoding="utf-8")
    assert drain.running() == 3

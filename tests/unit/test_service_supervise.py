"""The supervisor against real child processes and a real notification socket."""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.common.durations import spell
from minimax_metal.host.engine import supervise
from minimax_metal.host.engine.arguments import parse
from minimax_metal.host.engine.control import EXIT_STOPPED
from tests.support.templates import TEMPLATES

PATIENCE = 60.0
"""Seconds allowed for something that takes a fraction of one: a busy machine is not a failure."""

ENGINE = """
import http.server, os, signal, subprocess, sys, threading, time
mode, port = sys.argv[1], int(sys.argv[2])
started = time.monotonic()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/die":
            os._exit(9)
        ready = time.monotonic() - started > 0.6 and not mode.startswith("never")
        self.send_response(200 if ready and self.path == "/health" else 503)
        self.end_headers()
        sys.stderr.write("asked " + self.path + "\\n")
    def log_message(self, *_): pass
def server():
    http.server.ThreadingHTTPServer.allow_reuse_address = True
    http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
if mode == "dies":
    sys.exit(7)
if mode == "shot":
    os.kill(os.getpid(), signal.SIGKILL)
if mode == "ends":
    sys.exit(0)
if mode in ("stubborn", "never-stubborn"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    def drain(*_):
        print("draining", flush=True)
        time.sleep(0.3)
        print("drained", flush=True)
        os._exit(0)
    signal.signal(signal.SIGTERM, drain)
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
rank = subprocess.Popen([sys.executable, "-c", deaf])
print("rank", rank.pid, flush=True)
threading.Thread(target=server, daemon=True).start()
while True:
    time.sleep(1)
"""


@dataclass
class Run:
    """One supervised engine."""

    process: subprocess.Popen[str]
    channel: socket.socket
    output: Path
    port: int
    messages: list[str] = field(default_factory=list)

    def read(self, seconds: float = 0.05) -> list[str]:
        while select.select([self.channel], [], [], seconds)[0]:
            self.messages.append(self.channel.recv(4096).decode())
            seconds = 0.01
        return self.messages

    def wait_for(self, text: str, seconds: float = PATIENCE) -> str:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for message in self.read():
                if text in message:
                    return message
            assert self.process.poll() is None or text in "\n".join(self.read(0.2)), self.said()
        raise AssertionError(f"no {text!r} in {self.messages}; output: {self.said()}")

    def said(self) -> str:
        return self.output.read_text()

    def rank(self) -> int | None:
        """Return the process id of the engine's child; None if the engine ended before it had one."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            ended = self.process.poll() is not None
            for line in self.said().splitlines():
                if line.startswith("rank "):
                    return int(line.split()[1])
            if ended:
                return None
            time.sleep(0.02)
        raise AssertionError(self.said())


class Starter:
    """Starts supervisors and makes sure that none survives the test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.runs: list[Run] = []
        self.engine = directory / "engine.py"
        self.engine.write_text(textwrap.dedent(ENGINE))
        self.temporary = directory / "temporary"
        self.temporary.mkdir()

    def __call__(
        self,
        mode: str,
        *options: str,
        start: float = 20,
        stop: float = 10,
        command: list[str] | None = None,
        environment: dict[str, str] | None = None,
        port: int | None = None,
    ) -> Run:
        number = len(self.runs)
        address = self.directory / f"notify{number}"
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        channel.bind(str(address))
        if port is None:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
        command = [word.replace("{port}", str(port)) for word in command or ()]
        output = self.directory / f"output{number}"
        with output.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "minimax_metal.cli", "supervise", "--instance", "minimax-m2.5"]
                + ["--ready-url", f"http://127.0.0.1:{port}/health", "--start-timeout", str(start)]
                + ["--stop-timeout", str(stop), "--status-interval", "0.5", "--free-timeout", "0.5"]
                + ["--state", str(self.directory / "state"), *options, "--"]
                + (command or [sys.executable, str(self.engine), mode, str(port)]),
                env={**os.environ, "NOTIFY_SOCKET": str(address), "TMPDIR": str(self.temporary)}
                | (environment or {}),
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
            )
        run = Run(process, channel, output, port)
        self.runs.append(run)
        return run

    def reports(self) -> list[dict[str, Any]]:
        """Return the incident reports, oldest first."""
        return [json.loads(path.read_text()) for path in sorted(self.directory.rglob("incidents/*/*.json"))]


@pytest.fixture
def starter(tmp_path: Path) -> Iterator[Starter]:
    made = Starter(tmp_path)
    yield made
    for run in made.runs:
        if run.process.poll() is None:
            run.process.terminate()
            run.process.wait(timeout=PATIENCE)
        run.channel.close()
    assert not list(made.temporary.iterdir()), "a supervisor left its directory of a run by hand"


def gone(pid: int | None) -> bool:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_ready_then_stop_drains_and_leaves_nobody(starter: Starter) -> None:
    run = starter("good")
    assert "engine running for" in run.wait_for("STATUS=starting")
    assert "STATUS=ready" in run.wait_for("READY=1")
    rank = run.rank()
    run.process.send_signal(signal.SIGTERM)
    run.wait_for("STOPPING=1")
    assert run.process.wait(timeout=PATIENCE) == EXIT_STOPPED
    assert "drained" in run.said()
    assert gone(rank)


def test_health_is_not_asked_again_once_ready(starter: Starter) -> None:
    run = starter("good")
    run.wait_for("READY=1")
    asked = run.said().count("asked /health")
    run.wait_for("STATUS=ready: engine running for")
    time.sleep(1.5)
    assert run.said().count("asked") == asked


def test_waiting_before_the_start_takes_nothing_of_the_engines_time(starter: Starter) -> None:
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        port = squatter.getsockname()[1]
        run = starter("good", "--free-timeout", "40", start=33, port=port)
        assert "EXTEND_TIMEOUT_USEC=" in run.wait_for(f"STATUS=waiting: port {port} is taken")
    run.wait_for("READY=1")
    whole = f"EXTEND_TIMEOUT_USEC={33 + 180}000000"
    waited = next(at for at, text in enumerate(run.messages) if "STATUS=waiting" in text)
    starting = next(at for at, text in enumerate(run.messages) if "STATUS=starting" in text)
    assert whole in run.messages[waited + 1 : starting]
    # From here on systemd gives the engine what the unit gives a start that had not to wait.
    unit = TEMPLATES["sglang@.service.j2"].read_text()
    assert (
        f"TimeoutStartSec={{{{ service.start_timeout_seconds + {supervise.START_MARGIN_SECONDS:.0f} }}}}"
        in unit
    )


def test_engine_death_before_ready_fails_at_once_with_its_status(starter: Starter) -> None:
    run = starter("dies")
    assert run.process.wait(timeout=PATIENCE) == 7
    assert "exited with status 7" in run.said()
    assert "before it was ready" in run.said()
    assert any("STATUS=failed" in message for message in run.read())
    (report,) = starter.reports()
    assert report["kind"] == "start"
    assert report["exit_status"] == 7
    assert str(starter.directory / "state/incidents/minimax-m2.5") in run.said()
    assert not any("READY=1" in message for message in run.messages)


def test_engine_killed_by_a_signal(starter: Starter) -> None:
    run = starter("shot")
    assert run.process.wait(timeout=PATIENCE) == 128 + signal.SIGKILL
    assert "SIGKILL" in run.said()


def test_engine_that_just_ends_is_a_failure(starter: Starter) -> None:
    assert starter("ends").process.wait(timeout=PATIENCE) == 1


def test_engine_death_after_ready_takes_its_ranks_along(starter: Starter) -> None:
    run = starter("good")
    run.wait_for("READY=1")
    rank = run.rank()
    with pytest.raises(OSError, match=r"closed|reset"):
        urllib.request.urlopen(f"http://127.0.0.1:{run.port}/die", timeout=PATIENCE)
    assert run.process.wait(timeout=PATIENCE) == 9
    assert "after it had been ready" in run.said()
    assert gone(rank)


def test_start_timeout_stops_the_engine(starter: Starter) -> None:
    run = starter("never", start=2)
    rank = run.rank()
    assert run.process.wait(timeout=PATIENCE) == supervise.EXIT_START_TIMEOUT
    assert "not ready within 2 s" in run.said()
    assert "last answer of http" in run.said()
    assert gone(rank)


def test_start_timeout_of_a_stubborn_engine(starter: Starter) -> None:
    run = starter("never-stubborn", start=1, stop=0.5)
    rank = run.rank()
    assert run.process.wait(timeout=PATIENCE) == supervise.EXIT_START_TIMEOUT
    assert gone(rank)


def test_stubborn_engine_is_killed_with_its_group(starter: Starter) -> None:
    run = starter("stubborn", stop=1)
    run.wait_for("READY=1")
    rank = run.rank()
    begun = time.monotonic()
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(timeout=PATIENCE) == EXIT_STOPPED
    assert time.monotonic() - begun > 0.9
    assert "killed" in run.said()
    assert gone(rank)


def test_stop_while_starting(starter: Starter) -> None:
    run = starter("never", start=600)
    rank = run.rank()
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(timeout=PATIENCE) == EXIT_STOPPED
    assert gone(rank)


def test_no_such_program(starter: Starter) -> None:
    run = starter("", command=["/nonexistent/python", "-m", "sglang.launch_server"])
    assert run.process.wait(timeout=PATIENCE) == supervise.EXIT_NO_PROGRAM
    assert "no such file" in run.said()
    assert "Traceback" not in run.said()


def test_not_executable(starter: Starter, tmp_path: Path) -> None:
    run = starter("", command=[str(tmp_path)])
    assert run.process.wait(timeout=PATIENCE) == supervise.EXIT_NOT_EXECUTABLE


def test_engine_arguments_after_the_dashes_are_left_alone() -> None:
    line = (
        "--instance i --ready-url http://127.0.0.1:8000/health --start-timeout 5 --stop-timeout 6 "
        "-- python -m sglang.launch_server --port 8000 -- x"
    )
    parsed = parse(shlex.split(line))
    assert parsed.command == ("python", "-m", "sglang.launch_server", "--port", "8000", "--", "x")
    assert parsed.address == ("127.0.0.1", 8000)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--instance", "i"],
        ["--instance", "i", "--ready-url", "u", "--start-timeout", "0", "--stop-timeout", "1"],
    ],
)
def test_usage_errors(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert supervise.main(argv) == supervise.EXIT_USAGE
    assert "usage" in capsys.readouterr().err


def test_starts_with_the_standard_library_alone() -> None:
    code = (
        "import sys; import minimax_metal.cli, minimax_metal.host.engine.supervise; "
        "print(sorted(m for m in sys.modules if m.split('.')[0] in "
        "{'pydantic', 'yaml', 'rich', 'openai', 'httpx', 'huggingface_hub', 'modelscope', 'ansible'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 s"), (59.4, "59 s"), (61, "1 min 01 s"), (3600, "1 h 00 min"), (-1, "0 s")]
)
def test_spell(value: float, text: str) -> None:
    assert spell(value) == text


def test_abstract_notification_address() -> None:
    from minimax_metal.host.engine.notify import Notifier

    name = f"minimax-metal-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind("\0" + name)
        assert Notifier("@" + name).status("two\nlines")
        assert channel.recv(100) == b"STATUS=two lines"
    assert not Notifier("@" + name).status("nobody listens")
    assert not Notifier(None).status("nobody named")

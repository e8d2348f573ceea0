"""Whose socket listens: real sockets, real processes."""

from __future__ import annotations

import http.server
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minimax_metal.host.engine.diagnosis import EXIT_NEVER
from minimax_metal.host.engine.listener import Listening, family, foreign_text, holders, listening
from tests.unit.test_service_supervise import PATIENCE, Starter, starter  # noqa: F401  # a fixture

Program = Callable[..., subprocess.Popen[str]]
LISTEN = """
import socket, sys, time
address, port, reuse = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "reuse"
made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
if ":" in address:
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
if reuse:
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
made.bind((address, port))
made.listen()
print("up", made.getsockname()[1], flush=True)
time.sleep(600)
"""
NOBODY = LISTEN.replace("time\n", "time, os\n", 1).replace("made =", "os.setuid(65534)\nmade =", 1)
CHILD = (
    "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', *sys.argv[1:]]); time.sleep(600)"
)


@pytest.fixture
def program() -> Iterator[Program]:
    running: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        made = subprocess.Popen(
            [sys.executable, "-c", *words],
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        running.append(made)
        return made

    yield start
    for one in running:
        os.killpg(one.pid, signal.SIGKILL)
        one.wait()


def port_of(one: subprocess.Popen[str]) -> int:
    assert one.stdout is not None
    said = re.fullmatch(r"up (\d+)\n", one.stdout.readline())
    assert said
    return int(said.group(1))


def test_the_port_is_proven_when_the_engine_or_a_child_of_it_holds_it(program: Program) -> None:
    one = program(LISTEN, "127.0.0.1", "0", "alone")
    port = port_of(one)
    found = holders(one.pid, port)
    assert found.proven
    assert [(mine.address, mine.port, mine.uid) for mine in found.own] == [("127.0.0.1", port, os.geteuid())]
    parent = program(CHILD, LISTEN, "0.0.0.0", "0", "alone")  # noqa: S104  # a test's own socket
    assert holders(parent.pid, port_of(parent)).proven


def test_nobody_there_is_no_proof(program: Program) -> None:
    one = program("import time; time.sleep(600)")
    with socket.socket() as bound:  # bound and not listening
        bound.bind(("127.0.0.1", 0))
        found = holders(one.pid, bound.getsockname()[1])
    assert (found.own, found.foreign, found.proven) == ((), (), False)


def test_a_port_that_another_program_took_is_foreign_and_named(program: Program) -> None:
    engine = program("import time; time.sleep(600)")
    port = port_of(program(LISTEN, "127.0.0.1", "0", "alone"))
    found = holders(engine.pid, port)
    assert (found.proven, len(found.foreign)) == (False, 1)
    text = foreign_text(found)
    assert f"port {port} at 127.0.0.1 is used by a program of user root" in text or os.geteuid() != 0
    assert "\n" not in text


def test_a_port_of_another_users_process_is_foreign(program: Program) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    port = port_of(program(NOBODY, "127.0.0.1", "0", "alone"))
    engine = program("import time; time.sleep(600)")
    found = holders(engine.pid, port)
    assert [one.uid for one in found.foreign] == [65534]
    assert "user nobody" in foreign_text(found)
    unknown = Listening("::", 8000, 4_000_000, 1)
    assert "user number 4000000" in foreign_text(type(found)((), (unknown,)))


def test_a_second_socket_on_the_engines_port_takes_the_proof_away(program: Program) -> None:
    engine = program(LISTEN, "127.0.0.1", "0", "reuse")
    port = port_of(engine)
    assert holders(engine.pid, port).proven
    port_of(program(LISTEN, "127.0.0.1", str(port), "reuse"))
    found = holders(engine.pid, port)
    assert (len(found.own), len(found.foreign), found.proven) == (1, 1, False)


@pytest.mark.parametrize(
    ("engines", "others", "proven"),
    [
        ("127.0.0.1", "127.0.0.2", True),
        ("127.0.0.1", "::1", True),
        ("0.0.0.0", "::1", False),  # noqa: S104  # a client of "localhost" may end up there
        ("127.0.0.2", "::", False),
    ],
)
def test_an_address_beside_the_engines_counts_where_it_may_get_its_connections(
    program: Program, engines: str, others: str, proven: bool
) -> None:
    engine = program(LISTEN, engines, "0", "alone")
    port = port_of(engine)
    try:
        port_of(program(LISTEN, others, str(port), "alone"))
    except AssertionError:
        pytest.skip(f"no {others} on this machine")
    assert holders(engine.pid, port).proven is proven


def test_a_family_is_all_that_a_process_started_and_no_more(program: Program) -> None:
    parent = program(CHILD, "import time; time.sleep(600)")
    deadline = time.monotonic() + 20
    while len(members := family(parent.pid)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert parent.pid in members
    assert os.getpid() not in members
    assert len(members) == 2


def test_what_the_kernel_prints_is_read_whatever_stands_in_it(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    head = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    )
    row = "   0: {} 00000000:0000 {} 00000000:00000000 00:00000000 00000000  1000        0 {} 1 0 100 0\n"
    text = head + row.format("0100007F:1F40", "0A", 77) + row.format("0100007F:1F40", "01", 78) + "cut off\n"
    (tmp_path / "net/tcp").write_text(text)
    (tmp_path / "net/tcp6").write_text(head + row.format("B80D0120000000000000000001000000:1F40", "0A", 79))
    found = listening(8000, tmp_path)
    assert found == [Listening("127.0.0.1", 8000, 1000, 77), Listening("2001:db8::1", 8000, 1000, 79)]
    (tmp_path / "net/tcp6").unlink()
    assert listening(8000, tmp_path) == found[:1]
    assert listening(8001, tmp_path) == []
    process = tmp_path / "500"
    process.mkdir()
    (process / "stat").write_text("500 (a) b) (c) S 1 500 500 0")
    (tmp_path / "501").mkdir()
    assert family(500, tmp_path) == {500}
    (process / "fd").mkdir()
    (process / "fd/3").symlink_to("socket:[77]")
    (process / "fd/4").symlink_to("/dev/null")
    assert holders(500, 8000, tmp_path).proven


class Impostor(http.server.BaseHTTPRequestHandler):
    """Answers everything with 200, and records it."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_an_engine_whose_port_was_taken_while_it_loads_is_never_ready(starter: Starter) -> None:  # noqa: F811
    run = starter("", command=[sys.executable, "-c", "import time; time.sleep(600)"], start=50)
    run.wait_for("STATUS=starting")
    with http.server.ThreadingHTTPServer(("127.0.0.1", run.port), Impostor) as taken:
        threading.Thread(target=taken.serve_forever, args=(0.02,), daemon=True).start()
        said = run.wait_for(f"STATUS=waiting: port {run.port} at 127.0.0.1 is used by a program of user ")
        assert "ss -ltnp" in said
        assert run.process.wait(timeout=PATIENCE) == EXIT_NEVER
        taken.shutdown()
    assert not [message for message in run.read() if "READY=1" in message]
    assert f"engine was stopped: port {run.port} at 127.0.0.1 is used by" in run.said()
    (report,) = starter.reports()
    assert (report["kind"], report["exit_status"]) == ("start", EXIT_NEVER)


def test_an_engine_that_gets_its_port_after_all_is_ready(starter: Starter) -> None:  # noqa: F811
    script = "import runpy, sys, time; time.sleep(4); sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0])"
    command = [sys.executable, "-c", script, str(starter.engine), "good", "{port}"]
    run = starter("", command=command)
    with http.server.ThreadingHTTPServer(("127.0.0.1", run.port), Impostor) as taken:
        threading.Thread(target=taken.serve_forever, args=(0.02,), daemon=True).start()
        run.wait_for("STATUS=waiting: port")
        taken.shutdown()
    run.wait_for("READY=1")

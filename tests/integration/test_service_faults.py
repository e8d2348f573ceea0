"""The unit on a lab host, under systemd, with an engine that fails on request.

The unit is the role's own; a drop-in, as an operator would write one, puts the small engine of
tests/support/asgi_engine.py behind the supervisor. It has the real one's HTTP server, plug-in interface and
messages, and starts in a second. What only the real engine shows is in tests/contract/test_supervisor.py.

`METAL_LAB_NAME` names a running lab on which site.yml has run; without it a new one is made.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.support.site import REPOSITORY, Lab, booted

HOST, UNIT = "gpu01", "sglang@minimax-m2.5.service"
DROP_IN = f"/etc/systemd/system/{UNIT}.d/50-faults.conf"
ENGINE = "/var/lib/sglang/asgi_engine.py"
SCRIPT = "/var/lib/sglang/fault.py"
PORT = 8000
KEY = "/etc/sglang/minimax-m2.5/api_key"
PATIENCE = 120.0


@dataclass
class Unit:
    """The unit with the small engine behind it."""

    lab: Lab
    python: str

    def ssh(self, command: str, check: bool = True) -> str:
        return self.lab.ssh(HOST, command, check=check)

    def use(self, command: str, *options: str, more: str = "") -> None:
        """Put a command behind the supervisor and forget earlier failures."""
        supervise = [
            "/usr/local/bin/metal", "supervise", "--instance", "minimax-m2.5",
            "--ready-url", f"http://127.0.0.1:{PORT}/health", "--start-timeout", "60", "--stop-timeout", "60",
            "--free-timeout", "2", "--gpus", "0,1,2,3", "--secrets", "/etc/sglang/minimax-m2.5", *options,
        ]  # fmt: skip
        text = f"[Service]\nExecStart=\nExecStart={' '.join(supervise)} -- {command}\n{more}"
        self.ssh(f"mkdir -p {DROP_IN.rpartition('/')[0]} && printf %s {shlex.quote(text)} > {DROP_IN}")
        self.ssh(f"systemctl daemon-reload; systemctl stop {UNIT}; systemctl reset-failed {UNIT}; "
                 "rm -rf /var/lib/sglang/incidents")  # fmt: skip

    def engine(self, mode: str) -> str:
        return f"{self.python} {ENGINE} {PORT} {mode}"

    def generate(self, seconds: int) -> str:
        """Return a command that asks for a stream, with the guard's key, and prints its end."""
        program = (
            "import urllib.request as u; "
            f'key = open("{KEY}").read().strip(); '
            f'asked = u.Request("http://127.0.0.1:{PORT}/generate?{seconds}", b"", '
            '{"Authorization": "Bearer " + key}); '
            "print(u.urlopen(asked, timeout=60).read().decode()[-4:])"
        )
        return f"{self.python} -c {shlex.quote(program)}"

    def script(self, text: str) -> str:
        """Put a program on the host; return the command that runs it."""
        self.ssh(f"printf %s {shlex.quote(text)} > {SCRIPT}")
        return f"{self.python} {SCRIPT}"

    def show(self, name: str) -> str:
        return self.ssh(f"systemctl show --value --property={name} {UNIT}").strip()

    def start(self) -> int:
        return int(self.ssh(f"systemctl start {UNIT} >/dev/null 2>&1; echo $?"))

    def wait(self, what: Callable[[], bool], why: str) -> float:
        began = time.monotonic()
        while time.monotonic() - began < PATIENCE:
            if what():
                return time.monotonic() - began
            time.sleep(0.3)
        raise AssertionError(
            f"{why}: {self.ssh(f'systemctl status --no-pager --lines=30 {UNIT}', check=False)}"
        )


@pytest.fixture(scope="module")
def unit() -> Iterator[Unit]:
    with booted("service", "demo") as lab:
        yield from prepared(lab)


def prepared(lab: Lab) -> Iterator[Unit]:
    if lab.fresh:
        run = lab.play("site.yml", "--limit", HOST)
        assert run.returncode == 0, run.output
    environment = lab.ssh(HOST, f"systemctl cat {UNIT} | grep -o '/opt/sglang/[^/ ]*' | head -n 1").strip()
    made = Unit(lab, f"{environment}/bin/python")
    source = (REPOSITORY / "tests/support/asgi_engine.py").read_text()
    lab.ssh(HOST, f"printf %s {shlex.quote(source)} > {ENGINE}")
    try:
        yield made
    finally:
        lab.ssh(HOST, f"systemctl stop {UNIT}; rm -f {DROP_IN} {ENGINE} {SCRIPT}; systemctl daemon-reload; "
                      f"systemctl reset-failed {UNIT}; systemctl start {UNIT}")  # fmt: skip


def test_a_start_returns_when_the_endpoint_answers(unit: Unit) -> None:
    unit.use(unit.engine("good"))
    assert unit.start() == 0
    assert unit.show("ActiveState") == "active"
    assert unit.show("StatusText").startswith("ready: answered http://127.0.0.1:8000/health")


def test_a_killed_engine_comes_back_by_itself(unit: Unit) -> None:
    unit.use(unit.engine("good"))
    assert unit.start() == 0
    unit.ssh(f"kill -9 $(pgrep -P $(systemctl show --value --property=MainPID {UNIT}))")
    unit.wait(lambda: unit.show("NRestarts") == "1", "not restarted")
    unit.wait(lambda: unit.show("ActiveState") == "active", "not ready again")
    assert "was ended by SIGKILL" in unit.ssh("cat /var/lib/sglang/incidents/minimax-m2.5/*.json")


def test_an_engine_that_gets_nowhere_is_replaced(unit: Unit) -> None:
    unit.use(unit.engine("stall"), "--watch-interval", "1", "--hang-timeout", "3")
    assert unit.start() == 0
    unit.ssh(f"{unit.generate(1)} >/dev/null 2>&1 || true")
    unit.wait(lambda: unit.show("NRestarts") == "1", "not restarted")
    unit.wait(lambda: unit.show("ActiveState") == "active", "not ready again")
    assert '"kind": "hang"' in unit.ssh("cat /var/lib/sglang/incidents/minimax-m2.5/*.json")


WORDS = {
    "memory": ("torch.", "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
    "arguments": ("launch_server.py: ", "error: argument --tool-call-parser: invalid choice: 'minimax'"),
    "architecture": ("ValueError: ", "Model architectures ['MiniMaxM9ForCausalLM'] are not supported"),
}
"""Reason code: the engine's output before its message, and the message that must come through."""


@pytest.mark.parametrize("code", WORDS)
def test_a_start_that_can_never_succeed_fails_at_once_and_for_good(unit: Unit, code: str) -> None:
    before, words = WORDS[code]
    script = f'print("{before}{words}", flush=True); raise SystemExit(1)'
    unit.use(unit.script(script))
    assert unit.start() != 0
    time.sleep(7)  # longer than RestartSec
    assert (unit.show("ActiveState"), unit.show("NRestarts")) == ("failed", "0")
    assert unit.show("ExecMainStatus") == "78"
    assert words in unit.show("StatusText")
    assert f'"code": "{code}"' in unit.ssh("cat /var/lib/sglang/incidents/minimax-m2.5/*.json")


def test_a_taken_port_is_said_before_anything_is_loaded(unit: Unit) -> None:
    unit.use(unit.engine("good"))
    unit.ssh(f"systemd-run --quiet --unit=squatter {unit.python} -m http.server {PORT}")
    try:
        # 1F40 is port 8000.
        unit.wait(lambda: "1F40 " in unit.ssh("cat /proc/net/tcp /proc/net/tcp6"), "nobody listens")
        assert unit.start() != 0
        assert unit.show("ExecMainStatus") == "78"
        assert f"port {PORT} is taken" in unit.show("StatusText")
    finally:
        unit.ssh("systemctl stop squatter.service")


def test_a_full_disk_is_named_and_tried_again(unit: Unit) -> None:
    script = 'open("/var/cache/sglang/full/x", "wb").write(bytes(1 << 20))'
    unit.ssh("mkdir -p /var/cache/sglang/full && mount -t tmpfs -o size=64k,uid=$(id -u sglang) tmpfs "
             "/var/cache/sglang/full")  # fmt: skip
    try:
        unit.use(unit.script(script))
        assert unit.start() != 0
        unit.wait(lambda: int(unit.show("NRestarts")) >= 1, "not tried again")
        assert "No space left on device" in unit.ssh(f"journalctl --unit={UNIT} --lines=40 --no-pager")
    finally:
        unit.ssh(f"systemctl stop {UNIT}; umount /var/cache/sglang/full")


def test_restarts_are_further_and_further_apart(unit: Unit) -> None:
    unit.use("/bin/false")
    assert unit.start() != 0
    unit.wait(lambda: "waiting before the next start" in unit.show("StatusText"), "no delay")
    assert re.search(r"[1-9] incidents within the last hour", unit.show("StatusText"))
    # Somebody who starts it by hand does not wait: the engine runs, and ends, before anything is waited for.
    unit.ssh(f"systemctl stop {UNIT}")
    cursor = re.search(r"cursor: (\S+)", unit.ssh(f"journalctl --unit={UNIT} --lines=0 --show-cursor"))
    assert cursor is not None
    said = f"journalctl --unit={UNIT} --output=cat --no-pager --after-cursor='{cursor[1]}'"
    assert unit.start() != 0
    unit.wait(lambda: "engine exited with status 1" in unit.ssh(said), "the engine was not started")
    before, _, _ = unit.ssh(said).partition("engine exited with status 1")
    assert "waiting" not in before


@pytest.mark.parametrize("mode", ["good", "unhealthy"])
def test_a_stop_loses_no_request(unit: Unit, mode: str) -> None:
    unit.use(unit.engine(mode))
    assert unit.start() == 0
    reader = subprocess.Popen(
        ["ssh", "-F", str(unit.lab.state / "ssh_config"), HOST, unit.generate(8)],
        stdout=subprocess.PIPE,
        text=True,
    )
    unit.wait(lambda: "num_running_reqs{tp_rank=\"0\"} 1.0" in unit.ssh(
        f"{unit.python} -c 'import urllib.request as u; "
        f"print(u.urlopen(\"http://127.0.0.1:{PORT}/metrics\").read().decode())'"), "no stream")  # fmt: skip
    unit.ssh(f"systemctl stop {UNIT}")
    out, _ = reader.communicate(timeout=PATIENCE)
    assert out.strip() == "end"
    assert unit.show("ActiveState") == "inactive"
    assert unit.show("Result") == "success"


def test_nothing_of_the_unit_is_left_after_a_stop(unit: Unit) -> None:
    unit.use(unit.engine("good"))
    assert unit.start() == 0
    assert "asgi_engine" in unit.ssh("ps -u sglang -o args=")
    unit.ssh(f"systemctl stop {UNIT}")
    assert "asgi_engine" not in unit.ssh("ps -eo args=")
    assert unit.ssh("ps -u sglang -o args=", check=False) == ""

"""The supervisor with a stuck or closed journal, sick GPUs, and an engine with odd output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minimax_metal.host.engine.control import EXIT_STOPPED
from tests.unit.test_service_supervise import PATIENCE, Starter, starter  # noqa: F401  # a fixture

LOUD = """
import os, signal, sys, threading, http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_): pass
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
for number in range(3000):
    print("line", number, "x" * 1000)
sys.stdout.flush()
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
signal.pause()
"""


@pytest.mark.parametrize("closed", [False, True], ids=["stuck", "closed"])
def test_a_journal_that_takes_nothing_stops_no_engine(
    starter: Starter,  # noqa: F811
    tmp_path: Path,
    closed: bool,
) -> None:
    """The engine's 3 MB filled the pipe: it never became ready, and SIGTERM had no effect."""
    engine = tmp_path / "loud.py"
    engine.write_text(LOUD)
    plain = starter("good")  # only for its free port and its socket
    plain.process.kill()
    plain.process.wait()
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "minimax_metal.cli",
            "supervise",
            "--instance",
            "m",
            "--ready-url",
            f"http://127.0.0.1:{plain.port}/health",
            "--start-timeout",
            "60",
            "--stop-timeout",
            "10",
            "--free-timeout",
            "0.5",
            "--state",
            str(tmp_path / "state"),
            "--",
            sys.executable,
            str(engine),
            str(plain.port),
        ],
        env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify0"), "TMPDIR": str(starter.temporary)},
        stdout=write_end,
        stderr=write_end,
    )
    os.close(write_end)
    if closed:
        os.close(read_end)
    try:
        deadline = time.monotonic() + PATIENCE
        while not any("READY=1" in message for message in plain.read(0.2)):
            assert process.poll() is None
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE) == EXIT_STOPPED
    finally:
        process.kill()
        process.wait()
        if not closed:
            os.close(read_end)
        for path in starter.temporary.iterdir():
            for part in path.iterdir():
                part.unlink()
            path.rmdir()


def smi(directory: Path, rows: str, status: int = 0) -> dict[str, str]:
    """A directory with an nvidia-smi that gives this answer, first in PATH."""
    program = directory / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncase $1 in --query-gpu*) printf '{rows}';; esac\nexit {status}\n")
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("rows", "status", "exit_status", "told"),
    [
        # Field cases n6, n1 and n2: dcgm-exporter#604, gpud PR#1133, gpu-operator#132, dask-cuda#583.
        ("0, GPU-a, [GPU is lost], Disabled\\n", 0, 70, "GPU 0: nvidia-smi reports [GPU is lost]"),
        (
            "Unable to determine the device handle for GPU0: 0000:BA:00.0: Unknown Error",
            255,
            70,
            "GPU0 (0000:BA",
        ),
        ("0, GPU-a, 3, Enabled\\n", 0, 78, "nvidia-smi -i 0 -mig 0"),
        ("No devices were found\\n", 6, 70, "no GPU came up"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_said_before_the_start(
    starter: Starter,  # noqa: F811
    tmp_path: Path,
    rows: str,
    status: int,
    exit_status: int,
    told: str,
) -> None:
    run = starter("good", "--gpus", "0", environment=smi(tmp_path, rows, status))
    assert run.process.wait(timeout=PATIENCE) == exit_status
    failed = run.wait_for("STATUS=failed: engine was not started")
    assert told in failed
    assert "systemctl reset-failed sglang@minimax-m2.5" in failed
    assert "Traceback" not in run.said()


def test_a_stop_is_heard_while_nvidia_smi_hangs(starter: Starter, tmp_path: Path) -> None:  # noqa: F811
    environment = smi(tmp_path, "")
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 300\n")
    run = starter("good", "--gpus", "0", environment=environment)
    time.sleep(1.5)
    begun = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(timeout=PATIENCE) == EXIT_STOPPED
    assert time.monotonic() - begun < 25, "nvidia-smi's own limit is 30 s"


def test_hostile_last_words_delay_no_end(starter: Starter) -> None:  # noqa: F811
    """200 lines of 2,000 characters took 80 s."""
    words = "CUDA error is not divisible by Capture cuda graph failed address already in use "
    program = f"import sys; sys.stdout.write(({words!r} * 40 + chr(10)) * 300); sys.exit(3)"
    run = starter("", command=[sys.executable, "-c", program])
    assert run.process.wait(timeout=PATIENCE) != 0
    assert run.wait_for("STATUS=failed: engine exited with status 3")

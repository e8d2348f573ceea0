"""What the two daemons of the lab's driver packages share: going to the background as a Type=forking service
does.

Python 3.9, standard library only.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path


def daemonise(pid_file: Path, start: Callable[[], bool]) -> int:
    """Run `start` in a background process; return the exit status of the foreground one.

    `start` returns True when the service is ready. Only then is the pid file written and does the foreground
    process end with 0. The background process waits for SIGTERM, removes the pid file and ends.
    """
    ready, tell = os.pipe()
    if os.fork():
        os.close(tell)
        return 0 if os.read(ready, 1) == b"1" else 1
    os.close(ready)
    os.setsid()
    ended: list[object] = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    if not start():
        os.write(tell, b"0")
        os._exit(1)
    pid_file.parent.mkdir(parents=True, exist_ok=True)
    pid_file.write_text(f"{os.getpid()}\n")
    sys.stdout.flush()
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    os.write(tell, b"1")
    os.close(tell)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    while not ended:
        ended.append(signal.sigwait({signal.SIGTERM}))
    pid_file.unlink(missing_ok=True)
    os._exit(0)

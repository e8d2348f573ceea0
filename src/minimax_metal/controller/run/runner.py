"""Run a playbook through ansible-runner: the same command that a user would type, with a view beside it.

ansible-runner starts ``ansible-playbook`` on its own terminal and passes on each event. Its working files are
in a private directory in memory while it runs; :mod:`minimax_metal.controller.run.store` keeps the results.
Settings in which it differs from a plain ``ansible-playbook`` (host keys that are not checked, a cache of
facts) are reverted.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any, Final

from ansible_runner import Runner, RunnerConfig

from minimax_metal.common.errors import UserError
from minimax_metal.common.redact import Redactor
from minimax_metal.controller.run.bounded import limit_memory
from minimax_metal.controller.run.events import Run
from minimax_metal.controller.run.plain import Show
from minimax_metal.controller.run.records import Record, coloured, plain, record_of
from minimax_metal.controller.run.store import Kept

CALLBACKS: Final = Path(__file__).resolve().parent / "callback"
AFTER_HOSTS: Final = "after the hosts in progress"
AT_ONCE: Final = "at once"
PATIENCE_SECONDS: Final = 20.0
"""Seconds after the second Ctrl-C in which Ansible may end its workers, before everything is killed."""
TURN_SECONDS: Final = 1
"""Seconds between two checks for a stop request."""
NOT_ANSIBLES: Final = ("ANSIBLE_HOST_KEY_CHECKING", "ANSIBLE_CACHE_PLUGIN", "ANSIBLE_CACHE_PLUGIN_CONNECTION",
                       "ANSIBLE_RETRY_FILES_ENABLED")  # fmt: skip
"""Environment that the runner sets and a plain ansible-playbook does not."""


@dataclass
class Stop:
    """A user's request to stop the run, and its progress."""

    file: Path
    asked: int = 0
    pid: int | None = None
    killed_at: float | None = None
    said: int = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Treat Ctrl-C, a lost terminal and SIGTERM as a stop request; restore the handlers afterwards."""
        handlers = {signal.SIGINT: self._ask, signal.SIGHUP: self._once, signal.SIGTERM: self._now}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.ask(self.asked + 1)

    def _once(self, number: int, frame: FrameType | None) -> None:
        self.ask(max(1, self.asked))

    def _now(self, number: int, frame: FrameType | None) -> None:
        self.ask(2)

    def ask(self, times: int) -> None:
        """Request it once (stop between two hosts) or twice (stop now)."""
        self.asked = max(self.asked, times)
        with contextlib.suppress(OSError):
            self.file.touch(mode=0o600)
        if self.asked >= 2 and self.killed_at is None and self.pid is not None:
            self.killed_at = time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGINT)

    def over(self) -> bool:
        """Return whether the time is up and everything must be killed."""
        if self.asked >= 2 and self.killed_at is None:
            # Requested before Ansible's process id was known.
            self.ask(self.asked)
            return self.pid is None
        return self.killed_at is not None and time.monotonic() - self.killed_at > PATIENCE_SECONDS


@dataclass
class Listener:
    """Handles the runner's events: stores and shows them, and never stops a run because of its own errors."""

    redactor: Redactor
    show: Show
    stop: Stop
    events: IO[str]
    output: IO[str]
    echo: bool = False
    run: Run = field(default_factory=Run)
    troubles: list[str] = field(default_factory=list)

    def event(self, event: Mapping[str, Any]) -> bool:
        """Handle an event; the runner itself must not write any."""
        try:
            text = str(event.get("stdout") or "")
            if text:
                self.output.write(self.redactor.text(plain(text)) + "\n")
                if self.echo:
                    print(self.redactor.text(coloured(text)), flush=True)
            if record := record_of(event, self.redactor):
                self.take(record)
        except Exception as error:
            self.trouble(error)
        return False

    def take(self, record: Record) -> None:
        """Store and show a record."""
        self.run.take(record)
        if record["kind"] == "start":
            self.stop.pid = self.run.pid
            if self.run.pid is not None:
                limit_memory(self.run.pid)
        self.events.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
        self.show.update(record, self.run)

    def canceled(self) -> bool:
        """Return, when the runner asks, whether everything must be killed."""
        if self.stop.asked > self.stop.said:
            self.stop.said = self.stop.asked
            how = AFTER_HOSTS if self.stop.asked == 1 else AT_ONCE
            try:
                self.take({"kind": "stop", "how": how, "at": round(time.time(), 3)})
            except Exception as error:
                self.trouble(error)
        return self.stop.over()

    def trouble(self, error: Exception) -> None:
        """Report each kind of error in the view or the record once: the run continues."""
        text = (
            "the run continues, but its display or stored events are incomplete: "
            f"{type(error).__name__}: {error}"
        )
        if text not in self.troubles:
            self.troubles.append(text)
            print(f"metal: {text}", file=sys.stderr)


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """Yield a private directory, in memory if possible, that is removed afterwards."""
    places = (os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm")  # noqa: S108  # a private directory is made in it
    base = next((place for place in places if place and os.access(place, os.W_OK | os.X_OK)), None)
    path = Path(tempfile.mkdtemp(prefix="minimax-metal-run-", dir=base))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def playbook_program() -> str:
    """Return the path of ansible-playbook.

    Raises:
        UserError: there is none.
    """
    beside = Path(sys.executable).with_name("ansible-playbook")
    found = str(beside) if beside.exists() else shutil.which("ansible-playbook")
    if found is None:
        raise UserError("found no ansible-playbook, expected ansible-core on this machine; run make setup")
    return found


def ask_passwords(prompts: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Ask for the passwords that Ansible needs, before the view uses the terminal."""
    return {pattern: getpass.getpass(question) for question, pattern in prompts}


def _config(
    directory: Path, command: Sequence[str], passwords: Mapping[str, str], stop: Stop, own: bool
) -> Any:
    settings = directory / "env" / "settings"
    settings.parent.mkdir(mode=0o700)
    settings.write_text(
        json.dumps(
            {"suppress_output_file": True, "suppress_ansible_output": True, "pexpect_timeout": TURN_SECONDS}
        )
    )
    given = {"AWX_LIB_DIRECTORY": str(CALLBACKS)}
    if not own:
        given["METAL_STOP_FILE"] = str(stop.file)
    config = RunnerConfig(
        private_data_dir=str(directory),
        binary=command[0],
        cmdline=shlex.join(command[1:]),
        project_dir=str(Path.cwd()),
        envvars=given,
        passwords=dict(passwords),
        ident="run",
    )
    config.prepare()
    for name in NOT_ANSIBLES:
        if name in os.environ:
            config.env[name] = os.environ[name]
        else:
            config.env.pop(name, None)
    return config


def execute(
    command: Sequence[str],
    kept: Kept,
    show: Show,
    redactor: Redactor,
    passwords: Mapping[str, str],
    *,
    stop_file_is_read: bool,
    echo: bool = False,
) -> tuple[int, Run, bool]:
    """Run a command of ansible-playbook until it ends.

    Args:
        command: the program and its arguments.
        kept: where records and output are stored.
        show: displays the run.
        redactor: masks secrets in everything shown and stored.
        passwords: answers to Ansible's questions, by the pattern of the question.
        stop_file_is_read: whether the playbook itself checks ``metal_rollout_stop_file`` between two hosts;
            otherwise a run stops between two plays or batches.
        echo: whether Ansible's own output is printed.

    Returns:
        ansible-playbook's exit status, the state at the end, and whether the user asked it to stop.
    """
    stop = Stop(kept.path / "stop")
    with workspace() as directory, kept.open("events.jsonl") as events, kept.open("output.log") as output:
        listener = Listener(redactor, show, stop, events, output, echo)
        config = _config(directory, command, passwords, stop, stop_file_is_read)

        def status(data: Mapping[str, Any], runner_config: Any) -> None:
            if data.get("status") == "running":
                # The runner has written the whole environment to disk, and no longer needs it.
                Path(runner_config.artifact_dir, "command").unlink(missing_ok=True)

        runner = Runner(
            config, cancel_callback=listener.canceled, event_handler=listener.event, status_handler=status
        )
        show.start()
        try:
            with stop.listening():
                runner.run()
            listener.take({"kind": "end", "returned": runner.rc, "at": round(time.time(), 3)})
        finally:
            show.finish(listener.run)
    return int(runner.rc if runner.rc is not None else 1), listener.run, stop.asked > 0


def hidden(words: Sequence[str], redactor: Redactor) -> str:
    """Return a command in a form that may be stored."""
    return redactor.text(re.sub(r"\s+", " ", shlex.join(words)))

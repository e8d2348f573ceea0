"""Run a playbook through ansible-runner: the very command that a user would type, with a view beside it.

ansible-runner starts ``ansible-playbook`` on a terminal of its own and hands over what happens, event by
event. Its working files lie in a private directory in memory for as long as it runs; what is kept is in
:mod:`minimax_metal.controller.run.store`. What it would set differently from a plain ``ansible-playbook``
(host keys that are not checked, a cache of facts) is taken back.
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
AFTER_HOSTS: Final = "after the hosts in work"
AT_ONCE: Final = "at once"
PATIENCE_SECONDS: Final = 20.0
"""After the second Ctrl-C: time for Ansible to end its workers, before everything is killed."""
TURN_SECONDS: Final = 1
"""Between two looks at whether somebody wants it to stop."""
NOT_ANSIBLES: Final = ("ANSIBLE_HOST_KEY_CHECKING", "ANSIBLE_CACHE_PLUGIN", "ANSIBLE_CACHE_PLUGIN_CONNECTION",
                       "ANSIBLE_RETRY_FILES_ENABLED")  # fmt: skip
"""What the runner sets in the environment and a plain ansible-playbook does not have."""


@dataclass
class Stop:
    """Somebody's wish that the run stop, and how far it has come."""

    file: Path
    asked: int = 0
    pid: int | None = None
    killed_at: float | None = None
    said: int = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take Ctrl-C, a lost terminal and SIGTERM for the wish; give them back afterwards."""
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
        """Wish it once (stop between two hosts) or twice (stop now)."""
        self.asked = max(self.asked, times)
        with contextlib.suppress(OSError):
            self.file.touch(mode=0o600)
        if self.asked >= 2 and self.killed_at is None and self.pid is not None:
            self.killed_at = time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGINT)

    def over(self) -> bool:
        """Return whether patience is at its end and everything is to be killed."""
        if self.asked >= 2 and self.killed_at is None:
            # It was asked before Ansible had said who it is.
            self.ask(self.asked)
            return self.pid is None
        return self.killed_at is not None and time.monotonic() - self.killed_at > PATIENCE_SECONDS


@dataclass
class Listener:
    """Takes the runner's events: keeps, shows, and never stops a run for its own trouble."""

    redactor: Redactor
    show: Show
    stop: Stop
    events: IO[str]
    output: IO[str]
    echo: bool = False
    run: Run = field(default_factory=Run)
    troubles: list[str] = field(default_factory=list)

    def event(self, event: Mapping[str, Any]) -> bool:
        """Take an event; the runner is to write none itself."""
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
        """Keep and show a record."""
        self.run.take(record)
        if record["kind"] == "start":
            self.stop.pid = self.run.pid
            if self.run.pid is not None:
                limit_memory(self.run.pid)
        self.events.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
        self.show.update(record, self.run)

    def canceled(self) -> bool:
        """Say, when the runner asks, whether everything is to be killed."""
        if self.stop.asked > self.stop.said:
            self.stop.said = self.stop.asked
            how = AFTER_HOSTS if self.stop.asked == 1 else AT_ONCE
            try:
                self.take({"kind": "stop", "how": how, "at": round(time.time(), 3)})
            except Exception as error:
                self.trouble(error)
        return self.stop.over()

    def trouble(self, error: Exception) -> None:
        """Say once that something of a kind went wrong with the view or the record: the run goes on."""
        text = (
            f"the run goes on, but what is shown or kept of it is not whole: {type(error).__name__}: {error}"
        )
        if text not in self.troubles:
            self.troubles.append(text)
            print(f"metal: {text}", file=sys.stderr)


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """Yield a private directory in memory, where the machine has one, that is gone afterwards."""
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
    """Ask for the passwords that Ansible will ask for, before the view takes the terminal."""
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
    """Run a command of ansible-playbook to its end.

    Args:
        command: the program and its arguments.
        kept: where records and output go.
        show: what shows it.
        redactor: masks secrets in all that is shown and kept.
        passwords: answers to Ansible's questions, by the pattern of the question.
        stop_file_is_read: whether the playbook itself looks at ``metal_rollout_stop_file`` between two hosts;
            else a run stops between two plays or batches.
        echo: whether Ansible's own output is printed.

    Returns:
        What ansible-playbook returned, the state at the end, and whether somebody asked it to stop.
    """
    stop = Stop(kept.path / "stop")
    with workspace() as directory, kept.open("events.jsonl") as events, kept.open("output.log") as output:
        listener = Listener(redactor, show, stop, events, output, echo)
        config = _config(directory, command, passwords, stop, stop_file_is_read)

        def status(data: Mapping[str, Any], runner_config: Any) -> None:
            if data.get("status") == "running":
                # The runner has written the whole environment down, and does not need it any more.
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
    """Return a command as it may be written down."""
    return redactor.text(re.sub(r"\s+", " ", shlex.join(words)))

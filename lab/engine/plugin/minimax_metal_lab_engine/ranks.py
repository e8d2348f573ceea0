"""Start the engine's ranks from one process that has imported the engine already.

A GPU host starts each rank afresh: a forked process cannot use CUDA. Each of four or eight ranks then spends
some ten seconds of a core on imports, which two cores pay one after another: a minute and more. Here Python's
own fork server imports once, while the engine's main process is still importing too, and the ranks are forked
from it. Command line, environment, pipes and the engine's watch over its ranks are as the engine makes them.
"""

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

PRELOADED = (
    "sglang.srt.managers.scheduler",
    "sglang.srt.managers.detokenizer_manager",
    "sglang.srt.models.registry",  # with every model: each rank looks through all of them
)
"""What the fork server imports; anything else a rank imports itself, as ever."""


class Rank(ForkServerProcess):
    """A process of the engine's: forked, then given the environment its maker had."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # The server was forked off before the engine set variables for its ranks.
        self.environment = dict(os.environ)

    def run(self) -> None:
        """Run the engine's own target."""
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(self.environment)
        super().run()


class Ranks(ForkServerContext):
    """Takes the place of the module ``multiprocessing`` in ``sglang.srt.entrypoints.engine``."""

    Process = Rank

    def set_start_method(self, method: str | None, force: bool = False) -> None:
        """Keep the start method; the engine asks for "spawn"."""


def start_server() -> None:
    """Start the fork server, when this process is the engine's main process."""
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    module = main is not None and main.name == "sglang.launch_server"
    script = Path(sys.argv[0]).name == "sglang" and sys.argv[1:2] == ["serve"]
    if multiprocessing.parent_process() or not (module or script):
        return
    forkserver.set_forkserver_preload([f"{__package__}.preload"])
    forkserver.ensure_running()


def use_server(result: None, *_arguments: Any, **_options: Any) -> None:
    """Let the engine's ranks come from the fork server (after ``engine._set_envs_and_config``)."""
    engine = importlib.import_module("sglang.srt.entrypoints.engine")
    engine.mp = Ranks()  # type: ignore[attr-defined]


def preload() -> None:
    """Import what ranks need; runs in the fork server.

    A rank that fails tells its parent by SIGQUIT, meaning the engine's main process: passed on.
    """
    import setproctitle
    from sglang.srt.plugins import load_plugins

    # Names this process, and finds where a rank's title goes while the environment is still where it was.
    setproctitle.setproctitle("sglang::fork_server")
    signal.signal(signal.SIGQUIT, lambda _number, _frame: os.kill(os.getppid(), signal.SIGQUIT))
    # Before the models: they take the replaced functions by name when they are imported.
    load_plugins()
    for name in PRELOADED:
        # Whatever fails here fails again in the rank, where the engine reports it.
        with contextlib.suppress(Exception):
            importlib.import_module(name)

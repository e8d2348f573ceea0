"""The ``metal`` command: a table of verbs, each imported only when it is called.

Imports are lazy on purpose: ``metal supervise`` stands between systemd and the engine and starts with the
standard library alone; ``metal plan`` doesn't need the HTTP clients that ``metal check`` imports.

Exit status: as the verb documents; 2 for a usage error or anything the user must fix; 130 after Ctrl-C.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Final

from minimax_metal import __version__
from minimax_metal.common.errors import UserError

EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130
EXIT_PIPE: Final = 141
CONTROLLER: Final = "minimax_metal.controller"

VERBS: Final[dict[str, tuple[str, str]]] = {
    # verb: ("module:function", one line for the help). Each function takes the arguments after the verb and
    # returns the exit status.
    "accept": (
        "minimax_metal.controller.verbs.accept:main",
        "run the acceptance test for the first GPU host of a new kind",
    ),
    "bundle": (
        "minimax_metal.controller.verbs.bundle:main",
        "download everything a fleet needs into one directory: export, verify, import, serve",
    ),
    "check": (
        "minimax_metal.host.check.commands:main",
        "test an endpoint: the vendor guides' calls, made with the official clients",
    ),
    "explain": (
        "minimax_metal.host.engine.explain:main",
        "explain why an engine ended, from a journal or log file",
    ),
    "gateway": (
        "minimax_metal.host.gateway.commands:main",
        "list, sync, drain and undrain the workers of this host's gateway",
    ),
    "kernel-lines": (
        "minimax_metal.host.engine.kernel_lines:main",
        "copy the kernel's GPU messages to where the engine's supervisor reads them",
    ),
    "kernels": ("minimax_metal.host.engine.kernels:main", "share compiled kernels between identical hosts"),
    "keys": (
        "minimax_metal.controller.verbs.keys:main",
        "rotate the fleet's keys while it serves (playbooks/rotate.yml)",
    ),
    "lock": ("minimax_metal.host.lock:main", "show or release the fleet lock, as seen from this host"),
    "plan": (
        "minimax_metal.controller.verbs.plan:main",
        "show whether and how hosts can serve a model, or why not",
    ),
    "record": (
        "minimax_metal.host.releases.record:main",
        "save the plan that was applied and verified as a release",
    ),
    "report": (
        "minimax_metal.controller.report.make:main",
        "rebuild the report of a site, rollout or rollback run",
    ),
    "rollback": (
        "minimax_metal.controller.verbs.run:rollback",
        "return hosts to a release they still have (playbooks/rollback.yml)",
    ),
    "rollout": (
        "minimax_metal.controller.verbs.run:rollout",
        "change the fleet host by host, with a live view (playbooks/rollout.yml)",
    ),
    "site": ("minimax_metal.controller.verbs.run:site", "run site.yml with a live view and a report"),
    "releases": (
        "minimax_metal.host.releases.commands:main",
        "list the releases that this host can roll back to",
    ),
    "rollout-state": ("minimax_metal.host.releases.journal:main", "note a rollout's progress on this host"),
    "soak": ("minimax_metal.host.soak:main", "check that a replica works as well as before"),
    "status": (
        "minimax_metal.controller.status.commands:main",
        "show what every host serves, its health, and its drift from the inventory",
    ),
    "supervise": (
        "minimax_metal.host.engine.supervise:main",
        "run the engine under systemd and report its real state",
    ),
    "warm": (
        "minimax_metal.host.weights.warm:main",
        "read weights into the page cache before the engine does",
    ),
    "weights": ("minimax_metal.host.weights.commands:main", "pull, verify, list or remove a model's weights"),
}


ELSEWHERE: Final[dict[tuple[str, str], str]] = {
    # Not a verb on hosts: their wheel leaves the controller's modules out.
    ("accept", "--list"): "minimax_metal.host.accept.commands:main",
    ("accept", "--local"): "minimax_metal.host.accept.commands:main",
    ("keys", "accepted"): "minimax_metal.host.engine.accepted_keys:main",
    ("status", "--here"): "minimax_metal.host.status.commands:main",
}
ON_HOSTS: Final[dict[str, str]] = {"status": "minimax_metal.host.status.commands:main"}
"""Stand in for the controller's verbs on hosts, where the controller's modules aren't installed."""


def usage() -> str:
    """Return the help text."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {line}" for verb, (_, line) in sorted(VERBS.items()))
    return f"usage: metal VERB [ARGUMENT ...]\n\n{verbs}\n\nRun 'metal VERB --help' for details."


def load(target: str) -> Callable[[list[str]], int]:
    """Import ``module:function`` and return the function."""
    module, _, name = target.partition(":")
    function: Callable[[list[str]], int] = getattr(importlib.import_module(module), name)
    return function


def function_of(verb: str, words: Sequence[str]) -> Callable[[list[str]], int]:
    """Return the function that runs a verb with these arguments on this machine.

    Raises:
        UserError: it is a controller verb, and this is a host.
    """
    target = next((ELSEWHERE[verb, word] for word in words if (verb, word) in ELSEWHERE), VERBS[verb][0])
    try:
        return load(target)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(CONTROLLER):
            raise
    if verb in ON_HOSTS:
        return load(ON_HOSTS[verb])
    raise UserError(
        "found a host, where only the host part of minimax-metal is installed, expected the "
        "controller; run this verb in the checkout there"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit status; a :class:`UserError` becomes one line on standard error."""
    for name in ("stdout", "stderr"):
        # Closed by the caller. argparse in Debian 12's Python 3.11.2 writes to it anyway, and fails.
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
    try:
        try:
            return _run(argv)
        finally:
            # Python flushes at exit; if the reader has gone, that would print a message and end with status
            # 120.
            sys.stdout.flush()
    except BrokenPipeError:
        return _unread()
    except SystemExit as error:
        # In that case rich ends the program with status 1.
        if isinstance(error.__context__, BrokenPipeError):
            return _unread()
        raise


def _run(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(usage())
        return 0 if arguments else EXIT_USAGE
    verb, *rest = arguments
    if verb == "--version":
        print(f"metal {__version__}")
        return 0
    if verb not in VERBS:
        print(f"metal: unknown verb {verb!r}; expected one of {', '.join(sorted(VERBS))}", file=sys.stderr)
        return EXIT_USAGE
    try:
        return function_of(verb, rest)(rest)
    except UserError as error:
        print(f"metal {verb}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print(f"metal {verb}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _unread() -> int:
    """End as other programs do when their reader has gone (``metal plan | head -1``)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_PIPE


if __name__ == "__main__":
    sys.exit(main())

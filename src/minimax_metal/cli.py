"""The ``metal`` command: a table of verbs, each imported only when it is called.

Lazy on purpose: ``metal supervise`` stands between systemd and the engine and starts with the standard
library alone; ``metal plan`` needs none of the clients that ``metal check`` brings.

Exit status: what the verb documents; 2 for a usage error or anything the user must fix; 130 after
Ctrl-C.
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
    # verb: ("module:function", one line for the help); every function takes the arguments after the verb
    # and returns the exit status.
    "accept": ("minimax_metal.controller.verbs.accept:main", "accept the first GPU host of a kind"),
    "bundle": (
        "minimax_metal.controller.verbs.bundle:main",
        "all that a fleet fetches in one directory: export, verify, import, serve",
    ),
    "check": (
        "minimax_metal.host.check.commands:main",
        "prove an endpoint: the guides' calls with the official clients",
    ),
    "explain": ("minimax_metal.host.engine.explain:main", "why an engine ended, from any journal or log"),
    "gateway": (
        "minimax_metal.host.gateway.commands:main",
        "this host's gateway: list, sync, drain and undrain its workers",
    ),
    "kernel-lines": (
        "minimax_metal.host.engine.kernel_lines:main",
        "keep the kernel's lines about GPUs where the engine's supervisor reads them",
    ),
    "kernels": ("minimax_metal.host.engine.kernels:main", "share compiled kernels between equal hosts"),
    "keys": (
        "minimax_metal.controller.verbs.keys:main",
        "change the fleet's keys while it serves (playbooks/rotate.yml)",
    ),
    "lock": ("minimax_metal.host.lock:main", "who changes the fleet, seen from this host"),
    "plan": (
        "minimax_metal.controller.verbs.plan:main",
        "say whether hosts can serve a model, how, and why not",
    ),
    "record": (
        "minimax_metal.host.releases.record:main",
        "keep the plan that was applied and verified as a release",
    ),
    "report": (
        "minimax_metal.controller.report.make:main",
        "make the report of a run of site, rollout or rollback again",
    ),
    "rollback": (
        "minimax_metal.controller.verbs.run:rollback",
        "take hosts back to a release they still have (playbooks/rollback.yml)",
    ),
    "rollout": (
        "minimax_metal.controller.verbs.run:rollout",
        "change the fleet host by host, with a live view (playbooks/rollout.yml)",
    ),
    "site": ("minimax_metal.controller.verbs.run:site", "run site.yml with a live view and a report"),
    "releases": ("minimax_metal.host.releases.commands:main", "the releases a host keeps to go back to"),
    "rollout-state": ("minimax_metal.host.releases.journal:main", "what a rollout is doing with this host"),
    "soak": ("minimax_metal.host.soak:main", "whether a replica does its work as well as before"),
    "status": (
        "minimax_metal.controller.status.commands:main",
        "what every host serves, how it is, and where it drifted from the inventory",
    ),
    "supervise": (
        "minimax_metal.host.engine.supervise:main",
        "start the engine for systemd and tell it the truth",
    ),
    "warm": ("minimax_metal.host.weights.warm:main", "read weights into the page cache, ahead of the engine"),
    "weights": ("minimax_metal.host.weights.commands:main", "a model's weights: pull, verify, list, remove"),
}


ELSEWHERE: Final[dict[tuple[str, str], str]] = {
    # A verb with this word is another room's: what runs on a host needs nothing of the controller.
    ("accept", "--list"): "minimax_metal.host.accept.commands:main",
    ("accept", "--local"): "minimax_metal.host.accept.commands:main",
    ("keys", "accepted"): "minimax_metal.host.engine.accepted_keys:main",
    ("status", "--here"): "minimax_metal.host.status.commands:main",
}
ON_HOSTS: Final[dict[str, str]] = {"status": "minimax_metal.host.status.commands:main"}
"""What a verb of the controller does on a host, where the controller's room is not installed."""


def usage() -> str:
    """Return the help text."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {line}" for verb, (_, line) in sorted(VERBS.items()))
    return f"usage: metal VERB [ARGUMENT ...]\n\n{verbs}\n\n'metal VERB --help' says more."


def load(target: str) -> Callable[[list[str]], int]:
    """Import ``module:function`` and return the function."""
    module, _, name = target.partition(":")
    function: Callable[[list[str]], int] = getattr(importlib.import_module(module), name)
    return function


def function_of(verb: str, words: Sequence[str]) -> Callable[[list[str]], int]:
    """Return what carries out a verb with these arguments on this machine.

    Raises:
        UserError: it is a verb of the controller, and this is a host.
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
        "found a host, which has the host's part of minimax-metal only, expected the machine where Ansible "
        "runs; run it in the checkout there"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit status; a :class:`UserError` becomes one line on standard error."""
    try:
        try:
            return _run(argv)
        finally:
            # Python flushes at its end, where a reader that has gone away would be a message and status 120.
            if sys.stdout is not None:  # closed by whoever started this
                sys.stdout.flush()
    except BrokenPipeError:
        return _unread()
    except SystemExit as error:
        # rich ends the program with status 1 then.
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
    """Whoever read our output has seen enough (``metal plan | head -1``): end as other programs do then."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_PIPE


if __name__ == "__main__":
    sys.exit(main())

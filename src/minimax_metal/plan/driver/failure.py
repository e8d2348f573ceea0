"""Why a driver installation failed, in one line: pure, from messages of apt, dpkg and Ansible.

The first cause counts, whatever follows it. Each rule names the exact URL, package, kernel, module or
process; field cases are in ``tests/unit/test_driver_failure.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from minimax_metal.plan.driver import failure_host as host
from minimax_metal.plan.driver import failure_packages as packages
from minimax_metal.plan.driver import failure_sources as sources
from minimax_metal.plan.driver.apt_words import end_of, lines_of, urls_of
from minimax_metal.plan.driver.facts import read_collected
from minimax_metal.plan.driver.failure_case import AGAIN, Failure


def failure_line(
    failed: Mapping[str, Any], url: str, collected: Mapping[str, Any] | None = None, module: str = ""
) -> str:
    """Explain why an installation failed: found, expected, what to do, in one line without the host's name.

    Args:
        failed: the result of the failed task: msg, stderr, stdout, and those of a loop's items; that of an
            assertion is passed on.
        url: NVIDIA's repository, as configured.
        collected: facts that the module metal_driver_facts collected afterwards: DKMS logs, users of a
        module.
        module: the driver whose modules were built, in words.

    Raises nothing; an unknown error is passed on, its end first.
    """
    if "evaluated_to" in failed:  # an assertion of ours, which says all of it
        return str(failed.get("msg"))
    lines = lines_of(failed)
    named = str(failed.get("url") or "")
    if named and not any(urls_of(line) for line in lines):
        lines = [f"{line} {named}" for line in lines]
    failure = Failure(lines, url, read_collected(collected), module)
    for rule in _RULES:
        if said := rule(failure):
            return " ".join(said.split())
    return (
        f"found a failed installation ({end_of(lines) or 'without output'}), expected it to succeed; "
        f"fix the error and {AGAIN}"
    )


_RULES: Final[Sequence[Callable[[Failure], str | None]]] = (
    host.interrupted, host.locked, host.read_only, host.clock, host.temporary, host.python_apt,
    sources.two_keys, sources.medium, host.full, packages.overwrite, packages.mounted,
    packages.changed_file, packages.broken_archive, packages.dkms, packages.headers, host.held_module,
    packages.not_loaded, sources.proxy, sources.certificate, sources.signature, sources.mismatch,
    sources.renamed, sources.status, sources.network, packages.missing, packages.refused,
    packages.unmet, packages.unconfigured, packages.script, sources.sources_file, packages.lists,
)  # fmt: skip
"""The order of the rules: causes that stop everything else come before their consequences."""

"""Why an installation of the driver failed, in one line: pure, from what apt, dpkg and Ansible said."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from minimax_metal.plan.driver_kernel import kernel_problem

_CAUSES: Sequence[tuple[str, str, str, str]] = (
    # pattern, what was found, what was expected, what to do; the first that matches counts.
    (
        r"NO_PUBKEY|BADSIG|EXPKEYSIG|EXPSIG|is not signed|Missing key|OpenPGP signature|sqv returned",
        "a signature of the package repository that does not fit its key",
        "the key of nvidia_driver_repository_key",
        "check the mirror, nvidia_driver_repository_key and nvidia_driver_repository_key_fingerprint; "
        "nothing was installed",
    ),
    (
        r"Hash Sum mismatch|File has unexpected size|Mirror sync in progress",
        "files of the package repository that do not fit its index",
        "a mirror that is in step with itself",
        "wait for the mirror or set nvidia_driver_repository_url to another one",
    ),
    (
        r"Could not resolve|Temporary failure resolving|Name or service not known|Connection refused|"
        r"Connection timed out|Could not connect|Unable to connect|timed out|urlopen error|"
        r"Network is unreachable|No route to host|Failed to fetch|HTTP Error|Request failed|404 +Not Found",
        "a package repository that does not answer",
        "an answer from {url}",
        "check the network, nvidia_driver_repository_url and nvidia_driver_repository_proxy, then run the "
        "playbook again; it goes on from here",
    ),
    (
        r"No package matching|Unable to locate package|has no installation candidate|"
        r"no available installation|Version '.*' for '.*' was not found",
        "a package that the repository does not hold",
        "it at {url}",
        "check that the mirror is complete for this distribution",
    ),
    (
        r"No space left on device",
        "a full disk",
        "2 GB free on / and /var",
        "free some space and run the playbook again",
    ),
    (
        r"Could not get lock|Unable to acquire the dpkg|is another process using it",
        "apt locked by another process",
        "apt free within the time Ansible waits",
        "wait for unattended upgrades to end and run the playbook again",
    ),
    (
        r"unmet dependencies|held broken packages|pkgProblemResolver|Unsatisfied dependencies",
        "packages of another source that stand in the way",
        "only packages of one driver",
        "look at apt-get -s install of the packages on the host, and remove what conflicts",
    ),
    (
        # Ansible's words where apt gave no reason.
        r"Failed to update apt cache",
        "package lists that could not be fetched",
        "an answer from every source of apt",
        "run apt-get update on the host, mend or remove the source it names, then run the playbook again",
    ),
)


def failure_line(
    failed: Mapping[str, Any], url: str, collected: Mapping[str, Any] | None = None, module: str = ""
) -> str:
    """Say why an installation failed: found, expected, what to do, in one line without the host's name.

    Args:
        failed: the result of the failed task: msg, stderr, stdout.
        url: the package repository.
        collected: what metal_driver_facts collected afterwards; explains a failed DKMS build.
        module: the driver whose modules were built, in words.

    Raises nothing; what is not known is passed on as it is, cut to the end.
    """
    text = "\n".join(str(failed.get(key) or "") for key in ("msg", "stdout", "stderr"))
    if collected and re.search(r"Bad return status for module build|dkms.*(fail|error)", text, re.IGNORECASE):
        problem = kernel_problem(collected, module)
        if problem:
            return problem
    for pattern, found, expected, remedy in _CAUSES:
        match = re.search(pattern, text)
        if match:
            said = _line_of(text, match.start())
            return f"found {found} ({said}), expected {expected.format(url=url)}; {remedy}"
    said = " ".join(text.split())[-400:]
    return f"found a failed installation ({said}), expected it to end; mend that and run the playbook again"


def _line_of(text: str, position: int) -> str:
    """The line around a position, without apt's marks, at most 200 characters."""
    start, end = text.rfind("\n", 0, position) + 1, text.find("\n", position)
    line = text[start : end if end >= 0 else None]
    if len(line) > 200:  # everything in one line: what is around the match
        middle = position - start
        line = line[max(0, middle - 60) : middle + 140]
    return " ".join(line.removeprefix("E: ").removeprefix("W: ").split())

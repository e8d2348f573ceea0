"""Why a host can't be read, from messages of Ansible, SSH, sudo and the host's shell.

Pure. The rules are in :mod:`minimax_metal.plan.connection_rules`, in the order in which causes occur: a
changed host key makes SSH disable passwords, and the last line then only says "Permission denied".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from minimax_metal.common.text import one_line, printable
from minimax_metal.plan.connection_rules import DEFAULTS, RULES
from minimax_metal.plan.model import Refusal

TEXTS: Final = ("msg", "module_stderr", "stderr", "module_stdout", "stdout")
"""Parts of an Ansible result that may contain the reason, the most informative first."""
LONGEST: Final = 32_000
"""Maximum characters read of each: of a longer text half from its beginning and half from its end."""
AWAY: Final = frozenset({"unreachable", "ssh-host-key", "ssh-login", "ssh-proxy"})
"""Codes that mean that no command was run on the host."""

_NOISE: Final = re.compile(
    r"^(?:debug\d:|OpenSSH_|Warning: Permanently added|Shared connection to|Connection to \S+ closed\.|"
    r"\*\* WARNING: connection is not using|\*\* This session may|\*\* The server may need|"
    r"ControlSocket \S+ already exists|sudo: unable to resolve host|(?:ba)?sh: warning: setlocale|"
    r"\[WARNING\]: (?!.{0,300}(?:vault|decrypt))|\[DEPRECATION|Origin: |<<<)"
)
_SAYS_NOTHING: Final = re.compile(
    r"^(?:MODULE FAILURE\b.*|non-zero return code|See std(?:out|err).*|"
    r"Failed to connect to the host via \w+:?|"
    r"Module result deserialization failed.*|Traceback \(most recent call last\):|[@=~^\s-]*)$"
)
_WRAPPERS: Final = re.compile(
    r"^(?:(?:Task failed|fatal|ERROR!?|\[ERROR\]): ?|Failed to connect to the host via \w+: )+"
)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a host can't be read, in the parts of a refusal."""

    code: str
    found: str
    needed: str
    remedy: str

    @property
    def away(self) -> bool:
        """Whether no command was run on the host: it counts as unreachable."""
        return self.code in AWAY

    def refusal(self) -> Refusal:
        """Return it as a refusal of the host."""
        return Refusal(self.code, self.found, self.needed, self.remedy)

    def line(self) -> str:
        """Return it without the host's name."""
        return f"found {self.found}; needed {self.needed}; {self.remedy}"


def text_of(answer: Mapping[str, Any]) -> str:
    """Return all messages in a task's result, printable and bounded."""
    said: list[str] = []
    for key in TEXTS:
        part = answer.get(key)
        if isinstance(part, list | tuple):
            part = "\n".join(str(one) for one in part[:1000])
        if isinstance(part, str) and part.strip() and part not in said:
            said.append(_ends(part))
    return "\n".join(said)


def _ends(text: str, times: int = 1) -> str:
    """Return a text without its middle if it is longer than so many times :data:`LONGEST`."""
    half = times * LONGEST // 2
    return text if len(text) <= 2 * half else f"{text[:half]}\n{text[-half:]}"


def trouble_of(answer: Mapping[str, Any], host: str = "", user: str = "") -> Trouble:
    """Return why a host can't be read, from an Ansible result that failed or was unreachable."""
    return trouble_in(text_of(answer), host=host, user=user, unreachable=bool(answer.get("unreachable")))


def trouble_in(text: str, *, host: str = "", user: str = "", unreachable: bool = False) -> Trouble:
    """Return why a host can't be read, from messages.

    Args:
        text: messages of Ansible, SSH, sudo, Python or a shell, in any order.
        host: its name in the inventory, for commands in the remedy.
        user: who logs in, if known.
        unreachable: whether Ansible itself calls the host unreachable; for texts that no rule matches.
    """
    lines = [line[:2000] for line in printable(_ends(text, 4).replace("\r", "\n")).splitlines()]
    clean = "\n".join(line for line in lines if not _NOISE.match(line.lstrip()))
    for rule in RULES:
        match = rule.pattern.search(clean)
        if match is None:
            continue
        values = {
            **DEFAULTS,
            **({"host": host, "name": host} if host else {}),
            **({"user": user} if user else {}),
        }
        values |= {
            key.rstrip("0123456789"): one_line(value, 200).rstrip(".:")
            for key, value in match.groupdict().items()
            if value
        }
        return Trouble(
            rule.code, *(part.format_map(values) for part in (rule.found, rule.needed, rule.remedy))
        )
    return _unknown(clean, host or "HOST", unreachable=unreachable)


def _unknown(text: str, host: str, *, unreachable: bool) -> Trouble:
    lines = [_WRAPPERS.sub("", line.strip()) for line in text.splitlines()]
    lines = [line for line in lines if not _SAYS_NOTHING.match(line)]
    said = one_line(lines[-1], 300) if lines else ""
    if unreachable:
        return Trouble(
            "unreachable",
            f"no connection over SSH ({said})" if said else "no answer over SSH, and no reason given",
            "a host that Ansible can connect to",
            f"try ssh -v {host} from this machine: its last lines show where the connection fails",
        )
    return Trouble(
        "host-unread",
        f"a host that answers but whose facts could not be read ({said or 'no reason was given'})",
        "the facts of the host",
        "run the playbook with -vvv: Ansible then prints everything the host answered",
    )

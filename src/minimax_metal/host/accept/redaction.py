"""What may leave a host in a bundle: never a key, and no names of the site if anonymised."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from minimax_metal.common.redact import Redactor, is_secret_name, secrets_of_directories

KEYS: Final = (Path("/etc/sglang"), Path("/etc/sglang-gateway"), Path("/etc/minimax-metal/tokens"))
"""Directories whose files (or files one level below) contain keys and tokens, beside configuration."""
TOKENS: Final = (Path("/root/.cache/huggingface"), Path("/root/.config/modelscope"))

_UUID: Final = re.compile(
    r"\b((?:GPU|MIG)-)?[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\b"
)
_SERIAL: Final = re.compile(
    r"(?im)^([^\S\n]*(?:Chassis )?Serial(?: Number)?\s{0,80}[:=]\s{0,80}|"
    r".*?\bserial(?:_number)?[\"']?\s*[:=]\s*[\"']?)"
    r"(?!N/A\b|None\b|\[N/A\])([A-Za-z0-9-]{4,})"
)
_GUID: Final = re.compile(r"\b0x[0-9a-fA-F]{16}\b")
_MAC: Final = re.compile(r"\b(?:[0-9a-fA-F]{2}:){5,7}[0-9a-fA-F]{2}\b")
_ADDRESS4: Final = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")
_ADDRESS6: Final = re.compile(r"(?<![\w:.])(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4}(?:%\w+)?(?![\w:.])")
_KEPT: Final = frozenset({"127.0.0.1", "0.0.0.0", "::", "::1", "255.255.255.255"})  # noqa: S104  # never bound


def secrets_of_host(
    directories: Iterable[Path] = KEYS, tokens: Iterable[Path] = TOKENS, environments: Iterable[str] = ()
) -> list[str]:
    """Return secret texts on a host.

    ``environments`` are units' ``Environment`` values from systemd: those named like a secret count.
    """
    found: list[str] = []
    for directory in directories:
        try:
            below = [path for path in sorted(directory.iterdir()) if path.is_dir()]
        except OSError:
            continue
        for text in secrets_of_directories([directory, *below]):
            # A line of configuration is secret only in values named like secrets.
            named = re.fullmatch(r"[\"']?([\w-]+)[\"']?\s*[:=]\s*[\"']?([^\"'\s]+?)[\"']?,?", text)
            if named:
                found += [named[2]] if is_secret_name(named[1].replace("-", "_")) else []
            elif not re.search(r"\s", text):
                found.append(text)
    found += secrets_of_directories(tokens)
    for text in environments:
        for name, value in re.findall(r"(\w+)=(\"[^\"]*\"|\S+)", text):
            if is_secret_name(name):
                found.append(value.strip('"'))
    return found


class Redaction(Redactor):
    """Masks keys and tokens in texts; with ``anonymise`` also serial numbers, UUIDs, addresses and names.

    The same thing gets the same number everywhere, so that two files of a bundle still refer to the same GPU.
    """

    def __init__(self, secrets: Iterable[str], *, anonymise: bool = False, names: Iterable[str] = ()) -> None:
        super().__init__(secrets)
        self.anonymise = anonymise
        # Longest first: a short host name is part of the long one. `host` is nobody's name.
        self.names = sorted({name for name in names if len(name) > 2}, key=len, reverse=True)
        self.numbers: dict[str, dict[str, int]] = {}

    def text(self, text: str) -> str:
        """Return ``text`` without anything that may not leave the host."""
        text = super().text(text)
        if not self.anonymise:
            return text
        text = _UUID.sub(lambda found: self._number("uuid", found[0].lower(), found[1] or ""), text)
        text = _SERIAL.sub(lambda found: found[1] + self._number("serial", found[2]), text)
        text = _GUID.sub(lambda found: self._number("guid", found[0].lower()), text)
        text = _MAC.sub(lambda found: self._number("mac", found[0].lower()), text)
        for pattern in (_ADDRESS4, _ADDRESS6):
            text = pattern.sub(self._address, text)
        for place, name in enumerate(self.names):
            text = re.sub(rf"(?<![\w]){re.escape(name)}(?![\w])", f"host-name-{place + 1}", text)
        return text

    def _address(self, found: re.Match[str]) -> str:
        try:
            address = ipaddress.ip_address(found[0].partition("%")[0])
        except ValueError:
            return found[0]  # a version of four parts, a time, a PCI address
        if found[0] in _KEPT or address.is_loopback:
            return found[0]
        return self._number("address", str(address))

    def _number(self, kind: str, what: str, before: str = "") -> str:
        known = self.numbers.setdefault(kind, {})
        return f"{before}{kind}-{known.setdefault(what, len(known) + 1)}"

"""systemd's notification protocol (sd_notify(3)), standard library only."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from minimax_metal.common.text import one_line

LONGEST: Final = 4_000
"""Maximum characters of a value; a datagram may have some 200 KB, a useful status line far less."""


@dataclass(frozen=True, slots=True)
class Notifier:
    """Sends datagrams to the socket in ``NOTIFY_SOCKET``; silent if it is not set."""

    address: str | None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Notifier:
        """Return a notifier for ``$NOTIFY_SOCKET``."""
        return cls((os.environ if environment is None else environment).get("NOTIFY_SOCKET") or None)

    def send(self, **fields: str | int) -> bool:
        """Send one datagram of ``KEY=value`` lines; return whether a socket accepted it.

        A status line that can't be delivered is no reason to stop an engine, so nothing is raised.
        """
        if self.address is None:
            return False
        # A leading "@" stands for the null byte of an abstract address (sd_notify(3)).
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        message = "\n".join(f"{key}={one_line(str(value), LONGEST)}" for key, value in fields.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.settimeout(1.0)
                channel.sendto(message.encode(), address)
        except OSError:
            return False
        return True

    def status(self, text: str) -> bool:
        """Set the line that ``systemctl status`` shows."""
        return self.send(STATUS=text)

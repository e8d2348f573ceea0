"""The request's settings for sharing: the other hosts, and the limits."""

from __future__ import annotations

import ipaddress
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from minimax_metal.common.documents import digits
from minimax_metal.common.errors import UserError
from minimax_metal.common.files import read_bounded
from minimax_metal.common.text import has_controls
from minimax_metal.host.weights import share_keys as keys

CREDENTIAL: Final = "share"
"""Name of the systemd credential with the fleet's secret (``LoadCredential=share:…``)."""

PORT: Final = 18320
PIECE: Final = 64 << 20
"""Bytes of a piece: small compared with a model (230 GB are 3,400 pieces), large compared with a request."""
MOST_PEERS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Peer:
    """Another host of the fleet that pulls the same model; ``address``: an IP address or a name."""

    name: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Share:
    """How one pull is shared."""

    me: str
    peers: tuple[Peer, ...]
    port: int = PORT
    piece: int = PIECE
    origin_hosts: int = 8
    """Hosts of the fleet that read from the origin in parallel."""
    uploads: int = 8
    """Pieces sent in parallel; further requests are told to ask another host."""
    rate: int = 0
    """Maximum bytes per second sent, to all peers together; 0 means no limit."""
    poll: float = 0.25
    """Minimum seconds between two checks of a peer's log."""
    allow: tuple[str, ...] = ()
    """Additional networks that may connect: of peers that use other source addresses."""
    secret_file: Path | None = None
    """Path of the secret, if systemd does not pass it."""

    @property
    def names(self) -> tuple[str, ...]:
        """All hosts, in the order that every one of them knows."""
        return tuple(sorted([self.me, *(peer.name for peer in self.peers)]))

    @classmethod
    def parse(cls, raw: Any) -> Share | None:
        """Parse the request's field ``share``; None if there is no host to share with.

        Raises:
            UserError: a field is missing or wrong.
        """
        if not raw:
            return None
        if not isinstance(raw, Mapping) or not _is_name(raw.get("me")):
            raise UserError("request field 'share' does not name this host; expected 'me' and 'peers'")
        port = _number(raw, "port", PORT, 1, 65535)
        peers = []
        found = raw.get("peers") or []
        if not isinstance(found, list) or len(found) > MOST_PEERS:
            raise UserError(f"request share peers is not a list of at most {MOST_PEERS} hosts")
        for peer in found:
            if not isinstance(peer, Mapping) or not (
                _is_name(peer.get("name")) and _is_name(peer.get("address"))
            ):
                raise UserError(f"request share peer {peer!r} is not a host; expected its name and address")
            peers.append(Peer(peer["name"], peer["address"], _number(peer, "port", port, 1, 65535)))
        names = [raw["me"], *(peer.name for peer in peers)]
        if len(set(names)) != len(names):
            raise UserError(f"request share names a host twice: {', '.join(sorted(names))}")
        allow = raw.get("allow") or []
        if not isinstance(allow, list):
            raise UserError(f"model_weights_share_allow is {allow!r}; expected a list of networks")
        for network in allow:
            try:
                ipaddress.ip_network(str(network), strict=False)
            except ValueError as error:
                raise UserError(
                    f"model_weights_share_allow contains {network!r}, which is not a network"
                ) from error
        if not peers:
            return None
        secret_file = raw.get("secret_file")
        if secret_file is not None and not isinstance(secret_file, str):
            raise UserError(f"request share secret_file is {secret_file!r}; expected a path")
        return cls(
            me=raw["me"],
            peers=tuple(peers),
            port=port,
            piece=_number(raw, "piece_bytes", PIECE, 1, 1 << 40),
            origin_hosts=_number(raw, "origin_hosts", 8, 1, 1 << 20),
            uploads=_number(raw, "uploads", 8, 1, 1 << 16),
            rate=_number(raw, "rate", 0, 0, 1 << 50),
            poll=_seconds(raw, "poll", 0.25),
            allow=tuple(map(str, allow)),
            secret_file=Path(secret_file) if secret_file else None,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "me": self.me,
            "peers": [{"name": peer.name, "address": peer.address, "port": peer.port} for peer in self.peers],
            "port": self.port,
            "piece_bytes": self.piece,
            "origin_hosts": self.origin_hosts,
            "uploads": self.uploads,
            "rate": self.rate,
            "poll": self.poll,
            "allow": list(self.allow),
            "secret_file": None if self.secret_file is None else str(self.secret_file),
        }

    def secrets(self) -> tuple[str, ...]:
        """Return the fleet's secrets, the current one first (:mod:`.keys`).

        Raises:
            UserError: there is none, or the file contains something else.
        """
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        file = self.secret_file or (Path(folder) / CREDENTIAL if folder else None)
        if file is None:
            raise UserError("this process did not receive the fleet's secret; start the pull by its unit")
        try:
            text = read_bounded(file, 4096).decode("ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"can't read the fleet's secret {file}; run playbooks/weights.yml again"
            ) from error
        try:
            return keys.parse(text)
        except UserError as error:
            raise UserError(
                f"{file} holds {error}, expected 64 random hexadecimal digits; remove it and run "
                "playbooks/weights.yml again"
            ) from error


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 255 and not has_controls(value)


def _seconds(raw: Mapping[str, Any], key: str, default: float) -> float:
    try:
        value = float(raw.get(key, default))
    except (TypeError, ValueError):
        value = math.nan
    if not 0.0 <= value <= 60.0:
        raise UserError(f"request share {key} is {raw.get(key)!r}; expected 0 to 60 seconds")
    return max(0.02, value)


def _number(raw: Mapping[str, Any], key: str, default: int, least: int, most: int) -> int:
    value = raw.get(key)
    if value is None or value == "":
        return default
    if isinstance(value, str) and (found := digits(value)) is not None:  # templates tend to quote numbers
        value = found
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise UserError(f"request share {key} is {value!r}; expected {least} to {most}")
    return value

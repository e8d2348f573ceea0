"""When a certificate ends, read with the standard library only, because a host's status has nothing else.

X.509 (RFC 5280, 4.1) in DER: ``Certificate`` contains ``TBSCertificate``, which contains an optional version,
a serial number, the signature algorithm, the issuer, and ``Validity`` with two times. Nothing is verified.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from minimax_metal.common.files import read_bounded

BYTES: Final = 1 << 18
_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]{1,65536})-----END CERTIFICATE-----")
_SEQUENCE, _VERSION, _UTC_TIME, _GENERAL_TIME = 0x30, 0xA0, 0x17, 0x18


def end_of_file(path: Path) -> datetime | None:
    """Return when the first certificate of a file ends, or None if the file contains none.

    Raises:
        OSError: the file does not exist, or can't be read.
    """
    return end_of(read_bounded(path, BYTES))


def end_of(pem: bytes) -> datetime | None:
    """Return when the first certificate in a text (PEM) ends, in UTC, or None if there is none."""
    found = _PEM.search(pem)
    if found is None:
        return None
    try:
        certificate, _ = _open(b64decode(found[1]), _SEQUENCE)
        fields, _ = _open(certificate, _SEQUENCE)
        if fields[:1] == bytes([_VERSION]):
            fields = _after(fields)
        for _ in ("serial number", "algorithm", "issuer"):
            fields = _after(fields)
        validity, _ = _open(fields, _SEQUENCE)
        return _time(_after(validity))
    except (binascii.Error, ValueError, IndexError):
        return None


def _parts(data: bytes) -> tuple[int, int, int]:
    """Return the tag of the first value, and where its content begins and ends.

    Raises:
        ValueError, IndexError: it is cut off, or not valid DER.
    """
    size, begin = data[1], 2
    if size & 0x80:
        count = size & 0x7F
        if not 1 <= count <= 4:
            raise ValueError("a length of no certificate")
        size, begin = int.from_bytes(data[2 : 2 + count], "big"), 2 + count
    if begin + size > len(data):
        raise ValueError("cut off")
    return data[0], begin, begin + size


def _open(data: bytes, tag: int) -> tuple[bytes, bytes]:
    """Return the content of the first value, which must have that tag, and the rest after it."""
    found, begin, end = _parts(data)
    if found != tag:
        raise ValueError("another value")
    return data[begin:end], data[end:]


def _after(data: bytes) -> bytes:
    return data[_parts(data)[2] :]


def _time(data: bytes) -> datetime:
    tag, begin, end = _parts(data)
    text = data[begin:end].decode("ascii")
    if tag == _UTC_TIME:
        # Two-digit years mean 1950 to 2049 (RFC 5280, 4.1.2.5.1).
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERAL_TIME:
        raise ValueError("not a time")
    if not re.fullmatch(r"[0-9]{14}Z", text):
        raise ValueError("not a time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


OWN_DAYS: Final = 30
"""Days before the end from which a user's certificate causes a warning: the time a renewal may take."""
FLEET_DAYS: Final = 90
"""The same for the fleet's own certificates. A run renews them with a third of a year left, so at this point
there has been no run for a month.
"""


def warning(name: str, end: datetime | None, now: datetime, *, fleet: bool) -> str | None:
    """Return a warning for a certificate that ends soon, has ended, or is not one; None for a good one.

    Args:
        name: its name in the message.
        end: its end; None if it can't be read.
        now: the time.
        fleet: whether the fleet's CA issued it, so that a run renews it.
    """
    do = "run site.yml, which renews it" if fleet else "renew it, then restart what serves by it"
    if end is None:
        return f"{name}: found no certificate that can be read; {do}"
    days = (end - now).days
    if days >= (FLEET_DAYS if fleet else OWN_DAYS):
        return None
    when = f"ended on {end:%Y-%m-%d}" if end <= now else f"ends on {end:%Y-%m-%d}, in {days} days"
    return f"{name} {when}; {do}"

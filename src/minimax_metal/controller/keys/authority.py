"""The fleet's own certificate authority (``metal_tls: fleet``): created once on the controller.

``secrets/tls/ca.key`` never leaves the controller. Clients trust ``secrets/tls/ca.crt``. Each host has its
own key and certificate, created here and copied to it. A key created on the host would save one copy, but
cost a request, an answer and a state in between on every run; root on the controller controls the host
anyway. The CA is not bound to names: otherwise clients would need another one with each new host.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import ipaddress
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from minimax_metal.common.errors import UserError
from minimax_metal.common.files import read_bounded, sync_directory, write_atomic

CA_DAYS: Final = 3650
HOST_DAYS: Final = 365
"""A renewal restarts the engine, which loads for minutes: this happens once in eight months."""
LARGEST: Final = 65_536
_EARLIER: Final = datetime.timedelta(hours=1)
"""Certificates begin a little earlier: clocks of hosts differ."""
_NAME: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?")
_LABEL: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,240}")


@dataclass(frozen=True)
class Issued:
    """A host's certificate with its key, and the CA's certificate; all PEM."""

    certificate: str
    key: str
    ca: str
    until: str
    """The day that the certificate ends, as ``2027-03-01``."""


def names_of(names: Iterable[str]) -> tuple[x509.GeneralName, ...]:
    """Return the names and addresses that a certificate is for, each once, in order.

    Raises:
        UserError: one is neither a name nor an address.
    """
    found: list[x509.GeneralName] = []
    for text in dict.fromkeys(name.strip("[]") for name in names if name):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(text)))
        except ValueError:
            if not _NAME.fullmatch(text):
                raise UserError(
                    f"found {text!r} as a host's name, expected a DNS name or an address; set "
                    "metal_address, or ansible_host"
                ) from None
            found.append(x509.DNSName(text))
    return tuple(found)


def issued(directory: Path, host: str, names: Sequence[str], *, keep: bool = True, now: Any = None) -> Issued:
    """Return a host's certificate: the stored one while it is good, else a new one.

    A new certificate is made if less than a third of its life is left, if names or the CA changed, and if it
    or its key can't be used. The CA is created if the directory has none; one that is incomplete, readable by
    others or about to end is refused, since clients trust it.

    Args:
        directory: ``tls`` in the secrets directory; created with mode 0700.
        host: name of the files.
        names: names and addresses that clients and gateways use.
        keep: whether new files are written (not in check mode).
        now: an aware time; the clock's by default.

    Raises:
        UserError: in one line, never with any part of a key.
    """
    moment = now or datetime.datetime.now(datetime.timezone.utc)  # noqa: UP017  # Python 3.11 has both
    if not _LABEL.fullmatch(host):
        raise UserError(f"found the host's name {host!r}, expected letters, digits, dots and dashes")
    wanted = names_of(names or [host])
    try:
        with _alone(directory, keep=keep):
            ca_key, ca = _authority(directory, moment, keep=keep)
            place, key_place = directory / f"host-{host}.crt", directory / f"host-{host}.key"
            kept = _kept_host(place, key_place, ca, wanted, moment)
            if kept is None:
                key = ec.generate_private_key(ec.SECP256R1())
                kept = _sign(key.public_key(), host, wanted, ca_key, ca, moment), key
                if keep:
                    _write_pair(place, key_place, *kept)
            elif keep:
                _settle(key_place)
    except OSError as error:
        raise UserError(
            f"found {error.filename or directory}: {error.strerror or error}; expected the fleet's "
            "certificates, which this user can read and write; fix the owner of that directory"
        ) from None
    certificate, private = kept
    return Issued(
        _public(certificate).decode(),
        _private(private).decode(),
        _public(ca).decode(),
        certificate.not_valid_after_utc.date().isoformat(),
    )


@contextlib.contextmanager
def _alone(directory: Path, *, keep: bool) -> Iterator[None]:
    """Hold the directory's lock: Ansible asks for several hosts at once, and the fleet has one CA."""
    if not keep:
        yield
        return
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (directory / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _authority(
    directory: Path, now: datetime.datetime, *, keep: bool
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key_place, place = directory / "ca.key", directory / "ca.crt"
    # A waiting key without a certificate is unused: a crash came before anybody saw either.
    if not key_place.exists() and not place.exists():
        key = ec.generate_private_key(ec.SECP384R1())
        certificate = _make_ca(key, now)
        if keep:
            _write_pair(place, key_place, certificate, key)
        return key, certificate
    if keep:
        _settle(key_place)
    elif _load_one(place, _waiting(key_place)) is not None:
        key_place = _waiting(key_place)
    anew = (
        f"restore both files from a backup, or remove {directory} and run site.yml: clients then "
        "need the new ca.crt"
    )
    if not key_place.exists() or not place.exists():
        missing = place if key_place.exists() else key_place
        raise UserError(f"found no {missing}, expected the fleet's complete certificate authority; {anew}")
    mode = stat.S_IMODE(key_place.stat().st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UserError(
            f"found {key_place} with mode {mode:04o}, expected a file that only its owner can read; "
            f"run chmod 600 {key_place}, or, if others could have read it, remove {directory} and "
            "run site.yml"
        )
    loaded = _load(place, key_place)
    if loaded is None:
        raise UserError(f"found {key_place} and {place} that don't match, or an incomplete file; {anew}")
    ca, key = loaded
    if ca.not_valid_after_utc - now < datetime.timedelta(days=HOST_DAYS):
        raise UserError(f"found {place}, which ends on {ca.not_valid_after_utc:%Y-%m-%d}; {anew}")
    return key, ca


def _write_pair(
    place: Path, key_place: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> None:
    """Replace a certificate and its key so that a kill at any moment leaves the certificate with its key
    beside it.

    The key waits under another name until its certificate is in place.
    """
    _write(_waiting(key_place), _private(key))
    _write(place, _public(certificate))
    _settle(key_place)


def _waiting(key_place: Path) -> Path:
    return key_place.with_name(f".{key_place.name}.new")


def _settle(key_place: Path) -> None:
    """Give a waiting key its name if its certificate is in place; otherwise remove it."""
    waiting = _waiting(key_place)
    if not waiting.exists():
        return
    if _load_one(key_place.with_suffix(".crt"), waiting) is None:
        waiting.unlink()
    else:
        waiting.replace(key_place)
    sync_directory(key_place.parent)


def _load(place: Path, key_place: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None:
    """Return certificate and key, which may still be waiting; None if they are missing or don't match."""
    return _load_one(place, key_place) or _load_one(place, _waiting(key_place))


def _load_one(place: Path, key_place: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None:
    try:
        certificate = x509.load_pem_x509_certificate(read_bounded(place, LARGEST))
        key = serialization.load_pem_private_key(read_bounded(key_place, LARGEST), None)
    except (FileNotFoundError, ValueError, TypeError):
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
        return None
    return certificate, key


def _kept_host(
    place: Path,
    key_place: Path,
    ca: x509.Certificate,
    wanted: Sequence[x509.GeneralName],
    now: datetime.datetime,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None:
    if any(one.exists() and one.stat().st_mode & 0o077 for one in (key_place, _waiting(key_place))):
        return None
    loaded = _load(place, key_place)
    if loaded is None:
        return None
    certificate = loaded[0]
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    try:
        certificate.verify_directly_issued_by(ca)
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception:  # cryptography raises several types; each means that it can't be used
        return None
    good = begin <= now and end - now >= (end - begin) / 3 and list(held) == list(wanted)
    return loaded if good else None


def _make_ca(key: ec.EllipticCurvePrivateKey, now: datetime.datetime) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"minimax-metal fleet {os.urandom(4).hex()}")])
    return (
        _builder(name, name, key.public_key(), key.public_key(), now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .sign(key, hashes.SHA384())
    )


def _sign(
    public: ec.EllipticCurvePublicKey,
    host: str,
    names: Sequence[x509.GeneralName],
    ca_key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    now: datetime.datetime,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
    return (
        _builder(subject, ca.subject, public, ca_key.public_key(), now, HOST_DAYS)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
        decipher_only=False,
    )  # fmt: skip


def _public(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(place: Path, content: bytes) -> None:
    write_atomic(place, content, mode=0o600)

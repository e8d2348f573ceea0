"""The signature of a bundle's manifest, made with OpenSSH's ``ssh-keygen -Y`` (OpenSSH 8.1 and later).

OpenSSH is on every machine that runs Ansible, its keys are ones that people already have (hardware keys and
agents included), and its format is documented (PROTOCOL.sshsig). The signer has the private key; the receiver
must already have the public key, from another source than the disk.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from minimax_metal.common.errors import UserError
from minimax_metal.common.files import read_bounded

NAMESPACE: Final = "minimax-metal-bundle"
"""Signatures made for other purposes, such as git commits, don't count for a bundle."""
SIGNERS: Final = Path("/etc/minimax-metal/bundle-signers")
"""Default file of public keys: one per line, as in ``.pub`` files."""
LIMIT: Final = 1 << 16
_KEY: Final = re.compile(r"(?P<kind>(?:sk-)?(?:ssh|ecdsa)-[A-Za-z0-9@.-]+) (?P<key>[A-Za-z0-9+/=]+)(?: .*)?")
_IDENTITY: Final = "bundle"


def public_keys(path: Path) -> list[str]:
    """Return the public keys in a file, as ``TYPE BASE64``.

    Raises:
        UserError: it can't be read, or contains none.
    """
    try:
        text = read_bounded(path, LIMIT).decode("utf-8", "replace")
    except OSError as error:
        raise UserError(
            f"found {path} that can't be read ({error.strerror}), expected the bundle signers' "
            "public keys; name a file with --signers"
        ) from None
    keys = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        found = _KEY.fullmatch(line.strip())
        if found is None:
            raise UserError(
                f"found a line in {path} that is not a public key, expected lines such as ssh-ed25519 AAAA… "
                "name; copy them from the signers' .pub files"
            )
        keys.append(f"{found['kind']} {found['key']}")
    if not keys:
        raise UserError(f"found no public key in {path}, expected the signers' .pub lines; copy them there")
    return keys


def sign(content: bytes, key: Path) -> bytes:
    """Return the signature of a manifest; asks for the key's passphrase if it has one.

    Args:
        content: the manifest.
        key: a private key, or a public one whose private part an agent has.

    Raises:
        UserError: ssh-keygen can't sign with it.
    """
    if not key.is_file():
        raise UserError(
            f"found no key {key}, expected a private key to sign with; make one with ssh-keygen -t ed25519"
        )
    done = _ssh_keygen(["-Y", "sign", "-f", str(key), "-n", NAMESPACE], content)
    if done.returncode or b"BEGIN SSH SIGNATURE" not in done.stdout:
        raise UserError(
            f"found that ssh-keygen can't sign with {key} ({_said(done)}), expected a signature; name "
            f"another "
            "key with --sign-key"
        )
    return done.stdout


def verify(content: bytes, signature: bytes, keys: list[str]) -> str | None:
    """Return the fingerprint of the key that signed a manifest, or None if none of these keys did."""
    with tempfile.TemporaryDirectory(prefix="metal-bundle-") as scratch:
        allowed, detached = Path(scratch, "signers"), Path(scratch, "manifest.sig")
        allowed.write_text(
            "".join(f'{_IDENTITY} namespaces="{NAMESPACE}" {one}\n' for one in keys), encoding="utf-8"
        )
        detached.write_bytes(signature)
        words = ["-Y", "verify", "-f", str(allowed), "-I", _IDENTITY, "-n", NAMESPACE, "-s", str(detached)]
        done = _ssh_keygen(words, content)
    found = re.search(rb"key (SHA256:[A-Za-z0-9+/=]+)", done.stdout)
    if done.returncode or found is None:
        return None
    return found[1].decode()


def _ssh_keygen(words: list[str], content: bytes) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            ["ssh-keygen", *words], check=False, capture_output=True, input=content, timeout=300
        )
    except FileNotFoundError:
        raise UserError(
            "found no ssh-keygen, expected OpenSSH's, which signs bundles; install openssh-client"
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(
            "found ssh-keygen still waiting after 300 s, expected an answer; unlock the key or its agent"
        ) from None


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    return " ".join(done.stderr.decode("utf-8", "replace").split())[-200:]

"""A bundle's signed manifest as the list of a model's files."""

from __future__ import annotations

import base64
from pathlib import Path

from minimax_metal.common.documents import read_json
from minimax_metal.common.errors import UserError
from minimax_metal.controller.bundle_store import signature
from minimax_metal.controller.bundle_store.store import MANIFEST, SIGNATURE
from minimax_metal.host.weights.errors import SourceError
from minimax_metal.host.weights.manifest import MOST_BYTES
from minimax_metal.host.weights.proof import BUNDLE, Proof, named, now
from minimax_metal.host.weights.request import HTTP, Source
from minimax_metal.host.weights.unprivileged import as_nobody
from minimax_metal.host.weights.web import Web


def base_of(source: Source, repository: str, revision: str) -> str | None:
    """Return the address of the bundle that a source is part of, or None."""
    end = f"/weights/{repository}/{revision}"
    if source.kind != HTTP or source.endpoint is None or not source.endpoint.endswith(end):
        return None
    return source.endpoint.removesuffix(end)


def served(
    source: Source, repository: str, revision: str, signers: Path = signature.SIGNERS
) -> tuple[Proof | None, str]:
    """Return the file list in a served bundle's manifest if a known key signed it; otherwise why not.

    Args:
        source: the source in the bundle.
        repository, revision: the model, as the bundle names its directory.
        signers: public keys of trusted signers, on the controller.

    Raises:
        SourceError: the bundle does not answer.
        UserError: its manifest is invalid, or the file of keys can't be read.
    """
    base = base_of(source, repository, revision)
    if base is None:
        return None, "not in a bundle"
    if not signers.is_file():
        return None, f"no signers' keys in {signers}"
    content, signed = map(base64.b64decode, as_nobody(str(source), _both, str(source), base))
    signer = signature.verify(content, signed, signature.public_keys(signers))
    if signer is None:
        return None, f"{base}/{MANIFEST} is not signed by a key in {signers}"
    return of(content, base, signer, repository, revision), ""


def of(content: bytes, where: str, signer: str, repository: str, revision: str) -> Proof:
    """Return a model's file list from a verified manifest.

    Raises:
        UserError: it is not a bundle's manifest, or the model is not in it.
    """
    try:
        raw = read_json(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"found {where}/{MANIFEST} that is not JSON; export the bundle again") from error
    proof = named(raw, where, now(), repository=repository, revision=revision)
    origin = f"{where}, signed by {signer}"
    return Proof(BUNDLE, origin, "controller", proof.time, proof.files, repository, revision)


def _both(name: str, base: str) -> list[str]:
    web = Web(name, stall=15.0)
    found = _get(web, f"{base}/{MANIFEST}"), _get(web, f"{base}/{SIGNATURE}", signature.LIMIT)
    return [base64.b64encode(one).decode() for one in found]


def _get(web: Web, url: str, most: int = MOST_BYTES) -> bytes:
    content = bytearray()
    with web.open(url) as body:
        for block in body.blocks:
            content += block
            if len(content) > most:
                raise SourceError(f"{url} has more than {most} bytes", permanent=True)
    return bytes(content)

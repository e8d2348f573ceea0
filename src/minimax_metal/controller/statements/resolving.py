"""Resolve the files of a model once for all hosts, and store the result on the controller.

In this order: a manifest file that the user names; the result of an earlier run; the publisher's own hub over
HTTPS, asked from here, then from one host; a mirror's own list, asked from here. A mirror's list is stored
and recorded as no more than that. Nothing stored on a host, and no other host, is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.errors import UserError
from minimax_metal.common.files import read_bounded
from minimax_metal.common.text import one_line
from minimax_metal.controller.bundle_store import signature
from minimax_metal.controller.bundle_store import store as bundles
from minimax_metal.controller.statements.bundled import base_of, of, served
from minimax_metal.controller.statements.wishes import (
    Kept,
    Wish,
    file_of,
    locked,
    note_failure,
    recent_failure,
)
from minimax_metal.host.weights.asking import Ask, ask, first
from minimax_metal.host.weights.bound import authority
from minimax_metal.host.weights.errors import SourceError
from minimax_metal.host.weights.manifest import MOST_BYTES
from minimax_metal.host.weights.proof import HUB, MIRROR, Proof, differences, named
from minimax_metal.host.weights.request import DIRECTORY, Source, is_commit

HOSTS_ASKED: Final = 3
"""Number of hosts that try the hub, one after the other, if the controller can't reach it."""


@dataclass(slots=True)
class Resolved:
    """The result: the proof, if any source gave one; the sources at commits; warnings."""

    proof: Proof | None
    sources: tuple[Source, ...]
    warnings: list[str] = field(default_factory=list)


def resolve(
    wish: Wish,
    store: Path,
    *,
    ask: Ask = ask,
    elsewhere: Callable[[], Proof | None] = lambda: None,
    keep: bool = True,
) -> Resolved:
    """Resolve a wish.

    Args:
        wish: the model and its sources.
        store: the directory where the controller stores results.
        ask: asks one source from here.
        elsewhere: has one host of the fleet ask the publisher's hub; None if that fails too.
        keep: store the result (not in check mode).

    Raises:
        UserError: the user's manifest can't be read; the stored result is damaged; or the hub lists other
        files
            of a commit than before.
    """
    if wish.manifest is not None:
        return Resolved(_of_user(wish, wish.manifest), wish.sources)
    with locked(store, keep):
        kept = Kept.read(store, wish)
        if kept is not None and not wish.again and kept.good_for(wish):
            return Resolved(
                kept.proof, settled(wish.sources, kept.settled), _warnings(wish, store, kept.proof)
            )
        candidates = wish.candidates()
        said = None if wish.again else recent_failure(store, wish)
        reasons, hosts = said or ([], 0)
        hubs = [source for source in candidates if authority(source)[0] == HUB]
        found = None
        if said is None:
            found = _of_bundle(wish, reasons) or first(hubs, ask, wish.accept_unhashed, reasons)
        if found is None and hubs and hosts < HOSTS_ASKED:
            hosts += 1
            if (proof := elsewhere()) is not None:
                found = hubs[0], proof
        if found is None and said is None:
            mirrors = [source for source in candidates if source not in hubs]
            found = first(mirrors, ask, wish.accept_unhashed, reasons)
        if found is None:
            if kept is not None and kept.good_for(wish):
                return Resolved(
                    kept.proof, settled(wish.sources, kept.settled), _warnings(wish, store, kept.proof)
                )
            if keep:
                note_failure(store, wish, reasons, hosts)
            return Resolved(None, wish.sources, _warnings(wish, store, None, reasons))
        source, proof = found
        _compare(wish, kept, proof, store)
        branch = (
            [] if is_commit(source.revision) or not is_commit(proof.revision) else [(source, proof.revision)]
        )
        if keep:
            Kept(proof, [(one, str(commit)) for one, commit in branch]).write(store, wish)
        return Resolved(
            proof,
            settled(wish.sources, [(one, str(commit)) for one, commit in branch]),
            _warnings(wish, store, proof, reasons),
        )


def _of_bundle(wish: Wish, reasons: list[str]) -> tuple[Source, Proof] | None:
    """Return the file list in the bundle's signed manifest, if the weights come from a bundle."""
    for source in wish.sources:
        try:
            proof, why = served(source, wish.repository, wish.revision)
        except (SourceError, UserError, OSError) as error:
            proof, why = None, one_line(str(error), 300)
        if proof is not None:
            return source, proof
        if base_of(source, wish.repository, wish.revision) is not None:
            reasons.append(why)
    return None


def settled(sources: Sequence[Source], known: Sequence[tuple[Source, str]]) -> tuple[Source, ...]:
    """Return the sources with branches replaced by their resolved commits."""
    found = []
    for source in sources:
        for other, commit in known:
            same = (other.kind, other.endpoint, other.repository, other.revision)
            if same == (source.kind, source.endpoint, source.repository, source.revision):
                source = replace(source, revision=commit, branch=source.revision)
        found.append(source)
    return tuple(found)


def _of_user(wish: Wish, file: Path) -> Proof:
    file = file.expanduser()
    if file.is_dir():
        return _of_bundle_at(wish, file)
    try:
        raw = read_json(read_bounded(file, MOST_BYTES))
        changed = datetime.fromtimestamp(file.stat().st_mtime, UTC)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"model_weights_manifest: found {file} that can't be read ({one_line(str(error), 200)}), "
            "expected the JSON of 'metal weights manifest DIRECTORY'; write it again"
        ) from error
    if isinstance(raw, Mapping) and "contents" in raw:
        # A bundle's: anybody who had the disk can have written it, so only with its signature.
        return _of_bundle_at(wish, file.parent)
    proof = named(
        raw,
        str(file),
        changed.strftime("%Y-%m-%dT%H:%M:%SZ"),
        repository=wish.repository,
        revision=wish.revision,
    )
    if proof.unhashed and not wish.accept_unhashed:
        raise UserError(
            f"model_weights_manifest: found no hash of {len(proof.unhashed)} files in {file}, e.g. "
            f"{proof.unhashed[0]}; expected one for each file; write it with 'metal weights manifest "
            "DIRECTORY'"
        )
    return proof


def _of_bundle_at(wish: Wish, directory: Path) -> Proof:
    """Return the file list in a bundle's manifest, by the trust in its signer.

    Raises:
        UserError: it is not a bundle, or no known key signed it.
    """
    bundle = bundles.read(directory)
    if bundle.signer is None:
        found = "a signature by none of the known keys" if bundle.signature else "no signature"
        raise UserError(
            f"model_weights_manifest: found {found} on {directory / bundles.MANIFEST}, expected one "
            f"by a key of {signature.SIGNERS}; get the signer's public key some other way than from "
            "this disk, or name the output of 'metal weights manifest DIRECTORY' for files that you "
            "trust"
        )
    return of(bundle.manifest, str(directory), bundle.signer, wish.repository, wish.revision)


def _compare(wish: Wish, kept: Kept | None, proof: Proof, store: Path) -> None:
    """Refuse a list of a commit that differs from the stored one: a commit does not change."""
    if kept is None or not is_commit(wish.revision) or kept.proof.origin != proof.origin:
        return
    if kept.proof.revision != proof.revision:
        return
    wrong = differences(kept.proof.files, proof.files)
    if wrong:
        path, why = next(iter(sorted(wrong.items())))
        raise UserError(
            f"{proof.origin} now lists different files of {wish.repository} at {wish.revision} than "
            f"at {kept.proof.time}: {path}: {why}. A commit does not change: find out why, then "
            f"remove {file_of(store, wish)} to accept the new list"
        )


def _warnings(wish: Wish, store: Path, proof: Proof | None, reasons: Sequence[str] = ()) -> list[str]:
    """Return warnings about the proof, or about the lack of one."""
    why = f" ({'; '.join(reasons)})" if reasons else ""
    found = []
    if proof is None:
        if any(source.kind != DIRECTORY for source in wish.sources):
            found.append(
                f"weights of {wish.repository}: no source outside the fleet could list the files and "
                f"their hashes{why}. Each host is checked against its own source's list, and hosts "
                "can't stand in for a source. Give the controller access to the hub, or set "
                "model_weights_manifest"
            )
        return found
    if proof.by == MIRROR:
        found.append(
            f"weights of {wish.repository}: only the mirror itself lists the files and their hashes "
            f"({proof.origin}). Give the controller access to the hub, or set "
            f"model_weights_manifest; then remove {file_of(store, wish)}"
        )
    elif proof.by == HUB and is_commit(wish.revision) and proof.revision != wish.revision:
        found.append(
            f"weights of {wish.repository}: {proof.origin} lists its own {proof.repository} at "
            f"{proof.revision}; nothing shows that these are the files of {wish.revision}. Give the "
            "controller access to huggingface.co, or set model_weights_manifest"
        )
    if not is_commit(wish.revision):
        found.append(
            f"weights of {wish.repository}: {wish.revision} is a branch; commit {proof.revision} of "
            f"{proof.time} was taken. Set metal_model_revision to a commit"
        )
    if proof.unhashed:
        found.append(
            f"weights of {wish.repository}: {len(proof.unhashed)} files without a published hash are "
            "accepted (model_weights_accept_unhashed)"
        )
    return found

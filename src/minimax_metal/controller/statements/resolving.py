"""Resolve once, for all hosts, what the files of a model are, and keep it: on the controller.

In this order: a manifest file that the user names; what an earlier run kept; the publisher's own hub over
HTTPS, asked from here, then from one host; a mirror's own statement, asked from here. What a mirror says is
kept and recorded as no more than that. Nothing that a host keeps, and no other host, is asked.
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
"""Hosts that try the hub, one after the other, where the controller has no way to it."""


@dataclass(slots=True)
class Resolved:
    """What came of it: the proof, if anybody could give one; the sources at commits; what to warn of."""

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
        store: the directory where the controller keeps what was resolved.
        ask: asks one source from here.
        elsewhere: has one host of the fleet ask the publisher's hub; None when that can't say either.
        keep: write down what was resolved (not in check mode).

    Raises:
        UserError: the user's manifest can't be read; what is kept is damaged; or the hub states other files
            of a commit than it did.
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
    """Return what the signed manifest of the bundle states, where the weights come from one."""
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
    """Return the sources with branches as the commits that they were resolved to."""
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
        # A bundle's: whoever had the disk can have written it. With its signature, or not at all.
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
            f"{proof.unhashed[0]}; expected one of each; write it with 'metal weights manifest DIRECTORY'"
        )
    return proof


def _of_bundle_at(wish: Wish, directory: Path) -> Proof:
    """Return what the manifest of a bundle states, on the word of who signed it.

    Raises:
        UserError: it is not a bundle, or nobody who is known here signed it.
    """
    bundle = bundles.read(directory)
    if bundle.signer is None:
        found = "a signature by none of the known keys" if bundle.signature else "no signature"
        raise UserError(
            f"model_weights_manifest: found {found} on {directory / bundles.MANIFEST}, expected one by a key "
            f"of {signature.SIGNERS}; get the signer's public key by another way than this disk, or name the "
            "output of 'metal weights manifest DIRECTORY' for files that you trust"
        )
    return of(bundle.manifest, str(directory), bundle.signer, wish.repository, wish.revision)


def _compare(wish: Wish, kept: Kept | None, proof: Proof, store: Path) -> None:
    """Refuse another statement about a commit than the one that was kept: a commit does not change."""
    if kept is None or not is_commit(wish.revision) or kept.proof.origin != proof.origin:
        return
    if kept.proof.revision != proof.revision:
        return
    wrong = differences(kept.proof.files, proof.files)
    if wrong:
        path, why = next(iter(sorted(wrong.items())))
        raise UserError(
            f"{proof.origin} states other files of {wish.repository} at {wish.revision} than at "
            f"{kept.proof.time}: {path}: {why}. A commit does not change: find out why, then remove "
            f"{file_of(store, wish)} to take the new statement"
        )


def _warnings(wish: Wish, store: Path, proof: Proof | None, reasons: Sequence[str] = ()) -> list[str]:
    """Return what a user should know about the proof, or about the lack of one."""
    why = f" ({'; '.join(reasons)})" if reasons else ""
    found = []
    if proof is None:
        if any(source.kind != DIRECTORY for source in wish.sources):
            found.append(
                f"weights of {wish.repository}: nobody outside the fleet could say what the files are{why}. "
                "Each host is held to what its own source states, and hosts can't stand in for a source. "
                "Give the controller a way to the hub, or set model_weights_manifest"
            )
        return found
    if proof.by == MIRROR:
        found.append(
            f"weights of {wish.repository}: only the mirror itself says what the files are ({proof.origin}). "
            f"Give the controller a way to the hub, or set model_weights_manifest; then remove "
            f"{file_of(store, wish)}"
        )
    elif proof.by == HUB and is_commit(wish.revision) and proof.revision != wish.revision:
        found.append(
            f"weights of {wish.repository}: {proof.origin} says what its own {proof.repository} holds at "
            f"{proof.revision}; nothing shows that these are the files of {wish.revision}. Give the "
            "controller a way to huggingface.co, or set model_weights_manifest"
        )
    if not is_commit(wish.revision):
        found.append(
            f"weights of {wish.repository}: {wish.revision} is a branch, taken as commit {proof.revision} of "
            f"{proof.time}; set metal_model_revision to a commit"
        )
    if proof.unhashed:
        found.append(
            f"weights of {wish.repository}: {len(proof.unhashed)} files without a stated hash are accepted "
            "(model_weights_accept_unhashed)"
        )
    return found

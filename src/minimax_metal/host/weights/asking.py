"""Get the list of a model's files: from a hub, or from a directory whose every byte is read.

The controller does it for the fleet; if it can't reach the hub, one host does, and records this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from minimax_metal.common.errors import UserError
from minimax_metal.common.text import one_line
from minimax_metal.host.weights.bound import authority
from minimax_metal.host.weights.check import workers_by_default
from minimax_metal.host.weights.errors import SourceError
from minimax_metal.host.weights.manifest import DamagedFileError, Manifest, verify
from minimax_metal.host.weights.proof import HUB, Proof, now
from minimax_metal.host.weights.request import (
    DIRECTORY,
    HF_MIRROR,
    HUBS,
    HUGGINGFACE,
    MODELSCOPE,
    Request,
    Source,
)
from minimax_metal.host.weights.sources import DEFAULT_ENDPOINTS, open_source
from minimax_metal.host.weights.unprivileged import list_of

STALL: Final = 10.0
"""Seconds without a byte after which a request for the list is given up."""
TRIES: Final = 2
"""The same for a source that asks to wait."""
_PUBLIC: Final = {kind: DEFAULT_ENDPOINTS[kind][1] for kind in HUBS}


def asks_hub(sources: Sequence[Source]) -> bool:
    """Return whether to ask the publisher's own hub: not if the user configured only other sources."""
    return any(
        source.kind in {HF_MIRROR, MODELSCOPE, HUGGINGFACE}
        and (source.endpoint or _PUBLIC[source.kind]).rstrip("/") == _PUBLIC[source.kind]
        for source in sources
    )


def candidates(repository: str, revision: str, sources: Sequence[Source]) -> list[Source]:
    """Return the sources to ask for a model's files, the publisher's hub first."""
    found = []
    if asks_hub(sources):
        token = next((one.token_file for one in sources if one.kind == HUGGINGFACE), None)
        public = _PUBLIC[HUGGINGFACE]
        found.append(Source(HUGGINGFACE, repository, revision, public, token_file=token))
    found += [source for source in sources if source.kind != DIRECTORY]
    unique: dict[tuple[str, str | None, str | None], Source] = {}
    for one in found:
        unique.setdefault((one.kind, one.endpoint, one.repository), one)
    return sorted(unique.values(), key=lambda one: authority(one)[0] != HUB)


Ask = Callable[[Source], Proof]
"""Asks one source for its files; raises :class:`SourceError`."""


def ask(source: Source, resolver: str = "controller") -> Proof:
    """Return a source's list.

    Raises:
        SourceError: it does not answer.
    """
    by, origin = authority(source)
    for tried in range(TRIES):
        try:
            listing = list_of(source, STALL)
            return Proof(
                by,
                origin,
                resolver,
                now(),
                listing.files,
                source.repository,
                listing.revision or source.revision,
            )
        except SourceError as error:
            if not error.busy or tried + 1 == TRIES:
                raise
            time.sleep(min(STALL, error.after or 1.0))
    raise SourceError(f"{source} was not asked")


def first(
    candidates: Sequence[Source], ask: Ask, accept_unhashed: bool, reasons: list[str]
) -> tuple[Source, Proof] | None:
    """Return the first valid list, and its source; reasons against the others are added to ``reasons``."""
    for source in candidates:
        try:
            proof = ask(source)
        except (SourceError, UserError, OSError) as error:
            reasons.append(one_line(str(error), 300))
            continue
        if proof.unhashed and not accept_unhashed:
            reasons.append(
                f"{source} publishes no hash of {len(proof.unhashed)} files, e.g. {proof.unhashed[0]}"
            )
        elif not proof.files:
            reasons.append(f"{source} lists no file")
        else:
            return source, proof
    return None


def for_fleet(request: Request, repository: str) -> dict[str, Any]:
    """Return the publisher's own hub's list, requested from this host because the controller can't.

    Raises:
        UserError: the hub does not answer here either, or no source of the user is the publisher's.
    """
    reasons: list[str] = []
    asked = candidates(repository, request.revision or "main", request.sources)
    hubs = [source for source in asked if authority(source)[0] == HUB]
    found = first(hubs, lambda source: ask(source, "this host"), False, reasons)
    if found is None:
        raise UserError("; ".join(reasons) or "no source is the publisher's own hub; mirrors are not asked")
    return found[1].as_dict()


def of_directory(directory: Path, workers: int | None = None) -> dict[str, Any]:
    """Read every byte of a directory, and return a manifest of its current contents.

    Raises:
        UserError: it is not a directory, is empty, or can't be read.
    """
    if not directory.is_dir():
        raise UserError(f"found no directory {directory}, expected the model's files in it; name another")
    try:
        listing = open_source(Source(DIRECTORY, path=directory)).list()
        with ThreadPoolExecutor(workers or workers_by_default(), thread_name_prefix="hash") as pool:
            files = tuple(pool.map(lambda entry: verify(directory, entry), listing.files))
    except (SourceError, DamagedFileError, OSError) as error:
        raise UserError(f"{directory}: {one_line(str(error))}; check the file, then try again") from error
    if not files:
        raise UserError(f"found no file in {directory}, expected a model; name another directory")
    source = {"kind": DIRECTORY, "path": str(directory)}
    return Manifest(directory.name, listing.revision, source, files).as_dict()

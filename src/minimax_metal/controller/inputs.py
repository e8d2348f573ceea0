"""What a role is given, in one digest: with the same, on a host as it left it, there is nothing to do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from minimax_metal.host.releases.record import decided


@lru_cache(maxsize=64)
def digest_of_files(places: tuple[Path, ...], stamps: tuple[tuple[str, int, int], ...]) -> str:
    """Return the digest of all files below some directories; ``stamps`` says when it is to be made anew."""
    total = hashlib.sha256()
    for name, _, _ in stamps:
        path = Path(name)
        relative = next(path.relative_to(place.parent) for place in places if path.is_relative_to(place))
        total.update(f"{relative}\0".encode())
        total.update(path.read_bytes())
    return total.hexdigest()


def digest_of_inputs(plan: Mapping[str, Any], role: Path, variables: Mapping[str, Any]) -> str:
    """Return one digest of what a role decides by.

    Args:
        plan: the host's plan; what was only found that day (free disk, warnings) does not count, nor does
            what the host is called.
        role: the role's directory. Its files count, and so do the project's templates.
        variables: the values of the role's own variables, defaults among them.
    """
    places = tuple(place for place in (role, role.parents[1] / "templates") if place.is_dir())
    stamps = []
    for place in places:
        for path in sorted(place.rglob("*")):
            # What is read by people only decides nothing.
            if path.is_file() and path.suffix != ".md":
                state = path.stat()
                stamps.append((str(path), state.st_mtime_ns, state.st_size))
    wish = {key: value for key, value in decided(plan).items() if key != "host"}
    text = json.dumps(
        [wish, dict(variables), digest_of_files(places, tuple(stamps))],
        sort_keys=True,
        default=str,
        separators=(",", ":"),
    )
    return hashlib.sha256(text.encode()).hexdigest()

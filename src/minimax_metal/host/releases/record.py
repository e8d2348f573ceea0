"""``metal record``: store the plan that was applied and verified as a release.

``<directory>/NNNN-<digest12>.json``, the newest with the highest number, and a link ``current`` to the active
one. A record never changes once written, so a rollback applies an older record's plan and writes a new
record. The digest covers only the plan (canonical JSON, SHA-256), not the time. ``weights`` identifies the
served files: the manifest in the model's directory, and its SHA-256. Other files under the same plan are
another release. ``kernels`` names the host that built the compiled kernels, if this one copied them.

Standard output is one word for Ansible's ``changed_when``: ``recorded``, ``unchanged``, with ``--check`` also
``would record``. Exit status: 0; 2 if the plan cannot be read or the directory not written.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from minimax_metal import __version__
from minimax_metal.common.documents import read_json
from minimax_metal.common.errors import UserError
from minimax_metal.common.files import link_atomic, read_bounded, write_atomic
from minimax_metal.common.privileges import acting_as_owner_of, trusted_directory
from minimax_metal.common.text import one_line
from minimax_metal.host.engine.kernels import NOTES, origin
from minimax_metal.host.weights.manifest import FILE, FOLDER
from minimax_metal.plan.model import Plan

SCHEMA: Final = 1
DIRECTORY: Final = Path("/var/lib/minimax-metal/releases")
CURRENT: Final = "current"
MANIFEST_BYTES: Final = 64 << 20
"""Maximum size of a manifest: one of 100,000 files has about 20 MB."""
_NAME = re.compile(r"(?P<number>\d{4,})-(?P<digest>[0-9a-f]{12})\.json")

Redaction = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Turns a plan into what may be written: the one place to remove secrets."""


def as_planned(plan: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the plan unchanged: no field of a plan contains a secret (keys are in files that it names)."""
    return plan


def decided(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes two plans the same release: what is applied, not the host's state that day.

    Free disk space, and warnings about it, differ from run to run; of lifted refusals only the codes count.
    """
    kept = {key: value for key, value in plan.items() if key not in {"disk", "warnings"}}
    return kept | {"accepted": sorted(_codes(plan.get("accepted")))}


def _codes(accepted: Any) -> list[str]:
    """Return the codes of lifted refusals; empty for anything that is not a list of them."""
    lifted = accepted if isinstance(accepted, list | tuple) else []
    return [str(one["code"]) for one in lifted if isinstance(one, Mapping) and "code" in one]


def digest_of(plan: Mapping[str, Any]) -> str:
    """Return the first 12 hex digits of the SHA-256 of what was decided, as canonical JSON."""
    text = json.dumps(decided(plan), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def weights_of(plan: Plan) -> dict[str, str] | None:
    """Return path and SHA-256 (of its bytes, in hex) of the manifest of a plan's weights; None without one.

    ``proof``: the source of the file list, as in the manifest. ``accepted``: what a setting accepted, if
    anything.

    Raises:
        OSError: the manifest exists and can't be read.
    """
    if plan.model is None or not plan.model.path:
        return None
    manifest = Path(plan.model.path, FOLDER, FILE)
    try:
        # The directory is the pull's: its contents are read as its owner.
        with acting_as_owner_of(manifest.parent):
            content = read_bounded(manifest, MANIFEST_BYTES)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}:
            return None
        raise
    found = {"manifest": str(manifest), "sha256": hashlib.sha256(content).hexdigest()}
    # The source of the file list, and who asked for it when; older manifests lack it.
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        proof = read_json(content)["proof"]
        # Files trusted because of a setting (weights-unproved) are noted in the release.
        if isinstance(accepted := proof.get("accepted"), list) and accepted:
            found["accepted"] = one_line(", ".join(sorted({str(one) for one in accepted[:20]})), 200)
        found["proof"] = one_line(str(proof["text"]), 500)
    return found


def kernels_of(plan: Plan, notes: Path = NOTES) -> dict[str, Any] | None:
    """Return the host that built this host's compiled kernels; None if it built its own."""
    key = plan.kernel_cache.key if plan.kernel_cache else ""
    found = origin(key, notes) if key else None
    return {name: found.get(name) for name in ("built_by", "sha256", "time")} if found else None


@dataclass(frozen=True, slots=True)
class Release:
    """One record in the directory."""

    number: int
    digest: str
    path: Path


@dataclass(frozen=True, slots=True)
class Records:
    """The directory of releases."""

    directory: Path = DIRECTORY
    redact: Redaction = as_planned

    def all(self) -> list[Release]:
        """Return every record, oldest first."""
        found = []
        if self.directory.is_dir():
            for path in self.directory.iterdir():
                if match := _NAME.fullmatch(path.name):
                    found.append(Release(int(match["number"]), match["digest"], path))
        return sorted(found, key=lambda release: release.number)

    def current(self) -> Release | None:
        """Return the record that ``current`` points to, or None."""
        with contextlib.suppress(OSError):
            target = (self.directory / CURRENT).readlink().name
            return next((release for release in self.all() if release.path.name == target), None)
        return None

    def would_record(self, plan: Mapping[str, Any]) -> bool:
        """Return whether ``plan``, or the files of its weights, differ from the active release."""
        current = self.current()
        if current is None or current.digest != digest_of(self.redact(plan)):
            return True
        return recorded_weights(current) != weights_of(Plan.of_record(plan))

    def record(self, plan: Mapping[str, Any], now: datetime | None = None) -> Release | None:
        """Write ``plan`` as the newest release and make it current; return None if it already is."""
        if not self.would_record(plan):
            return None
        kept, read = self.redact(plan), Plan.of_record(plan)
        digest = digest_of(kept)
        number = max((release.number for release in self.all()), default=0) + 1
        path = self.directory / f"{number:04d}-{digest}.json"
        content = {
            "schema": SCHEMA,
            "number": number,
            "digest": digest,
            "time": (now or datetime.now(UTC)).isoformat(timespec="seconds"),
            "metal": __version__,
            "weights": weights_of(read),
            "kernels": kernels_of(read),
            "plan": kept,
        }
        # Numbers, times and digests of releases are readable for everybody; only root writes here.
        folder = trusted_directory(self.directory, create=0o755)
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_atomic(folder / path.name, text)
        link_atomic(folder / CURRENT, path.name)
        return Release(number, digest, path)


def recorded_weights(release: Release) -> dict[str, str] | None:
    """Return a record's information on the weights; None if there is none, or it is unreadable."""
    try:
        content = read_json(release.path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    weights = content.get("weights") if isinstance(content, dict) else None
    return weights if isinstance(weights, dict) else None


def read_plan(source: str) -> dict[str, Any]:
    """Read a plan from a file, or from standard input when ``source`` is ``-``.

    Raises:
        UserError: the file is missing, is not JSON, or is not a plan.
    """
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
        plan = read_json(text)
    except OSError as error:
        raise UserError(
            f"can't read the plan {source}: {error.strerror}; name a file or - for standard input"
        ) from error
    except ValueError as error:
        raise UserError(
            f"the plan {source} is not JSON ({error}); pass the output of 'metal plan'"
        ) from error
    if not isinstance(plan, dict) or "schema" not in plan or "host" not in plan:
        raise UserError(
            f"{source} contains no plan (no 'schema' and 'host'); pass the output of 'metal plan'"
        )
    return plan


def main(argv: list[str]) -> int:
    """Run ``metal record``; return its exit status."""
    parser = argparse.ArgumentParser(prog="metal record", description="Save an applied plan as a release.")
    parser.add_argument(
        "--plan", required=True, metavar="FILE", help="file with the plan as JSON, - for standard input"
    )
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help="default: %(default)s")
    parser.add_argument("--check", action="store_true", help="write nothing, only print the result")
    arguments = parser.parse_args(argv)
    records = Records(arguments.directory)
    plan = read_plan(arguments.plan)
    try:
        if arguments.check:
            print("would record" if records.would_record(plan) else "unchanged")
            return 0
        print("recorded" if records.record(plan) else "unchanged")
    except OSError as error:
        raise UserError(
            f"can't write a record under {arguments.directory}: {error.strerror}; run it as root"
        ) from error
    return 0

"""What is to be pulled: the request file that role model_weights writes from the plan.

A request is JSON::

    {"path": "/srv/models/MiniMaxAI/MiniMax-M2.5/<revision>",   # where the verified directory appears
     "name": "MiniMaxAI/MiniMax-M2.5",                          # for people; default: the path's last parts
     "revision": "<commit>",                                    # default of the sources' revisions
     "bytes": 230000000000,                                     # expected size, for the check of free space
     "sources": [{"kind": "huggingface", "endpoint": null, "repository": "...", "revision": "..."},
                 {"kind": "directory", "path": "/mnt/nfs/MiniMax-M2.5"},
                 {"kind": "http", "endpoint": "http://gpu01:8080/MiniMax-M2.5"}],
     "adopt": ["/home/me/.cache/huggingface"],                  # optional, what may be there already
     "proof": {"by": "hub", …, "files": […]},                   # optional, what the files are, see proof.py
     "accept": ["weights-unhashed", "weights-unproved"],        # optional, what the user takes unproved
     "architectures": ["MiniMaxM2ForCausalLM"],                 # optional, what config.json has to name
     "manifest": "/root/manifest.json",                         # optional, in the place of a proof: a file
     "owner": "sglang:sglang",                                  # optional, when root pulls
     "share": {"me": "gpu01", "peers": [{"name": "gpu02", "address": "10.0.0.2"}]},  # optional, see share/,
                                                                # or a file with that; no file, no sharing
     "unit": "metal-weights@minimax-m2.5.service"}              # optional, what ``await`` follows

A source may name a ``token_file`` (read on the host by whoever pulls), and the ``branch`` its revision was
resolved from. Fields that this module does not know are left to whoever wrote them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from minimax_metal.common.documents import digits, read_json
from minimax_metal.common.errors import UserError
from minimax_metal.common.files import read_bounded
from minimax_metal.common.text import has_controls
from minimax_metal.host.weights.manifest import MOST_BYTES
from minimax_metal.host.weights.proof import ACCEPT_UNHASHED, Proof, named
from minimax_metal.host.weights.share_settings import Share

HUGGINGFACE: Final = "huggingface"
HF_MIRROR: Final = "hf-mirror"
MODELSCOPE: Final = "modelscope"
DIRECTORY: Final = "directory"
HTTP: Final = "http"
HUBS: Final = (HUGGINGFACE, HF_MIRROR, MODELSCOPE)
ACCEPT_UNPROVED: Final = "weights-unproved"
"""Name of the acceptance: a directory whose files can't be verified as a complete model is used as it is."""
KINDS: Final = (HUGGINGFACE, HF_MIRROR, MODELSCOPE, DIRECTORY, HTTP)


@dataclass(frozen=True, slots=True)
class Source:
    """One place with the model; ``endpoint`` None means the client's own default."""

    kind: str
    repository: str | None = None
    revision: str | None = None
    endpoint: str | None = None
    path: Path | None = None
    token_file: Path | None = None
    branch: str | None = None

    def __str__(self) -> str:
        if self.kind == DIRECTORY:
            return f"directory {self.path}"
        if self.kind == HTTP:
            return f"files at {self.endpoint}"
        return f"{self.kind} {self.repository}" + (f" at {self.endpoint}" if self.endpoint else "")

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "kind": self.kind,
            "repository": self.repository,
            "revision": self.revision,
            "endpoint": self.endpoint,
            "path": None if self.path is None else str(self.path),
            "token_file": None if self.token_file is None else str(self.token_file),
            "branch": self.branch,
        }

    @classmethod
    def parse(cls, raw: Any, revision: str | None = None) -> Source:
        """Parse one source; ``revision`` is its default.

        Raises:
            UserError: the kind is unknown or a field it needs is missing.
        """
        if not isinstance(raw, Mapping) or raw.get("kind") not in KINDS:
            kind = raw.get("kind") if isinstance(raw, Mapping) else raw
            raise UserError(f"source kind {kind!r} is unknown; expected one of {', '.join(KINDS)}")
        path, repository = _text(raw, "path"), _text(raw, "repository")
        if raw["kind"] == DIRECTORY and path is None:
            raise UserError(
                "a source of kind directory names no path; add the directory that holds the model"
            )
        if raw["kind"] not in {DIRECTORY, HTTP} and repository is None:
            raise UserError(
                f"a source of kind {raw['kind']} names no repository; add one like MiniMaxAI/MiniMax-M3"
            )
        endpoint, token_file = _text(raw, "endpoint"), _text(raw, "token_file")
        if raw["kind"] == HTTP and endpoint is None:
            raise UserError("a source of kind http names no endpoint; add the URL of the model's directory")
        if endpoint is not None and not endpoint.startswith(("http://", "https://")):
            raise UserError(
                f"endpoint {endpoint!r} is not an http(s) URL; write it like https://hf-mirror.com"
            )
        return cls(
            kind=raw["kind"],
            repository=repository,
            revision=_text(raw, "revision") or revision,
            endpoint=endpoint.rstrip("/") if endpoint else None,
            path=None if path is None else Path(path),
            token_file=None if token_file is None else Path(token_file),
            branch=_text(raw, "branch"),
        )


@dataclass(frozen=True, slots=True)
class Request:
    """A model to be pulled to ``path``; ``bytes`` is the plan's expectation, None if unknown."""

    path: Path
    name: str
    sources: tuple[Source, ...]
    revision: str | None = None
    bytes: int | None = None
    owner: str | None = None
    unit: str | None = None
    adopt: tuple[Path, ...] = ()
    manifest: Path | None = None
    share: Share | None = None
    proof: Proof | None = None
    """The expected files, whatever a source or another host sends."""
    accept: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    """What a directory without a manifest must name in its config.json; () for any."""

    @property
    def accept_unhashed(self) -> bool:
        """Whether files without a published hash are accepted."""
        return ACCEPT_UNHASHED in self.accept

    def stated(self) -> Proof | None:
        """Return the expected files: the proof, or the request's manifest file.

        Raises:
            UserError: the manifest file can't be read.
        """
        if self.proof is not None or self.manifest is None:
            return self.proof
        try:
            raw = read_json(read_bounded(self.manifest, MOST_BYTES))
            changed = datetime.fromtimestamp(self.manifest.stat().st_mtime, UTC)
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"can't read the manifest {self.manifest}: {error}; write it again") from error
        time = changed.strftime("%Y-%m-%dT%H:%M:%SZ")
        return named(
            raw, str(self.manifest), time, repository=None, revision=self.revision, resolver="this host"
        )

    @property
    def expected(self) -> dict[str, Any]:
        """What a directory without a manifest must be."""
        return {"architectures": list(self.architectures), "bytes": self.bytes, "name": self.name}

    @property
    def staging(self) -> Path:
        """Where the files are collected: beside ``path``, so that the last step is one rename."""
        return self.path.with_name(f"{self.path.name}.partial")

    @property
    def lock(self) -> Path:
        """Held by the one running pull."""
        return self.path.with_name(f".{self.path.name}.lock")

    @property
    def state(self) -> Path:
        """The pull's latest state."""
        return self.path.with_name(f".{self.path.name}.state.json")

    @classmethod
    def parse(cls, raw: Any) -> Request:
        """Parse a request.

        Raises:
            UserError: a field is missing or wrong.
        """
        if not isinstance(raw, Mapping):
            raise UserError("the request is not a JSON object; pass the file that role model_weights writes")
        path = _text(raw, "path")
        if path is None or not path.startswith("/") or len(Path(path).parts) < 3:
            raise UserError(f"request path {path!r} can't be a model's directory; expected an absolute path")
        sources = raw.get("sources")
        if not isinstance(sources, list) or not sources:
            raise UserError("the request names no source; expected a list of at least one")
        expected = raw.get("bytes")
        if isinstance(expected, str):  # templates tend to quote numbers
            expected = digits(expected, 19) if digits(expected, 19) is not None else expected
        if expected is not None and (not isinstance(expected, int) or expected < 0):
            raise UserError(f"request bytes {expected!r} is not a size; expected a number of bytes or null")
        adopt = raw.get("adopt") or []
        if not isinstance(adopt, list) or not all(isinstance(a, str) and a.startswith("/") for a in adopt):
            raise UserError(f"request adopt {adopt!r} is not a list of directories; expected absolute paths")
        revision, manifest = _text(raw, "revision"), _text(raw, "manifest")
        proof = raw.get("proof") or None
        accept, architectures = raw.get("accept") or [], raw.get("architectures") or []
        if not isinstance(accept, list) or not all(isinstance(code, str) for code in accept):
            raise UserError(
                f"request accept {accept!r} is not a list of codes; expected {ACCEPT_UNHASHED} or "
                f"{ACCEPT_UNPROVED} in it"
            )
        if not isinstance(architectures, list) or not all(isinstance(one, str) for one in architectures):
            raise UserError(
                f"request architectures {architectures!r} is not a list; run playbooks/weights.yml again"
            )
        return cls(
            path=Path(path),
            name=_text(raw, "name") or "/".join(Path(path).parts[-3:-1]),
            sources=tuple(Source.parse(source, revision) for source in sources),
            revision=revision,
            bytes=expected,
            owner=_text(raw, "owner"),
            unit=_text(raw, "unit"),
            adopt=tuple(Path(directory) for directory in adopt),
            manifest=None if manifest is None else Path(manifest),
            share=_share(raw.get("share")),
            proof=None if proof is None else Proof.parse(proof),
            architectures=tuple(architectures),
            accept=tuple(accept),
        )

    @classmethod
    def read(cls, file: Path) -> Request:
        """Read a request file.

        Raises:
            UserError: it can't be read, is not JSON or not a request.
        """
        try:
            # Bounded, but not necessarily a regular file: a play passes it on standard input.
            with file.open("rb") as stream:
                content = stream.read(MOST_BYTES + 1)
            if len(content) > MOST_BYTES:
                raise ValueError(f"more than {MOST_BYTES} bytes")
            raw = read_json(content)
        except OSError as error:
            raise UserError(
                f"can't read the request {file}: {error.strerror}; playbooks/weights.yml writes it"
            ) from error
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"the request {file} is not JSON ({error}); run playbooks/weights.yml again"
            ) from error
        return cls.parse(raw)


def _share(raw: Any) -> Share | None:
    """Read how a pull is shared, from the request or from the file it names.

    The other hosts change with every run, and matter only during a pull: in a file of their own they leave
    the request unchanged.
    """
    if not isinstance(raw, str):
        return Share.parse(raw)
    try:
        return Share.parse(read_json(read_bounded(Path(raw), MOST_BYTES)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"can't read {raw} ({error}); run playbooks/weights.yml again") from error


def _text(raw: Mapping[str, Any], key: str) -> str | None:
    """Return a field that is a non-empty string or missing."""
    value = raw.get(key)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or has_controls(value):
        raise UserError(f"request field {key!r} is {value!r}; expected text without control characters")
    return value


_COMMIT: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def is_commit(revision: str | None) -> bool:
    """Return whether a revision is a whole commit id, whose meaning can't change."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None

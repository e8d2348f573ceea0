"""The places a model comes from, each behind the same two calls: list the files, fetch one.

Hugging Face and ModelScope are read by their own unmodified clients, through documented calls only. What the
clients were seen to do, and what is done about it:

* ``huggingface_hub`` 2.4 writes to a temporary file of a random name and starts that file anew after a kill;
  its leavings are removed before the next attempt, or they would fill the disk. Complete files are kept.
* Mirrors set as endpoint do not proxy Xet storage: it is switched off for every endpoint but the default one.
* ``modelscope`` resumes its ``.incomplete`` files; its time budget of an hour per file is less than a large
  shard takes on a slow link, and its parallel ranges need a large file's space twice.

The modules of a client read the environment when they are imported, so :func:`environment` has to be in force
before: every attempt runs in a process of its own (:mod:`minimax_metal.artefacts.fetch`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

from minimax_metal.artefacts.manifest import FOLDER, Entry, Manifest
from minimax_metal.artefacts.request import HF_MIRROR, HUGGINGFACE, MODELSCOPE, Source

if TYPE_CHECKING:
    from modelscope_hub import HubApi

LEFTOVERS: Final = frozenset(
    {FOLDER, ".cache", ".git", ".huggingface", ".lock", ".mdl", ".msc", ".mv", "._____temp", "__pycache__"}
)
"""Names that hub clients and tools leave in a model directory; no part of a model."""


class SourceError(Exception):
    """A source could not serve; the text is one line.

    ``permanent``: asking again will not help. ``space``: the disk is full, no other source will help either.
    """

    def __init__(self, message: str, *, permanent: bool = False, space: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent
        self.space = space


@dataclass(frozen=True, slots=True)
class Listing:
    """Every file of the model at the revision that the source resolved."""

    files: tuple[Entry, ...]
    revision: str | None


class Origin(Protocol):
    """A source opened for reading; the methods raise :class:`SourceError`."""

    def list(self) -> Listing:
        """Return the files and their expected sizes and hashes."""

    def fetch(self, entry: Entry, staging: Path, *, again: bool) -> None:
        """Bring one file to ``staging``; ``again``: what came before was damaged, use no cache."""

    def tidy(self, staging: Path) -> None:
        """Remove what an earlier, killed attempt left and this client cannot use."""


def environment(source: Source, staging: Path) -> dict[str, str]:
    """Return the environment variables that the source's client is to run with."""
    home = str(staging / FOLDER / "home")
    if source.kind in {HUGGINGFACE, HF_MIRROR}:
        settings = {
            "HF_HOME": home,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "30",
        }
        if source.endpoint:
            settings["HF_ENDPOINT"] = source.endpoint
        if source.kind == HF_MIRROR or not _is_default(source.endpoint or os.environ.get("HF_ENDPOINT")):
            settings["HF_HUB_DISABLE_XET"] = "1"
        return settings
    if source.kind == MODELSCOPE:
        settings = {
            "MODELSCOPE_CACHE": home,
            "MODELSCOPE_HOME": home,
            "MODELSCOPE_DOWNLOAD_PARALLEL_WORKERS": "1",
            "MODELSCOPE_DOWNLOAD_TOTAL_TIMEOUT": "86400",
            "TQDM_DISABLE": "1",
        }
        if source.endpoint:
            settings["MODELSCOPE_ENDPOINT"] = source.endpoint
        return settings
    return {}


def _is_default(endpoint: str | None) -> bool:
    """Return whether an endpoint is Hugging Face's own, the only one known to serve Xet storage."""
    return endpoint is None or urlsplit(endpoint).hostname in {"huggingface.co", "hf.co"}


def open_source(source: Source) -> Origin:
    """Return the reader for a source; its client is imported here."""
    if source.kind in {HUGGINGFACE, HF_MIRROR}:
        return HuggingFace(source)
    if source.kind == MODELSCOPE:
        return ModelScope(source)
    return Directory(source)


@dataclass
class HuggingFace:
    """A repository read with ``huggingface_hub``, from any endpoint that speaks its protocol."""

    source: Source
    revision: str | None = field(default=None, init=False)

    @property
    def repository(self) -> str:
        """The repository id."""
        return self.source.repository or ""

    def list(self) -> Listing:
        """Return the files with the sizes and the SHA-256 (large files) or git ids (small ones) it states."""
        from huggingface_hub import HfApi

        with self._errors():
            info = HfApi(endpoint=self.source.endpoint).model_info(
                self.repository, revision=self.source.revision, files_metadata=True, timeout=60
            )
        files = []
        for sibling in info.siblings or []:
            sha256 = sibling.lfs.sha256 if sibling.lfs is not None else None
            size = sibling.lfs.size if sibling.lfs is not None else sibling.size
            if size is None:
                raise SourceError(f"{self.source} states no size for {sibling.rfilename}", permanent=True)
            files.append(
                Entry(
                    sibling.rfilename,
                    size,
                    sha256,
                    stated=sha256 is not None,
                    git_oid=sibling.blob_id if sha256 is None else None,
                )
            )
        self.revision = info.sha or self.source.revision
        return Listing(tuple(files), self.revision)

    def fetch(self, entry: Entry, staging: Path, *, again: bool) -> None:
        """Download one file at the commit that :meth:`list` resolved."""
        from huggingface_hub import hf_hub_download

        with self._errors():
            hf_hub_download(
                self.repository,
                entry.path,
                revision=self.revision or self.source.revision,
                local_dir=staging,
                endpoint=self.source.endpoint,
                force_download=again,
            )

    def tidy(self, staging: Path) -> None:
        """Remove temporary files of a killed attempt: this client never continues them."""
        for path in (staging / ".cache" / "huggingface").rglob("*.incomplete"):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what the client raises into a :class:`SourceError`."""
        from huggingface_hub import errors

        try:
            yield
        except errors.GatedRepoError as error:
            raise SourceError(
                f"{self.source} is gated: accept its licence there and give the pull a token (HF_TOKEN_PATH)",
                permanent=True,
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise SourceError(f"{self.source} does not exist or needs a token", permanent=True) from error
        except errors.RevisionNotFoundError as error:
            raise SourceError(
                f"{self.source} has no revision {self.source.revision}", permanent=True
            ) from error
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            raise SourceError(
                f"{self.source} answered {status}", permanent=status in {400, 401, 403, 404}
            ) from error
        except (errors.HFValidationError, errors.OfflineModeIsEnabled, errors.FileMetadataError) as error:
            raise SourceError(f"{self.source}: {one_line(error)}", permanent=True) from error
        except Exception as error:
            # Whatever its HTTP library raises. A lost connection may arrive as LocalEntryNotFoundError, whose
            # cause is the true reason.
            raise transport_error(self.source, error.__cause__ or error) from error


@dataclass
class ModelScope:
    """A repository read with ModelScope's client, from any endpoint that speaks its protocol."""

    source: Source

    @property
    def repository(self) -> str:
        """The repository id."""
        return self.source.repository or ""

    @cached_property
    def _client(self) -> HubApi:
        """One client for all files, as in its own snapshot download: a new one asks for the region again."""
        from modelscope_hub import HubApi

        return HubApi(endpoint=self.source.endpoint)

    def list(self) -> Listing:
        """Return the files with the sizes and SHA-256 that the hub states."""
        with self._errors():
            found = self._client.list_repo_files(
                self.repository, "model", revision=self.source.revision, recursive=True
            )
        files = [
            Entry(file.path, file.size, file.sha256 or None, stated=bool(file.sha256))
            for file in found
            if not file.is_dir
        ]
        return Listing(tuple(files), self.source.revision)

    def fetch(self, entry: Entry, staging: Path, *, again: bool) -> None:
        """Download one file; its hash is checked once, by the caller."""
        with self._errors():
            self._client.download_file(
                self.repository,
                "model",
                entry.path,
                revision=self.source.revision,
                local_dir=staging,
                cache_dir=staging / FOLDER / "home",
                file_size=entry.size,
                force=again,
            )

    def tidy(self, staging: Path) -> None:
        """Nothing: this client continues its ``.incomplete`` files."""

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what the client raises into a :class:`SourceError`."""
        from modelscope_hub import FileIntegrityError, HubError, NotExistError

        try:
            yield
        except FileIntegrityError as error:
            # The client has fetched it three times by now.
            raise SourceError(f"{self.source}: {one_line(error)}", permanent=True) from error
        except NotExistError as error:
            raise SourceError(
                f"{self.source} (revision {self.source.revision}) does not exist or needs a token",
                permanent=True,
            ) from error
        except HubError as error:
            if isinstance(error, OSError):
                raise transport_error(self.source, error) from error
            raise SourceError(f"{self.source}: {one_line(error)}", permanent=not error.retryable) from error
        except Exception as error:
            # Whatever its HTTP library raises.
            raise transport_error(self.source, error) from error


@dataclass
class Directory:
    """A directory that holds the model: a disk, an NFS path, a hub client's snapshot (links are followed)."""

    source: Source

    @property
    def root(self) -> Path:
        """The directory."""
        return self.source.path or Path("/nonexistent")

    def list(self) -> Listing:
        """Return the directory's files, with the hashes of its manifest where it has one of ours."""
        if not self.root.is_dir():
            raise SourceError(f"{self.source} does not exist or is no directory", permanent=True)
        manifest = Manifest.read(self.root)
        if manifest is not None:
            return Listing(manifest.files, manifest.revision)
        files = []
        try:
            for path in sorted(self.root.rglob("*")):
                relative = path.relative_to(self.root)
                if LEFTOVERS.isdisjoint(relative.parts) and path.is_file():
                    files.append(Entry(relative.as_posix(), path.stat().st_size))
        except OSError as error:
            raise transport_error(self.source, error) from error
        return Listing(tuple(files), self.source.revision)

    def fetch(self, entry: Entry, staging: Path, *, again: bool) -> None:
        """Copy one file; what is at its final name was copied to its end."""
        target = staging / entry.path
        temporary = target.with_name(f"{target.name}.copying")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.root / entry.path, temporary)
            temporary.replace(target)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise transport_error(self.source, error) from error

    def tidy(self, staging: Path) -> None:
        """Remove copies that were cut off."""
        for path in staging.rglob("*.copying"):
            path.unlink(missing_ok=True)


def transport_error(source: Source, error: BaseException) -> SourceError:
    """Return what a failed read or write means: a full disk, a forbidden path, or worth another try."""
    number = getattr(error, "errno", None)
    if number in {errno.ENOSPC, errno.EDQUOT}:
        return SourceError("the disk is full", permanent=True, space=True)
    if number in {errno.EACCES, errno.EROFS, errno.EPERM}:
        return SourceError(f"{source}: {one_line(error)}; check owner and mount of the paths", permanent=True)
    return SourceError(f"{source}: {system_reason(error) or one_line(error)}")


def system_reason(error: BaseException) -> str | None:
    """Return what the operating system said at the root of a client's error, e.g. ``Connection refused``."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        found = waiting.pop(0)
        if not isinstance(found, BaseException) or id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, OSError) and found.errno is not None and found.strerror:
            return found.strerror
        # HTTP libraries keep the root as cause, as context, as attribute or as first argument.
        waiting += [found.__cause__, found.__context__, getattr(found, "reason", None), *found.args[:1]]
    return None


def one_line(error: BaseException) -> str:
    """Return an exception as one short line, without the query part of URLs (signatures live there)."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"(https?://[^\s?'\")]+)\?[^\s'\")]*", r"\1", text)
    return text if len(text) <= 200 else text[:199] + "…"

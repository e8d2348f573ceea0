"""A model's directory that a web server serves as plain files: nginx, Apache, Nexus "raw", any other."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from minimax_metal.common.errors import UserError
from minimax_metal.host.weights import listings, names
from minimax_metal.host.weights.answers import read_json
from minimax_metal.host.weights.errors import SourceError
from minimax_metal.host.weights.examine.leftovers import TOOL_FOLDERS, companions, is_companion, unfinished
from minimax_metal.host.weights.hubs import reading
from minimax_metal.host.weights.listings import Listing
from minimax_metal.host.weights.manifest import FILE as MANIFEST
from minimax_metal.host.weights.manifest import FOLDER, INDEX, Entry, Manifest
from minimax_metal.host.weights.request import Source, is_commit
from minimax_metal.host.weights.web import Body, Web

ABSENT: Final = frozenset({403, 404, 410})
"""Web servers' answers for a missing file, or a folder without a listing."""
MOST_FOLDERS: Final = 100
COMMON: Final = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "configuration.json",
    "model.safetensors",
    INDEX,
)
"""Files that models have under these names, requested from a server without directory listings."""


@dataclass
class Served:
    """A verified directory that another host serves as plain files over HTTP, including its manifest.

    Without a manifest the files are those that the server lists, else those that the index and the
    configuration name. Then no hashes are published, and the files are verified one by one.
    """

    source: Source
    web: Web

    def list(self) -> Listing:
        """Return the manifest's contents, or the existing files."""
        try:
            raw = self.web.json(f"{self.source.endpoint}/{FOLDER}/{MANIFEST}")
        except SourceError as error:
            if error.status not in ABSENT:
                raise
            return self._without_manifest()
        with reading(self.source):
            manifest = Manifest.parse(raw)
            if not isinstance(manifest.revision, str | None):
                raise TypeError("its revision is not text")
            names.together(names.check(entry.path) for entry in manifest.files)
        wanted, there = self.source.revision, manifest.revision
        if is_commit(wanted) and is_commit(there) and wanted != there:
            raise SourceError(f"{self.source} have revision {there}, not {wanted}", permanent=True)
        return Listing(manifest.files, manifest.revision)

    def _without_manifest(self) -> Listing:
        found = self._listed() or self._named()
        with ThreadPoolExecutor(8, thread_name_prefix="sizes") as pool:
            files = [one for one in pool.map(self._sized, sorted(found)) if one is not None]
        if not any(entry.path.endswith(".safetensors") for entry in files):
            raise SourceError(
                f"{self.source}: it has neither a manifest ({FOLDER}/{MANIFEST}) nor a list of a "
                f"model's files nor {INDEX}; expected the URL of a model's own directory",
                permanent=True,
            )
        with reading(self.source):
            return listings.listing(files, self.source.revision)

    def _listed(self) -> set[str]:
        """Return the files in the server's own directory listings; empty if it has none."""
        found: set[str] = set()
        folders = [""]
        for folder in folders:
            try:
                page = self.web.document(f"{self.source.endpoint}/{quote(folder)}")
            except SourceError as error:
                if error.status in ABSENT:
                    continue
                raise
            parsed: Any = None
            with contextlib.suppress(ValueError):
                parsed = read_json(page.content)
            with reading(self.source):
                files, below = listings.folder_of(page.content, parsed)
                for name in files:
                    if (tool := unfinished(name)) is not None:
                        raise UserError(
                            f"{folder}{name}: an unfinished download of {tool}; let it finish, or remove it"
                        )
                beside = sorted(f"{folder}{name}" for name in files if is_companion(name, files))
                if beside:
                    raise UserError(f"{beside[0]}: {companions(beside)}")
                found |= {f"{folder}{name}" for name in files if name not in TOOL_FOLDERS}
                folders += [f"{folder}{name}/" for name in below if name not in TOOL_FOLDERS]
                if len(folders) > MOST_FOLDERS or len(found) > listings.MOST_FILES:
                    raise UserError("the server lists far more files than a model has")
        return found if any(path.endswith(".safetensors") for path in found) else set()

    def _named(self) -> set[str]:
        """Return the usual files, and those that the index and the configuration name."""
        found = set(COMMON)
        for path in (INDEX, "config.json"):
            try:
                raw = self.web.json(f"{self.source.endpoint}/{path}")
            except SourceError as error:
                if error.status in ABSENT:
                    continue
                raise
            with reading(self.source):
                if path == INDEX:
                    found |= {names.check(shard) for shard in raw["weight_map"].values()}
                else:
                    maps = raw.get("auto_map") or {}
                    found |= {f"{names.check(str(one)).partition('.')[0]}.py" for one in maps.values()}
        return found

    def _sized(self, path: str) -> Entry | None:
        """Return a file with its size; None if it does not exist, which the proof judges."""
        url = f"{self.source.endpoint}/{quote(path)}"
        try:
            size = self.web.head(url).size
        except SourceError as error:
            if error.status in ABSENT:
                return None
            if error.status not in {400, 405, 501}:
                raise
            size = None
        if size is None:
            with self.web.open(url, offset=0, end=1) as body:
                size = body.total
        if size is None:
            raise SourceError(f"{self.source} gives no size for {path}", permanent=True)
        with reading(self.source):
            return Entry(names.check(path), listings.size_of(size, path))

    def open(
        self, entry: Entry, offset: int, end: int | None = None
    ) -> contextlib.AbstractContextManager[Body]:
        """Open one file at an offset."""
        return self.web.open(f"{self.source.endpoint}/{quote(entry.path)}", offset=offset, end=end)

    def identity(self, entry: Entry) -> str | None:
        """Return the file's hash."""
        return entry.sha256

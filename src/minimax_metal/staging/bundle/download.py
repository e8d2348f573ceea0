"""Fetch files over HTTP into a bundle: continued after a stop, retried, and named only when verified."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import requests
import urllib3

from minimax_metal.artefacts.web import patience
from minimax_metal.errors import UserError
from minimax_metal.staging.bundle.store import PARTIAL, File

ATTEMPTS: Final = 8
STALL_SECONDS: Final = 60.0
_BLOCK: Final = 1 << 20


@dataclass(frozen=True)
class Item:
    """A file to fetch: from where, to which path of the bundle, what it must be. -1: a size nobody states."""

    url: str
    path: str
    size: int
    sha256: str


class _RefusedError(Exception):
    """An answer that another try won't change."""


def fetch_all(
    items: Sequence[Item], directory: Path, progress: Callable[[int], None], workers: int = 8
) -> list[File]:
    """Fetch what is not there yet; ``progress`` is called with the bytes of each block.

    Raises:
        UserError: a file can't be had, or is another one than its lock or its repository says.
    """
    with ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(fetch, item, directory, progress) for item in items]
        try:
            return [job.result() for job in jobs]
        except BaseException:
            for job in jobs:
                job.cancel()
            raise


def fetch(item: Item, directory: Path, progress: Callable[[int], None] = lambda _: None) -> File:
    """Fetch one file, or take the one that has the name already: it was verified before it got it."""
    final = directory / item.path
    if final.is_file() and item.size in {-1, final.stat().st_size}:
        return File(item.path, final.stat().st_size, item.sha256)
    # By path and hash: empty lists are one content under many names, and come in side by side.
    part = directory / PARTIAL / hashlib.sha256(f"{item.path} {item.sha256}".encode()).hexdigest()
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(min(30.0, 0.5 * 2**attempt))
        try:
            _read(item, part, progress)
        except _RefusedError as error:
            raise UserError(f"found {error} for {item.url}, expected the file; check the mirror") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            reason = " ".join(str(error).split())
            if isinstance(error, OSError) and error.errno == 28:
                raise UserError(
                    f"found no room at {directory}, expected some for {item.path}; make room"
                ) from None
            continue
        size = part.stat().st_size
        if size < item.size:
            reason = f"an end after {size} bytes"
            continue
        found = _digest(part)
        if found == item.sha256:
            final.parent.mkdir(parents=True, exist_ok=True)
            part.rename(final)
            return File(item.path, size, item.sha256)
        reason = f"{size} bytes with the hash {found}"
        part.unlink()
    raise UserError(
        f"found {reason} at {item.url}, expected {item.size} bytes with the hash {item.sha256}; check the "
        "network and "
        "the mirror, then run it again, it goes on"
    )


def _read(item: Item, part: Path, progress: Callable[[int], None]) -> None:
    have = part.stat().st_size if part.exists() else 0
    if have == item.size:
        return
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(item.url, headers=headers, stream=True, timeout=(20, STALL_SECONDS)) as answer:
        if answer.status_code in {408, 425, 429, 500, 502, 503, 504}:
            time.sleep(min(60.0, patience(answer.headers) or 0.0))
            raise requests.RequestException(f"status {answer.status_code}")
        if answer.status_code == 416:
            part.unlink()
            raise requests.RequestException("status 416")
        if answer.status_code not in {200, 206}:
            raise _RefusedError(f"status {answer.status_code}")
        ranged = answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(
            f"bytes {have}-"
        )
        with part.open("ab" if ranged else "wb") as stream:
            # What is there, not a full block: a cut connection loses nothing that came.
            while block := answer.raw.read1(_BLOCK, decode_content=False):
                stream.write(block)
                progress(len(block))


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def get(url: str, what: str, accept: str = "*/*") -> bytes:
    """Return a small document.

    Raises:
        UserError: it can't be had.
    """
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(min(15.0, 0.5 * 2**attempt))
        try:
            answer = requests.get(url, headers={"Accept": accept}, timeout=(20, STALL_SECONDS))
        except requests.RequestException as error:
            reason = " ".join(str(error).split())[:200]
            continue
        if answer.status_code == 200:
            return answer.content
        reason = f"status {answer.status_code}"
        if 400 <= answer.status_code < 500 and answer.status_code not in {408, 425, 429}:
            break
    raise UserError(f"found {reason} at {urlsplit(url).netloc}, expected {what} ({url}); check the mirror")

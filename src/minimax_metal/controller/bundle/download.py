"""Download files into a bundle: resumed after an interruption, retried, and named only when verified.

Requests and redirects follow the rules of a pull (:mod:`minimax_metal.host.weights.redirects`): ``~/.netrc``
is never read, and a mirror on the internet can't redirect to an address of a private network.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import requests
import urllib3

from minimax_metal.common.errors import UserError
from minimax_metal.controller.bundle_store.area import PARTIAL, Area, area
from minimax_metal.controller.bundle_store.document import File
from minimax_metal.controller.bundle_store.store import wrong
from minimax_metal.host.weights.answers import patience
from minimax_metal.host.weights.errors import SourceError
from minimax_metal.host.weights.web import Web

ATTEMPTS: Final = 8
STALL_SECONDS: Final = 60.0
_BLOCK: Final = 1 << 20
UNSTATED: Final = 8 << 30
"""Maximum bytes of a file of unknown size; the largest wheel of a lock has 1 GB."""
SMALL: Final = 64 << 20
"""Maximum bytes of a small document."""
SMALL_SECONDS: Final = 300.0


@dataclass(frozen=True)
class Item:
    """A file to fetch: its URL, its path in the bundle, and what it must be. Size -1: unknown."""

    url: str
    path: str
    size: int
    sha256: str


class _RefusedError(Exception):
    """An answer that a retry won't change."""


def fetch_all(
    items: Sequence[Item], directory: Path, progress: Callable[[int], None], workers: int = 8
) -> list[File]:
    """Fetch missing files; ``progress`` is called with the bytes of each block.

    Raises:
        UserError: a file is not available, or does not match its lock or repository.
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
    """Fetch one file, or keep the existing one if its bytes are right."""
    with area(directory) as opened:
        there = opened.size(item.path)
        if there is not None and item.size in {-1, there}:
            whole = File(item.path, there, item.sha256)
            if wrong(opened, whole) is None:
                return whole
        return _fetch(item, opened, progress)


def _fetch(item: Item, opened: Area, progress: Callable[[int], None]) -> File:
    # By path and hash: empty lists have the same content under many names, and are fetched in parallel.
    part = hashlib.sha256(f"{item.path} {item.sha256}".encode()).hexdigest()
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(min(30.0, 0.5 * 2**attempt))
        try:
            size = _read(item, opened, part, progress)
        except _RefusedError as error:
            raise UserError(f"found {error} for {item.url}, expected the file; check the mirror") from None
        except SourceError as error:
            if error.permanent:
                raise UserError(f"found {error}, expected {item.path} at {item.url}") from None
            reason = str(error)
            continue
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            reason = " ".join(str(error).split())
            if isinstance(error, OSError) and error.errno == 28:
                raise UserError(
                    f"found no free space at {opened.directory}, expected some for {item.path}; free "
                    "some space"
                ) from None
            continue
        if size < item.size:
            reason = f"the connection ended after {size} bytes"
            continue
        found = File(f"{PARTIAL}/{part}", size, item.sha256)
        if wrong(opened, found) is None:
            opened.place(part, item.path)
            return File(item.path, size, item.sha256)
        reason = f"{size} bytes with a different hash"
        opened.discard(part)
    raise UserError(
        f"found {reason} at {item.url}, expected {item.size} bytes with the hash {item.sha256}; "
        "check the network and the mirror, then run the command again: it resumes"
    )


def _read(item: Item, opened: Area, part: str, progress: Callable[[int], None]) -> int:
    """Continue reading where the unfinished file ends; return its length, which never exceeds the expected
    size.
    """
    most = item.size if item.size >= 0 else UNSTATED
    with os.fdopen(opened.write(part, keep=True), "ab") as stream:
        have = os.fstat(stream.fileno()).st_size
        if have == item.size:
            return have
        if have > most:
            stream.truncate(0)
            have = 0
        headers = {"Range": f"bytes={have}-"} if have else {}
        with _answer(item.url, headers) as answer:
            if answer.status_code in {408, 425, 429, 500, 502, 503, 504}:
                time.sleep(min(60.0, patience(answer.headers) or 0.0))
                raise requests.RequestException(f"status {answer.status_code}")
            if answer.status_code == 416:
                stream.truncate(0)
                raise requests.RequestException("status 416")
            if answer.status_code not in {200, 206}:
                raise _RefusedError(f"status {answer.status_code}")
            if have and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                stream.truncate(0)
                have = 0
            # Read what is available, not a full block: a lost connection loses no received bytes.
            while block := answer.raw.read1(_BLOCK, decode_content=False):
                have += len(block)
                if have > most:
                    stream.truncate(0)
                    raise requests.RequestException(f"more than {most} bytes")
                stream.write(block)
                stream.flush()
                progress(len(block))
        return have


def _answer(url: str, headers: dict[str, str]) -> requests.Response:
    """Return a server's answer, after allowed redirects; raises :class:`SourceError`."""
    return Web(urlsplit(url).netloc.rpartition("@")[2], stall=STALL_SECONDS).answer(url, headers)


def get(url: str, what: str, accept: str = "*/*") -> bytes:
    """Return a small document.

    Raises:
        UserError: it is not available.
    """
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(min(15.0, 0.5 * 2**attempt))
        try:
            with _answer(url, {"Accept": accept}) as answer:
                if answer.status_code == 200:
                    return _small(answer, what, url)
                reason = f"status {answer.status_code}"
                if 400 <= answer.status_code < 500 and answer.status_code not in {408, 425, 429}:
                    break
        except SourceError as error:
            reason = str(error)
            if error.permanent:
                break
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
    raise UserError(f"found {reason} at {urlsplit(url).netloc}, expected {what} ({url}); check the mirror")


def _small(answer: requests.Response, what: str, url: str) -> bytes:
    content = bytearray()
    deadline = time.monotonic() + SMALL_SECONDS
    for block in answer.iter_content(1 << 16):
        content += block
        if len(content) > SMALL or time.monotonic() > deadline:
            raise UserError(
                f"found more than {SMALL >> 20} MiB, or {SMALL_SECONDS:.0f} s, at {urlsplit(url).netloc}, "
                f"expected "
                f"{what} ({url}); check the mirror"
            )
    return bytes(content)

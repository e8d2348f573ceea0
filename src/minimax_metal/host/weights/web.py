"""HTTP for a pull: ranges, waiting for busy servers, tokens, one-line errors.

``requests`` instead of the check's HTTP client: two threads that also hash received 1.5 GB/s from a loopback
with it, 0.7 GB/s with the other (measured on two cores, requests 2.34 and httpx2 2.16). It uses
``HTTPS_PROXY``, ``NO_PROXY`` and ``REQUESTS_CA_BUNDLE`` from the environment. Redirects are followed here, by
the rules of :mod:`.redirects`; :mod:`.answers` interprets answers.

Nothing is read without a limit: descriptions of a model have :data:`DOCUMENT_BYTES` and
:data:`DOCUMENT_SECONDS`, headers a time limit, and the reader of a file's body cuts it at its known size.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import requests
import urllib3

from minimax_metal.host.weights import redirects, sessions
from minimax_metal.host.weights.answers import (
    RangeError,
    Refusal,
    Span,
    begins_page,
    is_page,
    patience,
    read_json,
    span_of,
    title_of,
)
from minimax_metal.host.weights.connections import ended_after, rules
from minimax_metal.host.weights.errors import SourceError, one_line
from minimax_metal.host.weights.failures import decoded, failure
from minimax_metal.host.weights.pacing import Gate, Throttle

__all__ = ["BLOCK", "Body", "Document", "Gate", "Head", "Throttle", "Web", "patience"]

BLOCK: Final = 1 << 20
"""Maximum bytes read from a connection at a time."""
CONNECT_SECONDS: Final = 20.0
DOCUMENT_BYTES: Final = 8 << 20
"""Maximum bytes of a model's description; Hugging Face's of 10,000 files has 2.5 MB."""
DOCUMENT_SECONDS: Final = 120.0
REFUSAL_BYTES: Final = 64 << 10
"""Maximum bytes read of a refusal: enough to know who refuses."""
POINTER: Final = b"version https://git-lfs.github.com/spec/"
"""The start of git-lfs's pointer files in git (git-lfs docs/spec.md)."""


@dataclass(frozen=True, slots=True)
class Body:
    """The bytes of a file from ``start`` on, which may be before the requested offset: some servers ignore
    ranges.
    """

    start: int
    total: int | None
    """The whole file's size in this answer; None if not stated."""
    blocks: Iterator[bytes]
    stop: int | None = None
    """The end of this answer, if stated."""
    version: str | None = None
    """The server's identifier for these bytes (a strong ETag): another one means other bytes."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text that was read completely, its headers, and the URL that answered."""

    content: bytes
    headers: Mapping[str, str]
    url: str


@dataclass(frozen=True, slots=True)
class Head:
    """A server's data on a file before it sends it; ``linked_*``: Hugging Face's for large files."""

    size: int | None
    etag: str | None
    commit: str | None


@dataclass
class Web:
    """Requests to one source. Thread-safe: each thread has its own session.

    Args:
        name: the source's name in errors.
        revision: the requested one, for errors.
        token: sent to the host of the request only.
        stall: seconds without a byte after which a connection is dropped.
    """

    name: str
    revision: str | None = None
    token: str | None = None
    stall: float = 60.0
    local: threading.local = field(default_factory=threading.local)
    home: set[str] = field(default_factory=set)
    """Kinds of addresses at which the source itself was reached."""
    ranges: bool = True
    """Whether to request ranges: no longer after useless answers."""

    def json(self, url: str, parameters: Mapping[str, str] | None = None) -> Any:
        """Return the JSON document at a URL; raises :class:`SourceError`."""
        return self.json_and_headers(url, parameters)[0]

    def json_and_headers(
        self, url: str, parameters: Mapping[str, str] | None = None
    ) -> tuple[Any, Mapping[str, str]]:
        """Return the JSON document at a URL, and the answer's headers; raises :class:`SourceError`."""
        found = self.document(url, parameters)
        try:
            return read_json(found.content), found.headers
        except ValueError as error:
            if is_page(found.headers, found.content):
                raise self._page(found.url, found.content) from error
            if found.content.lstrip()[:1] in (b"{", b"["):
                raise SourceError(
                    f"{self.name} answered incomplete JSON ({one_line(error)}); its answer is cut "
                    "off or damaged"
                ) from error
            raise SourceError(
                f"{self.name} did not answer with JSON; is the endpoint a model hub?", permanent=True
            ) from error

    def text(self, url: str, parameters: Mapping[str, str] | None = None) -> str:
        """Return the text at a URL; raises :class:`SourceError`."""
        return self.document(url, parameters).content.decode("utf-8", "replace")

    def document(self, url: str, parameters: Mapping[str, str] | None = None) -> Document:
        """Return a URL's content, read completely; raises :class:`SourceError`."""
        with self._errors():
            answer = self._get(url, parameters or {}, {})
            with contextlib.closing(answer):
                self._check(answer, url)
                found = self._read(answer, DOCUMENT_BYTES, DOCUMENT_SECONDS)
                content = decoded(self.name, answer.headers, found, DOCUMENT_BYTES)
                return Document(content, answer.headers, str(answer.url))

    def head(self, url: str) -> Head:
        """Return the source's data on a file; a redirect to another host is not followed for it.

        Raises:
            SourceError: no answer, or a refusal.
        """
        with self._errors():
            answer = self._get(url, {}, {}, method="HEAD", stay=True)
            with contextlib.closing(answer):
                away = answer.status_code in redirects.STATUSES
                if not away:
                    self._check(answer, url)
                    if is_page(answer.headers, b"") and not url.endswith((".html", ".htm")):
                        raise self._page(str(answer.url), b"")
                headers = answer.headers
                size = headers.get("X-Linked-Size") or (None if away else headers.get("Content-Length"))
                etag = headers.get("X-Linked-Etag") or (None if away else headers.get("ETag"))
                return Head(
                    int(size) if size and re.fullmatch("[0-9]{1,16}", size.strip()) else None,
                    etag.strip().removeprefix("W/").strip('"') if etag else None,
                    headers.get("X-Repo-Commit"),
                )

    def answer(self, url: str, headers: Mapping[str, str]) -> requests.Response:
        """Return a server's answer after its redirects, with any status; the caller closes it.

        Raises:
            SourceError: no answer, or a redirect that must not be followed.
        """
        with self._errors():
            return self._get(url, {}, headers)

    @contextlib.contextmanager
    def open(
        self,
        url: str,
        parameters: Mapping[str, str] | None = None,
        offset: int = 0,
        end: int | None = None,
    ) -> Iterator[Body]:
        """Yield a file's bytes from ``offset`` on, up to ``end`` if the server supports that.

        After a useless answer to a range request the whole file is requested from then on: existing bytes are
        skipped.

        The connection is closed when the context ends, unless it was read to its end: then it is reused.

        Raises:
            SourceError: no answer, a refusal, or a connection that was lost or stalled.
        """
        headers = {}
        if self.ranges and (offset or end is not None):
            headers = {"Range": f"bytes={offset}-" if end is None else f"bytes={offset}-{end - 1}"}
        try:
            with self._errors():
                answer = self._get(url, parameters or {}, headers)
        except RangeError:
            self.ranges = self.ranges and not offset
            raise
        with self._errors(), contextlib.closing(answer):
            try:
                self._check(answer, url)
                # For the whole file any answer that begins at its beginning will do.
                asked = (offset, end) if headers else (0, None)
                span = span_of(self.name, answer.status_code, answer.headers, *asked)
            except RangeError:
                self.ranges = self.ranges and not headers
                raise
            yield self._body(answer, span, _file_name(url, parameters or {}))

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self.local, "session", None)
        if session is None:
            session = sessions.new()
            self.local.session = session
        return session

    def _get(
        self,
        url: str,
        parameters: Mapping[str, str],
        headers: Mapping[str, str],
        method: str = "GET",
        stay: bool = False,
    ) -> requests.Response:
        """Return an answer after the redirects; ``stay``: not to another scheme, host or port."""
        try:
            home = redirects.origin_of(url)
        except ValueError as error:
            raise SourceError(f"{self.name}: {one_line(error)}", permanent=True) from error
        where, query = url, dict(parameters)
        for hop in range(redirects.HOPS + 1):
            here = redirects.origin_of(where)
            with rules(self._first if hop == 0 else self._later(here[1]), max(self.stall, 1.0)):
                answer = self._session().request(
                    method,
                    where,
                    params=query,
                    headers=dict(headers),
                    stream=True,
                    allow_redirects=False,
                    auth=sessions.Bearer(self._token_for(here) if here == home else None),
                    timeout=(min(CONNECT_SECONDS, self.stall), self.stall),
                )
            location = answer.headers.get("Location")
            if answer.status_code not in redirects.STATUSES or location is None:
                return answer
            # Requests returns headers as Latin-1; servers send UTF-8 there.
            location = location.encode("latin-1", "replace").decode("utf-8", "replace")
            target = redirects.following(self.name, str(answer.url), location)
            if stay and redirects.origin_of(target) != home:
                return answer
            self._finish(answer)
            where, query = target, {}
            host = redirects.origin_of(target)[1]
            if (address := redirects.literal(host)) is not None:
                self._allow(host, address)
        raise SourceError(f"{self.name} redirects more than {redirects.HOPS} times; check the endpoint")

    def _first(self, address: str) -> None:
        self.home.add(redirects.kind_of(address))

    def _later(self, host: str) -> Any:
        return lambda address: self._allow(host, address)

    def _allow(self, host: str, address: str) -> None:
        if not redirects.may_go(self.home, redirects.kind_of(address)):
            raise redirects.refused(self.name, host, address, self.home)

    def _token_for(self, where: redirects.Origin) -> str | None:
        if self.token is None or where[0] == "https" or redirects.stays_inside(where[1], where[2]):
            return self.token
        raise SourceError(
            f"{self.name}: the token is not sent to {where[1]} over http, where anybody on the way "
            "can read it; use an https endpoint, or remove the token",
            permanent=True,
        )

    def _finish(self, answer: requests.Response) -> None:
        """Let the connection be reused after a redirect, whose body is short; else close it."""
        try:
            length = answer.headers.get("Content-Length", "")
            if length.isascii() and length.isdigit() and int(length[:9]) <= REFUSAL_BYTES:
                self._read(answer, REFUSAL_BYTES, min(10.0, self.stall))
        except (SourceError, OSError, requests.RequestException, urllib3.exceptions.HTTPError):
            pass
        finally:
            answer.close()

    def _read(self, answer: requests.Response, limit: int, seconds: float) -> bytes:
        """Return a whole body.

        Raises:
            SourceError: it has more than ``limit`` bytes, or takes longer than ``seconds``.
        """
        content = bytearray()
        with ended_after(seconds) as late:
            while block := answer.raw.read1(1 << 16, decode_content=False):
                content += block
                if len(content) > limit:
                    raise SourceError(
                        f"{self.name} answers with more than {limit >> 20 or 1} MiB to a request for "
                        "a description of a model; is the endpoint a model hub?",
                        permanent=True,
                    )
        if late.is_set():
            raise SourceError(f"{self.name}: its answer did not end within {seconds:.0f} s")
        return bytes(content)

    def _check(self, answer: requests.Response, url: str) -> None:
        """Raise the meaning of an answer without the document."""
        if answer.status_code in {200, 206}:
            return
        body = bytearray()
        with (
            contextlib.suppress(OSError, requests.RequestException, urllib3.exceptions.HTTPError),
            ended_after(min(10.0, self.stall)),
        ):
            while len(body) < REFUSAL_BYTES and (
                block := answer.raw.read1(REFUSAL_BYTES, decode_content=False)
            ):
                body += block
        first, last = _host(url), _host(str(answer.url))
        with contextlib.suppress(SourceError):
            body[:] = decoded(self.name, answer.headers, bytes(body[:REFUSAL_BYTES]), DOCUMENT_BYTES)
        error = Refusal(
            self.name,
            answer.status_code,
            answer.headers,
            bytes(body),
            last,
            self.revision,
            elsewhere=first != last,
            token=self.token is not None,
        ).error()
        error.status, error.code = answer.status_code, answer.headers.get("X-Error-Code", "").strip()[:60]
        raise error

    def _page(self, url: str, content: bytes) -> SourceError:
        return SourceError(
            f"{self.name}: {_host(url)} answered with an HTML page{title_of(content)}: a login page, "
            "a captive portal or a proxy; log in or give the pull a token "
            "(model_weights_token_files), set HTTPS_PROXY, or use another source"
        )

    def _body(self, answer: requests.Response, span: Span, file: str) -> Body:
        limit = None if span.stop is None else span.stop - span.start
        blocks = self._blocks(answer, limit)
        if span.start == 0:
            first = next(blocks, b"")
            if begins_page(first) and not file.endswith((".html", ".htm", ".xhtml", ".md")):
                raise self._page(str(answer.url), first)
            if first.startswith(POINTER):
                raise SourceError(
                    f"{self.name} serves a git-LFS pointer instead of {one_line(ValueError(file))}; "
                    "use a source that has the file itself",
                    permanent=True,
                )
            blocks = itertools.chain([first] if first else [], blocks)
        etag = answer.headers.get("ETag", "").strip()
        strong = etag if len(etag) > 2 and etag.startswith('"') and etag.endswith('"') else None
        return Body(span.start, span.total, blocks, span.stop, strong)

    def _blocks(self, answer: requests.Response, limit: int | None) -> Iterator[bytes]:
        with self._errors():
            # Read what is available, not a full block: an early end loses nothing, and slow lines show
            # progress.
            while block := answer.raw.read1(BLOCK, decode_content=False):
                if limit is not None and (limit := limit - len(block)) < 0:
                    raise SourceError(f"{self.name} sends more bytes than announced")
                yield block

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (
            requests.RequestException,
            urllib3.exceptions.HTTPError,
            OSError,
            ValueError,  # an invalid URL or header
        ) as error:
            raise self.failure(error) from error

    def failure(self, error: BaseException) -> SourceError:
        """Return the meaning of an exception of the HTTP library."""
        return failure(self.name, self.stall, error)


def _file_name(url: str, parameters: Mapping[str, str]) -> str:
    return (
        parameters.get("FilePath")
        or parse_qs(urlsplit(url).query).get("FilePath", [""])[0]
        or urlsplit(url).path
    )


def _host(url: str) -> str:
    return urllib3.util.parse_url(url).host or ""

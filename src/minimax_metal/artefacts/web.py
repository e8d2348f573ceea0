"""HTTP as a pull needs it: ranges, patience when a server asks for it, tokens, errors that say one line.

``requests`` rather than the HTTP client of the check: two threads that also hash took 1.5 GB/s from a
loopback with it, 0.7 GB/s with the other (measured on two cores, requests 2.34 and httpx2 2.16). It honours
``HTTPS_PROXY``, ``NO_PROXY`` and ``REQUESTS_CA_BUNDLE`` of the environment, and sends ``Authorization`` to no
other host than the one it was meant for, also after a redirect.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Final

import requests
import urllib3

from minimax_metal import __version__
from minimax_metal.artefacts.errors import SourceError, causes, one_line, system_reason, transport_error

BLOCK: Final = 1 << 20
"""Bytes taken from a connection at a time, at most."""

CONNECT_SECONDS: Final = 20.0
BUSY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that mean "not now"."""

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_RESET = re.compile(r"\bt=(\d+)")


@dataclass(frozen=True, slots=True)
class Body:
    """The bytes of a file from ``start`` on, which may be before what was asked for: not all heed ranges."""

    start: int
    total: int | None
    """The whole file's size as the server states it with this answer; None when it does not."""
    blocks: Iterator[bytes]


class _Bearer(requests.auth.AuthBase):
    """The token, or none: either way ``~/.netrc`` is left unread."""

    def __init__(self, token: str | None) -> None:
        self.token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.token:
            request.headers["Authorization"] = f"Bearer {self.token}"
        return request


@dataclass
class Web:
    """Requests to one source. Safe for several threads: each has a session of its own.

    Args:
        name: the source, as errors name it.
        revision: what is asked for there, for errors.
        token: sent to the host of the request only.
        stall: seconds without a byte after which a connection is dropped.
    """

    name: str
    revision: str | None = None
    token: str | None = None
    stall: float = 60.0
    local: threading.local = field(default_factory=threading.local)

    def json(self, url: str, parameters: Mapping[str, str] | None = None) -> Any:
        """Return the JSON document at a URL; raises :class:`SourceError`."""
        with self._errors():
            answer = self._get(url, parameters or {}, {}, stream=False)
            self._check(answer)
            try:
                return answer.json()
            except ValueError as error:
                raise SourceError(
                    f"{self.name} answered no JSON; is the endpoint a model hub?", permanent=True
                ) from error

    def text(self, url: str, parameters: Mapping[str, str] | None = None) -> str:
        """Return the text at a URL; raises :class:`SourceError`."""
        with self._errors():
            answer = self._get(url, parameters or {}, {}, stream=False)
            self._check(answer)
            return answer.text

    @contextlib.contextmanager
    def open(
        self,
        url: str,
        parameters: Mapping[str, str] | None = None,
        offset: int = 0,
        end: int | None = None,
    ) -> Iterator[Body]:
        """Yield a file's bytes from ``offset`` on, up to ``end`` where the server heeds that.

        The connection is closed when the context ends, unless it was read to its end: then it is used again.

        Raises:
            SourceError: no answer, a refusal, or a connection that was lost or went quiet on the way.
        """
        headers = {}
        if offset or end is not None:
            headers = {"Range": f"bytes={offset}-" if end is None else f"bytes={offset}-{end - 1}"}
        with self._errors():
            answer = self._get(url, parameters or {}, headers, stream=True)
            with contextlib.closing(answer):
                self._check(answer)
                yield self._body(answer, offset)

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self.local, "session", None)
        if session is None:
            session = requests.Session()
            session.headers["User-Agent"] = f"minimax-metal/{__version__}"
            # Bytes as they are on the hub: a compressed answer has other offsets and another length.
            session.headers["Accept-Encoding"] = "identity"
            session.auth = _Bearer(self.token)
            self.local.session = session
        return session

    def _get(
        self, url: str, parameters: Mapping[str, str], headers: Mapping[str, str], stream: bool
    ) -> requests.Response:
        return self._session().get(
            url,
            params=parameters,
            headers=dict(headers),
            stream=stream,
            timeout=(min(CONNECT_SECONDS, self.stall), self.stall),
        )

    def _check(self, answer: requests.Response) -> None:
        """Raise what an answer without the document means."""
        status = answer.status_code
        if status in {200, 206}:
            return
        elsewhere = bool(answer.history) and _host(answer.url) != _host(answer.history[0].url)
        if status in BUSY:
            raise SourceError(
                f"{self.name} answered {status}", busy=status in {429, 503}, after=patience(answer.headers)
            )
        code = answer.headers.get("X-Error-Code", "")
        if code == "GatedRepo" or (status == 403 and not elsewhere):
            raise SourceError(
                f"{self.name} is gated, or the token may not read it: accept its licence there and give the "
                "pull a token (model_weights_token_files)",
                permanent=True,
            )
        if status == 403:
            # A signed address that ran out, or a clock that makes it look so: the hub signs a new one.
            raise SourceError(f"{self.name}: {_host(answer.url)} answered 403")
        if status == 401:
            said = "does not accept the token" if self.token else "does not exist or needs a token"
            raise SourceError(f"{self.name} {said}", permanent=True)
        if code == "RevisionNotFound":
            raise SourceError(f"{self.name} has no revision {self.revision}", permanent=True)
        if status == 404:
            which = "" if code == "RepoNotFound" else f" (revision {self.revision})"
            raise SourceError(f"{self.name}{which} does not exist or needs a token", permanent=True)
        if status == 416:
            raise SourceError(f"{self.name} has fewer bytes of a file than it states")
        raise SourceError(f"{self.name} answered {status}", permanent=400 <= status < 500)

    def _body(self, answer: requests.Response, offset: int) -> Body:
        encoding = answer.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise SourceError(f"{self.name} sends files as {encoding}, which was not asked for")
        length = answer.headers.get("Content-Length", "")
        start, total = 0, int(length) if length.isdigit() else None
        if answer.status_code == 206:
            found = _RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
            if found is None:
                raise SourceError(f"{self.name} sends a part of a file without saying which")
            start = int(found[1])
            total = None if found[3] == "*" else int(found[3])
        if start > offset:
            raise SourceError(f"{self.name} sends byte {start} on, {offset} was asked for")
        return Body(start, total, self._blocks(answer))

    def _blocks(self, answer: requests.Response) -> Iterator[bytes]:
        with self._errors():
            # What is there, not a full block: an end loses nothing, and slow lines show progress.
            while block := answer.raw.read1(BLOCK, decode_content=False):
                yield block

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (
            requests.RequestException,
            urllib3.exceptions.HTTPError,
            OSError,
            json.JSONDecodeError,
        ) as error:
            raise self.failure(error) from error

    def failure(self, error: BaseException) -> SourceError:
        """Return what an exception of the HTTP library means."""
        text = one_line(error)
        if isinstance(error, requests.exceptions.Timeout | urllib3.exceptions.TimeoutError) or any(
            isinstance(cause, TimeoutError | urllib3.exceptions.ReadTimeoutError) for cause in causes(error)
        ):
            return SourceError(f"{self.name}: not one byte in {self.stall:g} s")
        if "certificate" in text.lower():
            when = "the host's clock, " if re.search(r"not yet valid|expired", text) else ""
            return SourceError(
                f"{self.name}: its certificate is refused ({certificate_reason(text)}); check {when}"
                "the proxy and the host's CA certificates",
                permanent=True,
            )
        if isinstance(error, requests.exceptions.ProxyError):
            return SourceError(f"{self.name}: the proxy does not connect ({system_reason(error) or text})")
        if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
            return SourceError(f"{self.name}: {text}", permanent=True)
        return transport_error(self.name, error)


def patience(headers: Mapping[str, str]) -> float | None:
    """Return the seconds a server asks to wait; None when it says nothing that can be read.

    ``Retry-After`` as seconds or as a date, which counts from the server's own ``Date``: the clock of this
    host may be wrong. Hugging Face says the same as ``RateLimit: "api";r=0;t=55``.
    """
    after = headers.get("Retry-After", "").strip()
    if after.isdigit():
        return float(after)
    if after:
        with contextlib.suppress(ValueError, TypeError):
            until = parsedate_to_datetime(after).timestamp()
            date = headers.get("Date")
            now = parsedate_to_datetime(date).timestamp() if date else time.time()
            return max(0.0, until - now)
    if found := _RESET.search(headers.get("RateLimit", "")):
        return float(found[1])
    return None


@dataclass
class Gate:
    """Holds all threads back while a source asked for patience, so that they don't storm it."""

    backoff: float = 2.0
    limit: float = 60.0
    lock: threading.Lock = field(default_factory=threading.Lock)
    until: float = 0.0
    refusals: int = 0

    def refused(self, after: float | None) -> float:
        """Note a refusal; return the seconds everybody waits.

        What was asked for, else a doubling pause; a bit more by chance, so that a fleet does not come back
        in one instant.
        """
        with self.lock:
            now = time.monotonic()
            if now >= self.until:  # several threads are refused in the same moment: that counts once
                self.refusals += 1
            pause = min(self.limit, self.backoff * 2 ** (self.refusals - 1)) if after is None else after
            pause *= 1 + random.random() / 10  # noqa: S311  no secret hangs on it
            self.until = max(self.until, now + pause)
            return self.until - now

    def passed(self) -> None:
        """Note a request that was served."""
        with self.lock:
            self.refusals = 0

    def wait(self, halted: threading.Event) -> None:
        """Return when requests are welcome again, or when ``halted`` is set."""
        while (left := self.until - time.monotonic()) > 0 and not halted.is_set():
            halted.wait(min(left, 1.0))


@dataclass
class Throttle:
    """Shares ``rate`` bytes a second among threads; 0 is no limit."""

    rate: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)
    ready: float = 0.0
    sleep: Callable[[float], None] = time.sleep

    def take(self, size: int) -> None:
        """Return when ``size`` more bytes may have come in."""
        if self.rate <= 0:
            return
        with self.lock:
            now = time.monotonic()
            # What was not used in the last second is lost: no burst after a pause.
            self.ready = max(self.ready, now - 1.0) + size / self.rate
            left = self.ready - now
        if left > 0:
            self.sleep(left)


def certificate_reason(text: str) -> str:
    """Return the part of an SSL error that people can act on."""
    found = re.search(r"certificate verify failed: ([^(\]]+)", text)
    return found[1].strip() if found else "not trusted"


def _host(url: str) -> str:
    return urllib3.util.parse_url(url).host or ""

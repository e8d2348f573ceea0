"""The meaning of an HTTP answer for a pull: pure functions over status, headers and the first bytes of a
body.

A range is judged by ``Content-Range``, not by the status: ModelScope answers 200 with the slice and a correct
``Content-Range`` (modelscope/modelscope_hub issue 50), others 200 with the whole file.

The origin of a refusal is determined. A hub refuses in its own format: JSON, or ``X-Error-Code`` for Hugging
Face. An HTML page comes from something in between (a proxy, a WAF, a login page, a captive portal): it is not
the hub's answer about the model, and it may disappear within an hour.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final

from minimax_metal.common.text import one_line
from minimax_metal.host.weights.errors import SourceError

BUSY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that mean "try later"."""
MOST_PATIENCE: Final = 7 * 86_400.0
"""Maximum seconds of a ``Retry-After``; a longer one is a mistake."""

_NUMBER: Final = r"([0-9]{1,18})"
_RANGE: Final = re.compile(rf"bytes[ =]{_NUMBER}-{_NUMBER}/(?:{_NUMBER}|\*)", re.IGNORECASE)
_SECONDS: Final = re.compile(r"[0-9]{1,9}")
_RESET: Final = re.compile(r"\bt=([0-9]{1,9})(?![0-9])")
_PAGE: Final = re.compile(
    r"\s{0,1000}(?:<!--[^>]{0,2000}-->\s{0,1000}){0,5}<(?:!doctype html|html|head)\b", re.I
)
_TITLE: Final = re.compile(r"<title[^<>]{0,200}>([^<]{1,300})", re.IGNORECASE)


class RangeError(SourceError):
    """The source's answer to a range is useless; the whole file may still work."""


@dataclass(frozen=True, slots=True)
class Span:
    """The part of a file in an answer: bytes ``start`` up to ``stop``, of ``total``.

    ``stop`` and ``total`` are None if the answer does not state them.
    """

    start: int
    stop: int | None
    total: int | None


def span_of(name: str, status: int, headers: Mapping[str, str], offset: int, end: int | None) -> Span:
    """Return which part of a file an answer contains, when ``offset`` was requested.

    Args:
        name: the source, for errors.
        status: 200 or 206.
        headers: of the answer; names in any case.
        offset: first requested byte.
        end: end of the request; None: the end of the file.

    Raises:
        RangeError: the part is not stated, contradicts itself, or is another one.
        SourceError: the body is encoded.
    """
    encoding = headers.get("Content-Encoding", "").strip().lower()
    if encoding not in {"", "identity"}:
        raise SourceError(
            f"{name} sends files as {one_line(encoding, 40)}, which was not requested; the proxy or "
            "cache that compresses them must pass them on unchanged"
        )
    if headers.get("Content-Type", "").strip().lower().startswith("multipart/byteranges"):
        raise RangeError(f"{name} sends several parts of a file in one answer; one was requested")
    text = headers.get("Content-Length", "").strip()
    length = int(text) if re.fullmatch(_NUMBER, text) else None
    stated = headers.get("Content-Range")
    if stated is None:
        if status == 206:
            raise RangeError(f"{name} sends a part of a file without a Content-Range")
        return Span(0, length, length)
    found = _RANGE.fullmatch(stated.strip())
    said = one_line(stated, 80)
    if found is None:
        raise RangeError(f"{name} sends a part of a file with Content-Range {said!r}, which names no range")
    first, last = int(found[1]), int(found[2])
    total = None if found[3] is None else int(found[3])
    if last < first or (total is not None and last >= total):
        raise RangeError(f"{name} sends a part of a file with Content-Range {said!r}, which is impossible")
    if length is not None and length != last + 1 - first:
        raise RangeError(f"{name} sends {length} bytes of a file as Content-Range {said!r}")
    if first > offset or last < offset or (end is not None and first >= end):
        raise RangeError(
            f"{name} sends bytes {first} to {last} of a file; bytes from {offset} on were requested"
        )
    return Span(first, last + 1, total)


def is_page(headers: Mapping[str, str], beginning: bytes) -> bool:
    """Return whether an answer is an HTML page, by its type or its first bytes."""
    kind = headers.get("Content-Type", "").strip().lower()
    return kind.startswith(("text/html", "application/xhtml")) or begins_page(beginning)


_POLICY: Final = re.compile(r"blocked|curation|polic(?:y|ies)|quarantine|firewall", re.IGNORECASE)
"""Texts of a repository manager that blocks what the hub itself would send."""


def begins_page(beginning: bytes) -> bool:
    """Return whether bytes are the beginning of an HTML page."""
    return _PAGE.match(beginning[:4096].decode("utf-8-sig", "replace")) is not None


def title_of(body: bytes) -> str:
    """Return the title of an HTML page for messages, in quotes after a space; "" without one."""
    found = _TITLE.search(body[:65_536].decode("utf-8", "replace"))
    title = one_line(found[1], 80) if found else ""
    return f' "{title}"' if title else ""


def read_json(content: bytes) -> Any:
    """Parse foreign JSON; NaN and numbers of more than 19 digits are refused.

    Raises:
        ValueError: it is not JSON, or nested too deep.
    """

    def refuse(text: str) -> Any:
        raise ValueError(f"{text} is not a number")

    def number(text: str) -> int:
        if len(text) > 20:
            raise ValueError("a number has too many digits")
        return int(text)

    try:
        return json.loads(content.decode("utf-8-sig"), parse_constant=refuse, parse_int=number)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def patience(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait, a week at most; None if it does not.

    ``Retry-After`` as seconds or as a date, relative to the server's own ``Date``: this host's clock may be
    wrong. Hugging Face uses ``RateLimit: "api";r=0;t=55``.
    """
    after = headers.get("Retry-After", "").strip()
    if _SECONDS.fullmatch(after):
        return min(float(after), MOST_PATIENCE)
    if after:
        with contextlib.suppress(ValueError, TypeError, OverflowError, IndexError):
            until = parsedate_to_datetime(after[:100]).timestamp()
            date = headers.get("Date")
            now = parsedate_to_datetime(date[:100]).timestamp() if date else time.time()
            return min(max(0.0, until - now), MOST_PATIENCE)
    if found := _RESET.search(headers.get("RateLimit", "")[:200]):
        return min(float(found[1]), MOST_PATIENCE)
    return None


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer without the document.

    ``name``, ``revision``: what was requested; ``host``: the server; ``elsewhere``: another host than the
    requested one, after a redirect; ``token``: whether the request had one.
    """

    name: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    host: str
    revision: str | None = None
    elsewhere: bool = False
    token: bool = False

    def error(self) -> SourceError:
        """Return its meaning."""
        code = one_line(self.headers.get("X-Error-Code", ""), 60)
        if self.status in BUSY:
            page = self._page()
            return SourceError(
                f"{self.name} answered {self.status}" + (f" with an HTML page{page}" if page else ""),
                busy=self.status in {429, 503},
                after=patience(self.headers),
            )
        if self.status == 407:
            return SourceError(
                f"{self.name}: the proxy requires a user name and a password (407); set them in "
                "HTTPS_PROXY on this host"
            )
        if self.status == 511:
            return SourceError(
                f"{self.name}: the network requires a login first (511, a captive portal); log in, "
                "or set HTTPS_PROXY"
            )
        if code == "GatedRepo":
            return self._gated()
        if self._is_page():
            return self._between()
        if self.status in {401, 403}:
            return self._denied(code)
        if code == "RevisionNotFound":
            return SourceError(f"{self.name} has no revision {self.revision}", permanent=True)
        if self.status == 404:
            which = "" if code == "RepoNotFound" else f" (revision {self.revision})"
            return SourceError(f"{self.name}{which} does not exist or needs a token", permanent=True)
        if self.status == 416:
            return RangeError(f"{self.name} has fewer bytes of a file than it states")
        said = self.message()
        return SourceError(
            f"{self.name} answered {self.status}" + (f": {said}" if said else ""),
            permanent=400 <= self.status < 500,
        )

    def _is_page(self) -> bool:
        return not self._own_words() and is_page(self.headers, self.body)

    def _page(self) -> str:
        return title_of(self.body) or " without a title" if self._is_page() else ""

    def _between(self) -> SourceError:
        title = title_of(self.body)
        if self.status == 404:
            return SourceError(
                f"{self.name}: {self.host} answered 404 with an HTML page{title}: it is not a model "
                "hub; check the endpoint, and any proxy or WAF in between"
            )
        sign_in = " and requires a login" if self.status == 401 else ""
        return SourceError(
            f"{self.name}: {self.host} answered {self.status} with an HTML page{title}{sign_in}: a "
            "proxy or WAF in between refuses, not the hub; allow this host to reach it, set "
            "HTTPS_PROXY, or use another source"
        )

    def _own_words(self) -> bool:
        """Return whether the answer is in a hub's own format: an error code, or a JSON object."""
        if any(name.lower().startswith("x-error-") for name in self.headers):
            return True
        try:
            return isinstance(read_json(self.body), dict)
        except ValueError:
            return False

    def message(self) -> str:
        """Return the hub's own message, "" if there is none."""
        with contextlib.suppress(ValueError, TypeError, KeyError, IndexError, AttributeError):
            raw = read_json(self.body)
            if "errors" in raw:  # Artifactory's format
                raw = raw["errors"][0]
            for key in ("error", "Message", "message"):
                if isinstance(raw.get(key), str):
                    return one_line(raw[key], 200)
        return one_line(self.headers.get("X-Error-Message", ""), 200)

    def _gated(self) -> SourceError:
        return SourceError(
            f"{self.name} is gated, or the token may not read it: accept its licence there and give the "
            "pull a token (model_weights_token_files)",
            permanent=True,
        )

    def _denied(self, code: str) -> SourceError:
        if self.status == 403 and self.elsewhere:
            # An expired signed address, or a clock that makes it look so: the hub signs a new one.
            return SourceError(f"{self.name}: {self.host} answered 403")
        if self.status == 403 and not self._own_words():
            return SourceError(
                f"{self.name}: {self.host} answered 403, but not in a hub's format: a proxy or WAF "
                "in between may refuse; allow this host to reach it, or use another source"
            )
        if self.status == 403:
            said = self.message()
            if _POLICY.search(said):
                return SourceError(
                    f"{self.name}: {self.host} refuses it by its own policy ({said}): ask the "
                    "administrator of that repository manager to allow it, or use another source",
                    permanent=True,
                )
            gated = self._gated()
            return SourceError(f"{gated}" + (f" (it says: {said})" if said else ""), permanent=True)
        said = "does not accept the token" if self.token else "does not exist or needs a token"
        return SourceError(f"{self.name} {said}", permanent=True)

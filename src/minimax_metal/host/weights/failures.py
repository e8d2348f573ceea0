"""Exceptions of the HTTP library as one line; and encoded bodies."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping

import requests
import urllib3

from minimax_metal.host.weights.answers import Refusal
from minimax_metal.host.weights.errors import SourceError, causes, one_line, system_reason, transport_error


def failure(name: str, stall: float, error: BaseException) -> SourceError:
    """Return the meaning of an exception of the HTTP library."""
    text = one_line(error)
    if isinstance(error, requests.exceptions.Timeout | urllib3.exceptions.TimeoutError) or any(
        isinstance(cause, TimeoutError | urllib3.exceptions.ReadTimeoutError) for cause in causes(error)
    ):
        return SourceError(f"{name}: no data for {stall:g} s")
    if "certificate" in text.lower():
        when = "the host's clock, " if re.search(r"not yet valid|expired", text) else ""
        return SourceError(
            f"{name}: its certificate is rejected ({certificate_reason(text)}); check {when}the "
            "proxy and the host's CA certificates",
            permanent=True,
        )
    if isinstance(error, requests.exceptions.ProxyError):
        if "407" in text:
            return Refusal(name, 407, {}, b"", "").error()
        return SourceError(f"{name}: the proxy can't connect ({system_reason(error) or text})")
    if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
        return SourceError(f"{name}: {text}", permanent=True)
    return transport_error(name, error)


def decoded(name: str, headers: Mapping[str, str], content: bytes, limit: int) -> bytes:
    """Return a description decompressed; proxies compress without being asked.

    Raises:
        SourceError: it is compressed in another way, or much too long.
    """
    encoding = headers.get("Content-Encoding", "").strip().lower()
    if encoding in {"", "identity"} or not content:
        return content
    try:
        if encoding not in {"gzip", "x-gzip", "deflate"}:
            raise ValueError(encoding)
        # 32: a header of gzip or of zlib, either one.
        found = zlib.decompressobj(32 + zlib.MAX_WBITS).decompress(content, limit + 1)
        if len(found) > limit:
            raise ValueError("too long")
    except (zlib.error, ValueError) as error:
        raise SourceError(
            f"{name} sends its answer as {one_line(ValueError(encoding))}, which can't be read here; "
            "the proxy or cache that compresses it must pass it on unchanged"
        ) from error
    return found


def certificate_reason(text: str) -> str:
    """Return the part of an SSL error that people can act on."""
    found = re.search(r"certificate verify failed: ([^(\]]+)", text)
    return found[1].strip() if found else "not trusted"

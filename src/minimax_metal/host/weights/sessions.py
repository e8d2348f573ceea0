"""A session of HTTP requests without ``~/.netrc``, cookies or automatic redirects."""

from __future__ import annotations

from collections.abc import Generator
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests

from minimax_metal import __version__
from minimax_metal.host.weights.connections import Adapter


class Bearer(requests.auth.AuthBase):
    """The token, or none: either way ``~/.netrc`` is not read."""

    def __init__(self, token: str | None) -> None:
        self.token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the token to a request, and nothing else."""
        request.headers.pop("Authorization", None)
        if self.token:
            request.headers["Authorization"] = f"Bearer {self.token}"
        return request


class _Session(requests.Session):
    """Never follows a redirect, nor prepares to: that would read the redirect's body without a limit."""

    def resolve_redirects(self, *_: Any, **__: Any) -> Generator[requests.Response, None, None]:
        """Yield nothing."""
        yield from ()


def new() -> requests.Session:
    """Return a session."""
    session = _Session()
    session.headers["User-Agent"] = f"minimax-metal/{__version__}"
    # Bytes as they are on the hub: a compressed answer has other offsets and another length.
    session.headers["Accept-Encoding"] = "identity"
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    for scheme in ("http://", "https://"):
        session.mount(scheme, Adapter())
    return session

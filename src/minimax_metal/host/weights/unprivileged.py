"""Ask hubs and other servers for descriptions of models, never as root.

A server's answer passes through a TLS library, an HTTP library and parsers of JSON and HTML. An attacker who
exploits one of them gets the rights of the process. If root starts a command that asks, an unprivileged child
does it (``nobody``, no groups), and its output is parsed like any other foreign text.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import pwd
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any, Final

import certifi

from minimax_metal.common.apart import within
from minimax_metal.common.errors import UserError
from minimax_metal.common.text import one_line
from minimax_metal.host.weights.errors import SourceError
from minimax_metal.host.weights.listings import Listing
from minimax_metal.host.weights.manifest import entries
from minimax_metal.host.weights.request import DIRECTORY, HUBS, Source, is_commit
from minimax_metal.host.weights.sources import DEFAULT_BRANCHES, Origin, open_source

SECONDS: Final = 900.0
"""Time limit for a source asked in a child; each of its answers has its own."""
_ENCODINGS: Final = ("ascii", "idna", "latin-1", "punycode", "utf-8", "utf-8-sig")
"""Python loads these on first use, which is too late in a child that can't read Python."""
_CERTIFICATES: Final = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def list_of(source: Source, stall: float = 60.0) -> Listing:
    """Return the files of a source. This process itself reads a directory on this host.

    Raises:
        SourceError: it does not answer.
        UserError: its token can't be read, or its list is impossible for a model.
    """
    # The token is read here: it may be root's.
    origin = open_source(source, stall)
    if source.kind == DIRECTORY or os.geteuid() != 0:
        return origin.list()
    raw = as_nobody(str(source), _listed, origin)
    try:
        revision = raw["revision"]
        if not isinstance(revision, str | None):
            raise TypeError("its revision is not text")
        return Listing(entries(raw["files"]), revision)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(
            f"{source}: found an answer that can't be read ({one_line(str(error), 200)})"
        ) from error


def resolve(source: Source) -> Source:
    """Return the source at a commit instead of a branch; unchanged if it has no commits.

    Raises:
        SourceError: it does not answer, or has no such branch.
    """
    if is_commit(source.revision) or source.kind not in HUBS:
        return source
    branch = source.revision or DEFAULT_BRANCHES[source.kind]
    return replace(source, revision=list_of(source).revision, branch=branch)


def _listed(origin: Origin) -> dict[str, Any]:
    found = origin.list()
    return {"files": [asdict(entry) for entry in found.files], "revision": found.revision}


def as_nobody(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function that asks a server, as ``nobody`` if this process is root's; return its plain data.

    Args:
        name: the server's name in errors.
        function: returns plain data; everything that it needs of this program is loaded.
        arguments: its arguments.

    Raises:
        SourceError, UserError: as the function does.
    """
    if os.geteuid() != 0:
        return function(*arguments)
    for encoding in _ENCODINGS:
        codecs.lookup(encoding)
    with _certificates() as certificates:
        answer, problem = within(SECONDS, _told, function, arguments, certificates, user=_nobody())
    if problem is not None:
        raise SourceError(f"{name}: {problem}")
    if not isinstance(answer, Mapping) or not ("answer" in answer or isinstance(answer.get("error"), str)):
        raise SourceError(f"{name}: found an answer that can't be read")
    if "answer" in answer:
        return answer["answer"]
    if answer.get("user") is True:
        raise UserError(one_line(answer["error"], 4_000))
    after, status = answer.get("after"), answer.get("status")
    error = SourceError(
        answer["error"],
        permanent=answer.get("permanent") is True,
        busy=answer.get("busy") is True,
        after=float(after) if isinstance(after, int | float) and 0 <= after < 1e6 else None,
    )
    error.status = status if isinstance(status, int) else None
    error.code = one_line(str(answer.get("code") or ""), 60)
    raise error


def _told(
    function: Callable[..., Any], arguments: tuple[Any, ...], certificates: str | None
) -> dict[str, Any]:
    """Return a function's result, or its error; in the child."""
    if certificates is not None:
        os.environ[_CERTIFICATES[0]] = certificates
    try:
        return {"answer": function(*arguments)}
    except SourceError as error:
        about = {name: getattr(error, name) for name in ("permanent", "busy", "after", "status", "code")}
        return {"error": str(error), **about}
    except UserError as error:
        return {"error": str(error), "user": True}


@contextlib.contextmanager
def _certificates() -> Iterator[str | None]:
    """Yield where an unprivileged child can read the CA certificates; None for the default place.

    They may be below a directory that only root can enter, such as root's own home: an open file is read by
    its descriptor.
    """
    path = next((found for name in _CERTIFICATES if (found := os.environ.get(name))), None) or certifi.where()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        yield f"/proc/self/fd/{descriptor}" if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    finally:
        os.close(descriptor)


def _nobody() -> tuple[int, int]:
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return 65534, 65534
    return (entry.pw_uid, entry.pw_gid) if entry.pw_uid else (65534, 65534)

"""Errors between a source and the disk, as one line each. Standard library only.

Text from a source ends up in these lines, and they end up on terminals: control characters are removed.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from typing import Final

from minimax_metal.common.text import one_line as _clean

_LONGEST: Final = 4_000


class SourceError(Exception):
    """A source could not serve; the text is one line.

    ``permanent``: a retry will not help. ``space``: the disk is full, no other source will help either.
    ``busy``: the source asked to wait; ``after``: for how many seconds, if given.
    """

    def __init__(
        self,
        message: str,
        *,
        permanent: bool = False,
        space: bool = False,
        busy: bool = False,
        after: float | None = None,
    ) -> None:
        super().__init__(_clean(message, _LONGEST))
        self.permanent = permanent
        self.space = space
        self.busy = busy
        self.after = after
        self.status: int | None = None
        """Its HTTP status, and the hub's own error code (Hugging Face: X-Error-Code)."""
        self.code = ""


def transport_error(name: object, error: BaseException) -> SourceError:
    """Return the meaning of a failed read or write: a full disk, a forbidden path, or worth a retry."""
    number = getattr(error, "errno", None)
    if number in {errno.ENOSPC, errno.EDQUOT}:
        return SourceError("the disk is full", permanent=True, space=True)
    if number in {errno.EACCES, errno.EROFS, errno.EPERM}:
        return SourceError(f"{name}: {one_line(error)}; check owner and mount of the paths", permanent=True)
    return SourceError(f"{name}: {system_reason(error) or one_line(error)}")


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and its causes: HTTP libraries keep the root in several places."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        found = waiting.pop(0)
        if not isinstance(found, BaseException) or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        waiting += [found.__cause__, found.__context__, getattr(found, "reason", None), *found.args[:2]]


def system_reason(error: BaseException) -> str | None:
    """Return the operating system's error at the root of an exception, e.g. ``Connection refused``."""
    for found in causes(error):
        if isinstance(found, OSError) and found.errno is not None and found.strerror:
            return os.strerror(found.errno) if found.errno in errno.errorcode else found.strerror
    return None


def one_line(error: BaseException) -> str:
    """Return an exception as one short line, without the query part of URLs (which contains signatures)."""
    text = _clean(str(error)) or type(error).__name__
    text = re.sub(r"(https?://[^\s?'\")]+)\?[^\s'\")]*", r"\1", text)
    text = re.sub(r"(url: /[^\s?)]*)\?[^\s)]*", r"\1", text)
    text = re.sub(r"(https?://)[^/@\s]+@", r"\1", text)
    return text if len(text) <= 200 else text[:199] + "…"

"""Outcomes of a check other than passed, and their text in the report."""

from __future__ import annotations

from typing import Final

JOURNAL: Final = "journalctl -u 'sglang@*' -n 100 on the host"
UNIT: Final = "systemctl cat 'sglang@*' on the host"


class UnreachableError(Exception):
    """Nothing answers at the URL; the text is one line."""


class FailedError(Exception):
    """A check's result differs from the expected one."""

    def __init__(self, expected: str, got: str, look: str = JOURNAL) -> None:
        super().__init__(f"expected {expected}, got {got}")
        self.expected = expected
        self.got = got
        self.look = look


class SkippedError(Exception):
    """A check does not apply; the text is the reason."""


class LimitedError(Exception):
    """A component in use is known not to do what the check tests: not a failure, but reported."""

    def __init__(self, detail: str, setting: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.setting = setting
        """How to avoid it: a flag, or a component to put in front."""

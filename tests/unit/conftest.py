"""Fixtures for all unit tests."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date

import pytest

from minimax_metal.plan.driver import life as driver_life

TODAY = date(2026, 11, 29)


@pytest.fixture(scope="session", autouse=True)
def one_day() -> Iterator[None]:
    """Plans are made for one fixed day: driver branches end, and tests must not fail then."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver_life, "today", lambda: TODAY)
        yield

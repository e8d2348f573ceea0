"""Shared fixtures of the contract tests: a real engine with a tiny model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.models.description import MODELS
from tests.support.real_engine import Engine, running_engine


@pytest.fixture(scope="session", params=list(MODELS))
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Serve a tiny model at tp 1; pytest groups the tests by it, so each starts once."""
    with running_engine(tmp_path_factory.mktemp("engine"), request.param) as started:
        yield started

"""What contract tests share: a real engine on a tiny model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.real_engine import Engine, running_engine


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Engine]]:
    """Return a function that gives the running engine of a model at tp 1; one engine runs at a time."""
    current: list[tuple[str, Any, Engine]] = []

    def stop() -> None:
        for _, manager, _ in current:
            manager.__exit__(None, None, None)
        current.clear()

    def get(name: str) -> Engine:
        if not (current and current[0][0] == name):
            stop()
            manager = running_engine(tmp_path_factory.mktemp("engine"), name)
            current.append((name, manager, manager.__enter__()))
        return current[0][2]

    yield get
    stop()

"""Fifty rounds of a pull with network, hub and host faults at random moments (support/weights_faults.py).

``METAL_FAULT_SEED`` repeats a run, ``METAL_FAULT_ROUNDS`` makes it shorter.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub import Hub, model, running
from tests.support.weights_faults import play

ROUNDS = int(os.environ.get("METAL_FAULT_ROUNDS", "50"))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running(tmp_path_factory.mktemp("hub"), model(shards=5, size=2_500_000)) as found:
        yield found


@pytest.fixture(scope="module")
def seed() -> int:
    return int(os.environ.get("METAL_FAULT_SEED") or random.SystemRandom().randrange(10**6))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(ROUNDS))
def test_round(number: int, seed: int, hub: Hub, tmp_path: Path) -> None:
    print(f"METAL_FAULT_SEED={seed}")
    print(play(number, seed + number, hub, tmp_path))

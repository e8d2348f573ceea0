"""The space for an engine environment, alone on its disk and together with the weights."""

from __future__ import annotations

import pytest

from minimax_metal.plan import Settings, plan
from tests.unit.plan_helpers import facts

GB = 10**9


def warned(weights: tuple[int, int], engine: tuple[int, int], **more: object) -> list[str]:
    """Return the warnings about the engine's disk; each disk is its free gigabytes and its device."""
    disks = {
        path: {"free_bytes": free * GB, "total_bytes": 4000 * GB, "device": device}
        for path, (free, device) in (("/srv/models", weights), ("/opt/sglang", engine))
    }
    settings = Settings.from_variables("gpu01", {"metal_model": "M2.5", **more})
    result = plan(settings, facts("H20", 4, disks=disks))
    assert result.fits
    return [warning.message for warning in result.warnings if warning.code == "disk-engine"]


@pytest.mark.parametrize(
    ("weights", "engine", "said"),
    [
        ((240, 1), (240, 2), False),
        ((240, 1), (11, 2), True),
        ((240, 1), (240, 1), True),
        ((260, 1), (260, 1), False),
    ],
)
def test_weights_on_the_same_disk_leave_less_for_the_engine(
    weights: tuple[int, int], engine: tuple[int, int], said: bool
) -> None:
    assert bool(warned(weights, engine)) is said


def test_the_warning_names_both() -> None:
    (text,) = warned((240, 1), (240, 1))
    assert text.startswith("240.0 GB free at /opt/sglang, of which the weights on the same disk need 23")
    assert text.endswith("; a new engine environment needs 12 GB")


def test_weights_that_are_linked_take_nothing() -> None:
    assert warned((240, 1), (240, 1), metal_weights_adopt=["/mnt/a"]) == []

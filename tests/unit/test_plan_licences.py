"""Licences per checkpoint: their restrictions are part of the plan."""

from __future__ import annotations

import pytest

from minimax_metal.catalog import load_catalog, packaged_catalog
from tests.unit.plan_helpers import decide, warned

CATALOG = packaged_catalog()


@pytest.mark.parametrize("name", sorted({one.licence for m in CATALOG.models.values() for one in m.values()}))
def test_every_checkpoints_licence_is_described(name: str) -> None:
    assert CATALOG.licences[name].title
    assert len(CATALOG.licences[name].source) > 10


@pytest.mark.parametrize(
    ("model", "form", "gpu", "said"),
    [
        # aboutcode-org/scancode-toolkit issue 4919: MiniMax-AI/MiniMax-M2.7 LICENSE
        ("M2.7", "fp8", "H200", "NON-COMMERCIAL"),
        ("M2.7", "nvfp4", "B200", "evaluation only, no production"),
        ("M2.5", "nvfp4", "B200", "NVIDIA Open Model License"),
        ("M3", "bf16", "H200", "20 million US dollars"),
        ("M3", "mxfp8", "B200", "MiniMax Community License"),
        ("M3.1", "nvfp4", "H20", "MiniMax Community License"),
    ],
)
def test_a_licence_that_restricts_use_is_said_with_its_source(
    model: str, form: str, gpu: str, said: str
) -> None:
    result = decide(gpu, 8, model=model, model_format=form)
    (message,) = [one.message for one in result.warnings if one.code == "licence"]
    assert said in message
    assert "2026" in message
    assert result.model is not None
    assert result.model.repositories["huggingface"] in message


@pytest.mark.parametrize("model", ["M2", "M2.1", "M2.5"])
def test_a_licence_that_restricts_nothing_is_not(model: str) -> None:
    assert "licence" not in warned(decide("H200", 8, model=model))


def test_an_overlays_licence_is_said_and_an_unknown_one_is_only_named() -> None:
    own = {"own": {"title": "Our terms", "restricts": "our hosts only", "source": "a contract"}}
    models = {"MiniMax-M2.5": {"licence": "own"}}
    described = decide("H200", 8, model="M2.5", catalog=load_catalog([{"models": models, "licences": own}]))
    assert any("our hosts only" in one.message for one in described.warnings)
    unknown = decide("H200", 8, model="M2.5", catalog=load_catalog([{"models": models}]))
    assert unknown.model is not None
    assert unknown.model.licence == "own"
    assert "licence" not in warned(unknown)

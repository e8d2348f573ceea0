"""The tiny models as published: files, catalogue overlay, the plug-in's wheel."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from lab.engine import build_wheel
from lab.hub import Store
from lab.models import publish
from lab.models.description import MODELS
from minimax_metal.catalog import load_catalog, read_overlay
from minimax_metal.plan.kv_cache import bytes_per_token

NAMES = list(MODELS)


def test_wheel_is_the_same_bytes_wherever_it_is_built(tmp_path: Path) -> None:
    first, second = build_wheel(tmp_path / "a"), build_wheel(tmp_path / "b")
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    before = first.stat().st_mtime_ns
    assert build_wheel(tmp_path / "a").stat().st_mtime_ns == before
    assert [path.name for path in (tmp_path / "a").iterdir()] == [first.name]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    publish(NAMES, root / "hub", root / "overlay.yml")
    return root


@pytest.mark.engine
@pytest.mark.timeout(900)
class TestPublished:
    def test_again_changes_nothing(self, published: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in published.rglob("*")}
        publish(NAMES, published / "hub", published / "overlay.yml")
        assert {path: path.stat().st_mtime_ns for path in published.rglob("*")} == before

    @pytest.mark.parametrize("name", NAMES)
    def test_overlay_gives_the_plan_the_tiny_models_figures(self, published: Path, name: str) -> None:
        catalogue = load_catalog([read_overlay(published / "overlay.yml")])
        (checkpoint,) = catalogue.models[name].values()
        assert checkpoint.format == "bf16"
        store = Store(published / "hub")
        for site in ("huggingface", "modelscope"):
            snapshot = store.snapshot(site, checkpoint.repositories[site], checkpoint.revision or "")
            assert sum(file.size for file in snapshot.files.values()) == checkpoint.bytes.value
            assert len(snapshot.files) == checkpoint.files.value
        config = json.loads(store.object(snapshot.files["config.json"].sha256).read_text())
        text = config.get("text_config", config)
        assert checkpoint.architectures[0] == config["architectures"][0]
        assert checkpoint.layers.value == text["num_hidden_layers"]
        assert checkpoint.kv_heads.value == text["num_key_value_heads"]
        assert checkpoint.experts.value == text["num_local_experts"]
        assert checkpoint.max_sequence.value == text["max_position_embeddings"]
        sparse = text.get("sparse_attention_config", {})
        layers = sum(sparse.get("sparse_attention_freq", []))
        assert (checkpoint.sparse_layers.value if checkpoint.sparse_layers else 0) == layers
        assert bytes_per_token(checkpoint, 1, "auto", "9.0") == 2 * (
            2 * text["num_hidden_layers"] * text["num_key_value_heads"] * text["head_dim"]
            + layers * sparse.get("sparse_index_dim", 0)
        )

    @pytest.mark.parametrize("name", NAMES)
    def test_shards_are_what_the_index_says(self, published: Path, name: str) -> None:
        store = Store(published / "hub")
        snapshot = store.snapshot("huggingface", f"MiniMaxAI/{name}", "main")
        index = json.loads(store.object(snapshot.files["model.safetensors.index.json"].sha256).read_text())
        shards = {path for path in snapshot.files if path.endswith(".safetensors")}
        assert set(index["weight_map"].values()) == shards
        assert len(shards) >= 4
        for file in snapshot.files.values():
            assert hashlib.sha256(store.object(file.sha256).read_bytes()).hexdigest() == file.sha256

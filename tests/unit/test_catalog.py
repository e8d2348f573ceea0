"""The catalogue's files: complete, with sources, consistent with each other, open to overlays."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from minimax_metal.catalog import Catalog, Figure, load_catalog, merge, packaged_catalog
from minimax_metal.catalog.load import FILES, HERE
from minimax_metal.common.errors import UserError

CATALOG = packaged_catalog()


def figures(entry: Any, path: str = "") -> Iterator[tuple[str, Figure]]:
    for name in (one.name for one in fields(entry)):
        value = getattr(entry, name)
        if isinstance(value, Figure):
            yield f"{path}.{name}", value


def checkpoints(catalog: Catalog = CATALOG) -> list[Any]:
    return [one for formats in catalog.models.values() for one in formats.values()]


def test_every_figure_has_a_source_and_a_confidence_of_ours() -> None:
    entries = [(f"{one.name}.{one.format}", one) for one in checkpoints()]
    entries += [(name, gpu) for name, gpu in CATALOG.gpus.items()]
    count = 0
    for name, entry in entries:
        for path, figure in figures(entry, name):
            count += 1
            assert figure.confidence in "VMRC", path
            assert len(figure.source) > 10, path
    assert count > 100


def test_the_models_of_the_guides_are_there() -> None:
    assert {"MiniMax-M2", "MiniMax-M2.1", "MiniMax-M2.5", "MiniMax-M2.7", "MiniMax-M3"} <= set(CATALOG.models)
    assert {"bf16", "mxfp8", "nvfp4"} <= set(CATALOG.models["MiniMax-M3"])


@pytest.mark.parametrize("one", checkpoints(), ids=lambda one: f"{one.name}-{one.format}")
def test_a_checkpoint_agrees_with_itself(one: Any) -> None:
    assert one.repositories["huggingface"].count("/") == 1
    assert one.revision is None or re.fullmatch(r"[0-9a-f]{40}", one.revision)
    assert one.revision is None or one.revision_source
    assert one.bytes.value > 10**11
    # Weights in memory are about what the files hold.
    assert 0.9 < one.weight_memory_bytes.value / one.bytes.value < 1.1
    assert one.minimum_engine in CATALOG.engines
    assert one.generations.proven or one.generations.unproven
    if one.moe_block:
        # The spread of the guides is one the shape allows.
        for spread in one.parallelism.values():
            assert one.moe_intermediate.value * spread.ep // spread.tp % one.moe_block.value == 0


def test_every_model_has_the_shape_that_its_kv_cache_is_computed_from() -> None:
    for formats in CATALOG.models.values():
        for one in formats.values():
            assert one.head_dim is not None
            assert (one.sparse_layers is None) == (one.index_dim is None)
            if one.sparse_layers is not None:
                assert one.sparse_layers.value <= one.layers.value


def test_engines_know_their_cuda_and_their_locks_exist() -> None:
    assert {"0.5.4.post1", "0.5.10.post1", "0.5.16", "0.5.23"} <= set(CATALOG.engines)
    for release in CATALOG.engines.values():
        assert release.cuda in CATALOG.cuda
        for python, lock in release.locks.items():
            assert python in release.python
            assert re.fullmatch(r"[0-9a-f]{64}", CATALOG.lock_sha256[lock])
            text = (HERE / "locks" / lock).read_text()
            assert f"sglang=={release.release}" in text
            assert ("\nflashinfer-cubin==" in text) == release.flashinfer_cubins
    assert CATALOG.engines[CATALOG.default_engine].locks


def test_the_default_engine_is_the_newest() -> None:
    from minimax_metal.plan.versions import version_key

    assert CATALOG.default_engine == max(CATALOG.engines, key=version_key)


def test_parsers_of_every_model_exist_in_the_default_engine() -> None:
    engine = CATALOG.engines[CATALOG.default_engine]
    for one in checkpoints():
        assert one.parsers.tool in engine.tool_parsers
        assert one.parsers.reasoning in engine.reasoning_parsers
        assert set(one.architectures) <= set(engine.architectures)


NAMES = {
    "NVIDIA H20": "H20",
    "NVIDIA H20-3e": "H20-3e",
    "NVIDIA H200": "H200",
    "NVIDIA H200 NVL": "H200-NVL",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H100 PCIe": "H100-PCIe",
    "NVIDIA A100-SXM4-80GB": "A100-80GB",
    "NVIDIA A100-SXM4-40GB": "A100-40GB",
    "NVIDIA L40S": "L40S",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTX-PRO-6000",
    "NVIDIA B300 SXM6 AC": "B300",
    "NVIDIA GB200": "GB200",
    "NVIDIA GB300": "GB300",
}


def test_each_name_that_nvidia_smi_prints_is_one_gpu() -> None:
    for printed, name in NAMES.items():
        matches = [gpu.name for gpu in CATALOG.gpus.values() if re.fullmatch(gpu.smi_pattern, printed)]
        assert matches == [name]
    assert set(NAMES.values()) <= set(CATALOG.gpus)


def test_no_two_gpus_share_a_name_and_a_pci_id_only_where_memory_tells_them_apart() -> None:
    ids = [device for gpu in CATALOG.gpus.values() for device in gpu.pci_ids]
    for device in {one for one in ids if ids.count(one) > 1}:
        sizes = [gpu.memory_bytes for gpu in CATALOG.gpus.values() if device in gpu.pci_ids]
        known = sorted(one.value for one in sizes if one)
        assert len(known) == len(sizes)
        assert all(more > 1.2 * less for less, more in pairwise(known))
    assert all(re.fullmatch(r"0x[0-9a-f]{4}", device) for device in ids)
    names = [one.casefold() for gpu in CATALOG.gpus.values() for one in {gpu.name, *gpu.aliases}]
    assert len(names) == len(set(names))


def test_blackwell_and_grace_want_open_kernel_modules() -> None:
    for gpu in CATALOG.gpus.values():
        blackwell = int(gpu.compute_capability.split(".")[0]) >= 10
        assert (gpu.open_modules == "required") == (blackwell or gpu.name.startswith("GH200"))


def test_platforms_can_run_the_default_engine() -> None:
    engine = CATALOG.engines[CATALOG.default_engine]
    assert {"debian12", "debian13", "ubuntu2204", "ubuntu2404"} == set(CATALOG.platforms)
    major = engine.cuda.split(".")[0]
    for platform in CATALOG.platforms.values():
        assert any(platform.slug in branch.platforms for branch in CATALOG.drivers.values())
        assert any(one.split(".")[0] == major and one in CATALOG.cuda for one in platform.toolkits)


PUBLIC = {
    *("huggingface.co", "hf-mirror.com", "www.modelscope.cn", "github.com", "registry.npmmirror.com"),
    *("pypi.tuna.tsinghua.edu.cn", "mirrors.tuna.tsinghua.edu.cn"),
    *("developer.download.nvidia.com", "developer.download.nvidia.cn"),
}


def test_files_name_no_host_but_the_public_sources() -> None:
    for name in FILES:
        for url in re.findall(r"https?://[^\s\"']+", (HERE / name).read_text()):
            assert url.split("/")[2] in PUBLIC, url


def test_merge_adds_replaces_and_takes_out() -> None:
    base = {"a": {"x": 1, "y": 2}, "b": 3, "figure": {"value": 1, "confidence": "V", "source": "a wheel"}}
    over = {"a": {"y": None, "z": 4}, "c": 5, "figure": {"value": 2}}
    assert merge(base, over) == {"a": {"x": 1, "z": 4}, "b": 3, "c": 5, "figure": {"value": 2}}
    assert base["a"] == {"x": 1, "y": 2}


def test_an_overlay_figure_is_the_users_own() -> None:
    catalog = load_catalog([{"gpus": {"H20": {"memory_bytes": 10**11}}}])
    memory = catalog.gpus["H20"].memory_bytes
    assert memory is not None
    assert memory.confidence == "U"
    assert catalog.gpus["H20"].smi_pattern == "NVIDIA H20"


def test_an_overlay_adds_a_gpu_and_a_model() -> None:
    gpu = {
        "smi_pattern": "NVIDIA X1",
        "memory_bytes": 2 * 10**11,
        "compute_capability": "9.0",
        "capability_source": "its data sheet",
        "nvlink": "none",
        "open_modules": "supported",
    }
    model = {
        "family": "minimax-m2",
        "formats": {
            "fp8": {
                "repositories": {"huggingface": "Org/MiniMax-M2.9"},
                "bytes": 1,
                "files": 1,
                "weight_memory_bytes": 1,
                "generations": {"proven": ["9.0"]},
            }
        },
    }
    catalog = load_catalog([{"gpus": {"X1": gpu}, "models": {"MiniMax-M2.9": model}}])
    assert catalog.models["MiniMax-M2.9"]["fp8"].layers.value == 62
    assert catalog.gpus["X1"].pci_ids == {}


@pytest.mark.parametrize(
    ("overlay", "words"),
    [
        ({"gpus": {"H20": {"memory": 1}}}, "gpus.H20.memory"),
        ({"models": {"MiniMax-M2.5": {"family": "minimax-m9"}}}, "minimax-m9"),
        ({"models": {"New": {"family": "minimax-m2"}}}, "no formats"),
        ({"models": {"MiniMax-M2.5": {"formats": {"fp8": {"bytes": "many"}}}}}, "bytes"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_a_wrong_overlay_is_one_line_with_the_place(overlay: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_catalog([overlay])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_overlay_brings_an_engines_lock_of_its_own(tmp_path: Path) -> None:
    lock = tmp_path / "own.txt"
    lock.write_text("sglang==0.5.23\n")
    catalog = load_catalog([{"engines": {"0.5.23": {"locks": {"3.12": str(lock)}}}}])
    assert catalog.engines["0.5.23"].locks["3.12"] == str(lock)
    assert catalog.lock_sha256[str(lock)] == hashlib.sha256(lock.read_bytes()).hexdigest()
    lock.unlink()
    with pytest.raises(UserError, match="names the lock"):
        load_catalog([{"engines": {"0.5.23": {"locks": {"3.12": str(lock)}}}}])


def test_files_are_plain_yaml() -> None:
    for name in FILES:
        assert isinstance(yaml.safe_load((HERE / name).read_text()), dict)
    assert Path(HERE / "locks").is_dir()


def test_a_model_has_one_name_for_clients_in_every_format() -> None:
    """Replicas on GPUs of several generations are one pool behind a gateway."""
    for name, formats in packaged_catalog().models.items():
        assert {checkpoint.published_name for checkpoint in formats.values()} == {f"MiniMaxAI/{name}"}
    m3 = packaged_catalog().models["MiniMax-M3"]
    assert m3["mxfp8"].repositories["huggingface"] == "MiniMaxAI/MiniMax-M3-MXFP8"
    own = {"models": {"MiniMax-M3": {"served_name": "ours", "formats": {"nvfp4": {"served_name": "theirs"}}}}}
    changed = load_catalog([own]).models["MiniMax-M3"]
    assert {form: one.published_name for form, one in changed.items()} == {
        "bf16": "ours",
        "mxfp8": "ours",
        "nvfp4": "theirs",
    }


def test_figures_that_were_published_since() -> None:
    m3, m27 = CATALOG.models["MiniMax-M3"], CATALOG.models["MiniMax-M2.7"]["fp8"]
    # GPUStack 2.3.0's catalogue; README.md of MiniMaxAI/MiniMax-M3; config.json of MiniMaxAI/MiniMax-M2.7.
    assert m3["bf16"].repositories["modelscope"] == "MiniMax/MiniMax-M3"
    assert m3["mxfp8"].repositories["modelscope"] == "MiniMax/MiniMax-M3-MXFP8"
    sampling = m3["bf16"].sampling
    assert sampling
    assert sampling.top_k == 40
    assert m27.max_sequence.value == 204800
    assert m27.bytes.value == 230_200_000_000
    m27_nvfp4 = CATALOG.models["MiniMax-M2.7"]["nvfp4"]
    assert m27_nvfp4.max_sequence.value == 196608
    assert {m27.licence, m27_nvfp4.licence} == {"minimax-non-commercial", "nvidia-evaluation"}
    assert round(m27_nvfp4.bytes.value, -9) == 140_000_000_000
    assert CATALOG.models["MiniMax-M2.5"]["nvfp4"].licence == "nvidia-open-model"
    ids = {device for gpu in CATALOG.gpus.values() for device in gpu.pci_ids}
    # pci.ids of 2026-08-22
    assert {"0x20f5", "0x2322", "0x233a", "0x2339", "0x233d", "0x2328", "0x230c", "0x230e", "0x2909"} <= ids
    assert {"0x2bb2", "0x2bbc", "0x2bb9", "0x2bb3", "0x2342", "0x2348"} <= ids

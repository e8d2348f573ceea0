"""Read a release from its wheel, and write it into the catalogue."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from minimax_metal.catalog import packaged_catalog
from minimax_metal.catalog.load import HERE
from minimax_metal.common.errors import UserError
from tools.engine_bump import PYTHONS, Wheel, add_entry, allowed, changes, cuda_of_lock, overrides, read_wheel

ENGINES = (HERE / "engines.yml").read_text()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small unpacked wheel."""
    info = tmp_path / "sglang-9.9.0.dist-info"
    srt = tmp_path / "sglang" / "srt"
    for directory in (info, srt / "function_call", srt / "parser", srt / "models"):
        directory.mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: sglang\nVersion: 9.9.0\nRequires-Python: >=3.12\n"
        "Requires-Dist: torch==3.0.0\nRequires-Dist: torchvision\n"
        "Requires-Dist: flashinfer_cubin==1.0\n\nA text.\n"
    )
    (info / "entry_points.txt").write_text("[console_scripts]\nsglang = sglang.cli.main:main\n")
    (srt / "function_call" / "function_call_parser.py").write_text(
        "class FunctionCallParser:\n    ToolCallParserEnum: Dict[str, Type] = {\n"
        '        "minimax-m2": A,\n        "minimax-m4": B,\n        "other": C,\n    }\n'
    )
    (srt / "parser" / "reasoning_parser.py").write_text(
        'class ReasoningParser:\n    DetectorMap = {\n        "minimax-m4": D,\n    }\n    x = "minimax-no"\n'
    )
    (srt / "models" / "minimax_m4.py").write_text("class MiniMaxM4ForCausalLM(nn.Module):\n    pass\n")
    (tmp_path / "sglang" / "compile_deep_gemm.py").write_text("")
    (srt / "server_args.py").write_text(
        "config ssl_certfile ssl_keyfile model_loader_extra_config\n"
        "model_path served_model_name tp_size ep_size tool_call_parser host port trust_remote_code\n"
        'mem_fraction_static kv_cache_dtype max_running_requests max_queued_requests choices=["auto"] + x\n'
    )
    return tmp_path


def test_a_wheel_is_read(tree: Path) -> None:
    assert read_wheel(tree) == Wheel(
        release="9.9.0",
        requires_python=">=3.12",
        torch="3.0.0",
        entrypoints=("sglang.launch_server", "sglang serve"),
        tool_parsers=("auto", "minimax-m2", "minimax-m4"),
        reasoning_parsers=("auto", "minimax-m4"),
        architectures=("MiniMaxM4ForCausalLM",),
        plugins=False,
        deep_gemm_precompile=True,
        flashinfer_cubins=True,
        missing_flags=(
            "--enable-metrics",
            "--reasoning-parser",
            "--speculative-algorithm",
            "--speculative-draft-model-path",
        ),
    )


def test_what_is_no_wheel_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found no sglang"):
        read_wheel(tmp_path)


def test_an_entry_is_added_and_validates(tree: Path) -> None:
    wheel = read_wheel(tree)
    text = add_entry(ENGINES, wheel, ["3.12", "3.13"], "13.0", ["3.12"])
    new = yaml.safe_load(text)["engines"]["9.9.0"]
    assert new["python"] == ["3.12", "3.13"]
    assert new["locks"] == {"3.12": "sglang-9.9.0-py3.12.txt"}
    assert new["cuda"] == "13.0"
    assert new["flashinfer_cubins"] is True
    assert text.count("\n# ") == ENGINES.count("\n# ")
    again = add_entry(text, wheel, ["3.12", "3.13"], "13.0", ["3.12", "3.13"])
    assert list(yaml.safe_load(again)["engines"]["9.9.0"]["locks"]) == ["3.12", "3.13"]
    assert {k: v for k, v in yaml.safe_load(again)["engines"].items() if k != "9.9.0"} == yaml.safe_load(
        ENGINES
    )["engines"]


def test_changes_are_named(tree: Path) -> None:
    catalog = packaged_catalog()
    lines = changes(catalog.engines[catalog.default_engine], read_wheel(tree), "14.0")
    assert "CUDA: 13.0 -> 14.0" in lines
    assert any(line.startswith("torch: ") for line in lines)
    assert any("--reasoning-parser" in line for line in lines)


@pytest.mark.parametrize(
    ("requires", "expected"),
    [
        (">=3.11", ["3.12", "3.11", "3.13"]),
        (">=3.10,<3.13", ["3.12", "3.11", "3.10"]),
        (">3.0, !=3.9.*", ["3.12", "3.11", "3.13", "3.10"]),
        ("", ["3.12", "3.11", "3.13", "3.10"]),
    ],
)
def test_pythons_follow_the_bounds(requires: str, expected: list[str]) -> None:
    assert allowed(PYTHONS, requires) == expected


def test_cuda_is_what_torch_brings() -> None:
    assert cuda_of_lock("a==1\nnvidia-cuda-runtime==13.0.96 \\\n") == "13.0"
    assert cuda_of_lock("nvidia-cuda-runtime-cu12==12.8.90 \\\n") == "12.8"
    with pytest.raises(UserError):
        cuda_of_lock("torch==2\n")


def test_locks_of_the_catalogue_bring_the_cuda_it_says() -> None:
    for release in packaged_catalog().engines.values():
        for name in release.locks.values():
            assert cuda_of_lock((HERE / "locks" / name).read_text()) == release.cuda


def test_what_a_lock_leaves_out_is_taken_over(tmp_path: Path) -> None:
    assert overrides("0.5.24", "3.13", tmp_path) is None
    for name in ("sglang-0.5.9-py3.13.overrides", "sglang-0.5.23-py3.13.overrides"):
        (tmp_path / name).write_text("x\n")
    assert overrides("0.5.24", "3.13", tmp_path) == tmp_path / "sglang-0.5.23-py3.13.overrides"
    assert overrides("0.5.9", "3.13", tmp_path) == tmp_path / "sglang-0.5.9-py3.13.overrides"
    assert overrides("0.5.24", "3.12", tmp_path) is None

"""The catalogue's audit finds each deliberately wrong value, and refuses bad input in one line."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.catalog import Catalog, load_catalog, packaged_catalog
from minimax_metal.plan.argv import DEFAULT_FLAGS, VARIABLES
from tools.audit.branches import Listed, compare_drivers, read_branches
from tools.audit.checkpoints import compare_config, compare_files, compare_licence, from_hub, on_modelscope
from tools.audit.engine import compare_engine, compare_locks
from tools.audit.lists import compare_pci
from tools.audit.rows import Row
from tools.audit.sources import sources_of
from tools.catalog_audit import main

TODAY = date(2026, 11, 29)
# MiniMaxAI/MiniMax-M2.5, config.json on Hugging Face.
M25: dict[str, Any] = {
    "architectures": ["MiniMaxM2ForCausalLM"],
    "num_hidden_layers": 62,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_local_experts": 256,
    "intermediate_size": 1536,
    "max_position_embeddings": 196608,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}
SIZES = {"model.safetensors": 230_000_000_000} | {f"file{n}": 1 for n in range(179)}
BRANCHES = "R580 LTS June 2028\nR595 production March 2027\nR620 LTS September 2029\n"
"""Table 2 of docs.nvidia.com/datacenter/tesla/drivers, edition 620 of November 2026, with a row for each."""
BRANCH_PAGE = """
<p>R550 and all branches before it are over.</p>
<table class="table" id="id2"><caption>Table 2 CUDA and Drivers</caption>
<thead><tr class="row-odd"><th class="head"></th><th class="head"><p>R580</p></th>
<th class="head"><p>R595</p></th><th class="head"><p>R620</p></th></tr></thead>
<tbody><tr class="row-even"><td><p><strong>Branch Designation</strong></p></td>
<td><p>Long Term Support Branch</p></td><td><p>Production Branch</p></td>
<td><p>Long Term Support Branch</p></td></tr>
<tr class="row-odd"><td><p>End&nbsp;of Life</p></td><td><p>June 2028</p></td><td><p>March 2027</p></td>
<td><p>September 2029</p></td></tr>
<tr><td>Maximum CUDA Major Version Supported</td><td>CUDA 13</td><td>CUDA 13</td><td>CUDA 13</td></tr>
</tbody></table>
<p>Only Long Term Support and Production branches are listed. New Feature Branches are short-lived.</p>
"""
"""The same page as saved, shortened: it has a column for each branch."""
BRANCH_TEXT = """Table 2 CUDA and Drivers#

R580

R595

R620

Branch Designation

Long Term Support Branch

Production Branch

Long Term Support Branch

End of Life

June 2028

March 2027

September 2029

Maximum CUDA Major Version Supported Without Forward Compatibility Package [1]

CUDA 13

CUDA 13

CUDA 13

Only Long Term Support and Production branches are listed. New Feature Branches are short-lived and do not
have an end-of-life date. All others (such as R575, R565, R550) are end of life.
"""
"""The same page as text."""
RELEASES = json.dumps(
    {
        "580": {
            "type": "lts branch",
            "driver_info": [{"release_version": "580.65.06", "release_date": "2025-08-04"}],
        },
        "595": {"type": "production branch", "driver_info": []},
        "620": {"type": "lts branch", "driver_info": []},
    }
)
"""The format of NVIDIA's releases.json, as endoflife.date and others read it: kinds, and no end dates."""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The parts of a wheel that the audit reads, shortened, with values of 0.5.23."""
    engine = packaged_catalog().engines["0.5.23"]
    info, srt = tmp_path / "sglang-0.5.23.dist-info", tmp_path / "sglang" / "srt"
    info.mkdir()
    for name in ("function_call", "parser", "models", "plugins", "layers/quantization"):
        (srt / name).mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: sglang\nVersion: 0.5.23\nRequires-Python: >=3.11\n"
        f"Requires-Dist: torch=={engine.torch}\n\nA text.\n"
    )
    (info / "entry_points.txt").write_text("[console_scripts]\nsglang = sglang.cli.main:main\n")
    for file, table, names in (
        ("function_call/function_call_parser.py", "ToolCallParserEnum", engine.tool_parsers),
        ("parser/reasoning_parser.py", "DetectorMap", engine.reasoning_parsers),
    ):
        rows = "".join(f'        "{name}": A,\n' for name in names if name != "auto")
        (srt / file).write_text(f"class P:\n    {table} = {{\n{rows}    }}\n")
    classes = "".join(f"class {name}(nn.Module):\n    pass\n" for name in engine.architectures)
    (srt / "models" / "minimax.py").write_text(classes + 'get("SGLANG_USE_FUSED_PARALLEL_QKNORM")\n')
    (srt / "plugins" / "__init__.py").write_text("")
    (tmp_path / "sglang" / "compile_deep_gemm.py").write_text("")
    flags = {*DEFAULT_FLAGS, *VARIABLES, "--enable-metrics"} | {
        part.words[0] for recipe in packaged_catalog().recipes.values() for part in recipe.args
    }
    (srt / "server_args.py").write_text('["auto"] + x\n' + "\n".join(sorted(flags)))
    body = "class {}(Q):\n    @classmethod\n    def get_min_capability(cls) -> int:\n        return {}\n"
    rule = "if intermediate_size_per_partition % block_n != 0\n"
    (srt / "layers" / "quantization" / "fp8.py").write_text(body.format("Fp8Config", 80) + rule)
    (srt / "layers" / "quantization" / "modelopt_quant.py").write_text(body.format("ModelOptFp4Config", 100))
    return tmp_path


def _m25(catalog: Catalog) -> Iterator[Row]:
    one = catalog.models["MiniMax-M2.5"]["fp8"]
    yield from compare_config(one, M25, "config.json")
    yield from compare_files(one, SIZES, "files")
    yield compare_licence(one, "modified-mit", "README.md", catalog.licences)


def _wrong(rows: Iterable[Row]) -> set[str]:
    return {f"{row.where}: {row.field}" for row in rows if row.verdict == "differs"}


def _spoil(field: str, value: Any) -> Catalog:
    return load_catalog([{"models": {"MiniMax-M2.5": {"formats": {"fp8": {field: value}}}}}])


def test_a_checkpoints_config_is_compared() -> None:
    rows = list(_m25(packaged_catalog()))
    assert sum(row.verdict == "agrees" for row in rows) >= 10
    assert not _wrong(rows) & {
        f"MiniMax-M2.5 fp8: {name}" for name in ("layers", "kv_heads", "experts", "format")
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architectures", ["MiniMaxM3SparseForCausalLM"]),
        ("layers", 60),
        ("attention_heads", 64),
        ("kv_heads", 4),
        ("experts", 128),
        ("moe_intermediate", 3072),
        ("moe_block", 32),
        ("max_sequence", 204800),
        ("bytes", 236_000_000_000),
        ("weight_memory_bytes", 257_000_000_000),
        ("files", 177),
        ("licence", "apache-2.0"),
    ],
)
def test_each_spoilt_figure_of_a_checkpoint_is_found(field: str, value: Any) -> None:
    assert f"MiniMax-M2.5 fp8: {field}" in _wrong(_m25(_spoil(field, value)))


# MiniMaxAI/MiniMax-M3's text_config in small: three dense layers, index values left out.
M3: dict[str, Any] = {
    "architectures": ["MiniMaxM3SparseForConditionalGeneration"],
    "text_config": {
        "num_hidden_layers": 60,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "sparse_attention_config": {
            "sparse_attention_freq": [0] * 3 + [1] * 57,
            "sparse_disable_index_value": [0] * 3 + [1] * 57,
            "sparse_index_dim": 128,
        },
    },
}


def _m3(name: str, **sparse: Any) -> list[Row]:
    text = M3["text_config"]
    config = {
        **M3,
        "text_config": {**text, "sparse_attention_config": {**text["sparse_attention_config"], **sparse}},
    }
    formats = packaged_catalog().models[name]
    return list(compare_config(formats["bf16" if "bf16" in formats else "nvfp4"], config, "config.json"))


def test_the_cache_of_sparse_attention_is_compared() -> None:
    rows = {row.field: row for row in _m3("MiniMax-M3")}
    assert {rows[field].verdict for field in ("sparse_layers", "index_dim", "KV cache of a token")} == {
        "agrees"
    }
    # 2 * 60 * 4 * 128 * 2 bytes and an index key of 128 numbers in each of 57 layers.
    assert "137472" in rows["KV cache of a token"].line()
    every = {"sparse_attention_freq": [1] * 60, "sparse_disable_index_value": [1] * 60}
    assert not {"MiniMax-M3.1-Flash nvfp4: KV cache of a token"} & _wrong(_m3("MiniMax-M3.1-Flash", **every))


@pytest.mark.parametrize(
    ("sparse", "wrong"),
    [
        ({"sparse_attention_freq": [1] * 60}, {"sparse_layers", "KV cache of a token"}),
        ({"sparse_disable_index_value": None}, {"KV cache of a token"}),
        ({"sparse_index_dim": 64}, {"index_dim", "KV cache of a token"}),
        ({"sparse_attention_freq": 7}, set()),
    ],
)
def test_another_sparse_attention_is_found(sparse: dict[str, Any], wrong: set[str]) -> None:
    known = {"sparse_layers", "index_dim", "KV cache of a token"}
    found = {one.removeprefix("MiniMax-M3 bf16: ") for one in _wrong(_m3("MiniMax-M3", **sparse))}
    assert found & known == wrong


def test_another_quantisation_is_found() -> None:
    one = packaged_catalog().models["MiniMax-M2.5"]["fp8"]
    for found in ({"quant_method": "awq"}, None):
        rows = compare_config(one, {**M25, "quantization_config": found}, "config.json")
        assert "MiniMax-M2.5 fp8: format" in _wrong(rows)


def test_the_engine_of_the_catalogue_agrees_with_its_wheel(tree: Path) -> None:
    assert {
        one for one in _wrong(compare_engine(packaged_catalog(), tree)) if one.startswith("engine")
    } == set()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("python", ["3.12", "3.10"]),
        ("torch", "2.0.0"),
        ("entrypoints", ["sglang.launch_server"]),
        ("tool_parsers", ["auto", "minimax-m2"]),
        ("reasoning_parsers", ["auto", "minimax"]),
        ("architectures", ["MiniMaxM2ForCausalLM"]),
        ("plugins", False),
        ("deep_gemm_precompile", False),
        ("flashinfer_cubins", True),
    ],
)
def test_each_spoilt_figure_of_an_engine_is_found(tree: Path, field: str, value: Any) -> None:
    spoilt = load_catalog([{"engines": {"0.5.23": {field: value}}}])
    assert f"engine 0.5.23: {field}" in _wrong(compare_engine(spoilt, tree))


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("parsers", {"tool": "minimax-m9"}, "parsers.tool"),
        ("parsers", {"reasoning": "minimax-m9"}, "parsers.reasoning"),
        ("guide_parsers", {"tool": "minimax-m9"}, "guide_parsers.tool"),
        ("guide_parsers", {"reasoning": "minimax-m9"}, "guide_parsers.reasoning"),
        ("generations", {"proven": ["7.0"]}, "generations"),
    ],
)
def test_what_a_model_says_of_the_engine_is_checked(tree: Path, field: str, value: Any, found: str) -> None:
    assert f"MiniMax-M2.5 fp8: {found}" in _wrong(compare_engine(_spoil(field, value), tree))


def test_a_recipes_flag_and_variable_that_the_engine_lacks_are_found(tree: Path) -> None:
    part = {"words": ["--make-it-fast"], "source": "nobody"}
    variable = {"name": "SGLANG_MAKE_IT_FAST", "text": "1", "source": "nobody"}
    spoilt = load_catalog([{"recipes": {"m2.7-h200-tp4": {"args": [part], "environment": [variable]}}}])
    wrong = _wrong(compare_engine(spoilt, tree))
    assert {"recipe m2.7-h200-tp4: --make-it-fast", "recipe m2.7-h200-tp4: SGLANG_MAKE_IT_FAST"} <= wrong


def test_locks_agree_and_each_spoilt_figure_of_them_is_found() -> None:
    assert _wrong(compare_locks(packaged_catalog())) == set()
    for field, value in (("torch", "2.0.0"), ("cuda", "12.1")):
        wrong = _wrong(compare_locks(load_catalog([{"engines": {"0.5.16": {field: value}}}])))
        assert f"engine 0.5.16: {field} (Python 3.12)" in wrong


@pytest.mark.parametrize("text", [BRANCHES, BRANCH_PAGE, BRANCH_TEXT], ids=["rows", "page", "text"])
def test_each_spoilt_figure_of_a_driver_branch_is_found(tmp_path: Path, text: str) -> None:
    path = tmp_path / "branches"
    path.write_text(text)

    def wrong(drivers: dict[str, Any], today: date = TODAY) -> set[str]:
        return _wrong(compare_drivers(load_catalog([{"drivers": drivers}]), path, today))

    assert wrong({}) == set()
    assert wrong({"580": {"end": "2028-07-31"}}) == {"driver 580: end"}
    assert wrong({"580": {"end": "2028-06-29"}}) == {"driver 580: end"}  # June means its last day
    assert wrong({"580": {"end": None}}) == {"driver 580: end"}
    assert wrong({"595": {"end": "2028-03-31"}}) == {"driver 595: end"}
    assert wrong({"595": {"kind": "lts"}}) == {"driver 595: kind"}
    assert wrong({"620": {"kind": "new-feature"}}) == {"driver 620: kind"}
    assert wrong({"590": {"listed": True}}) == {"driver 590: listed"}
    assert wrong({"610": {"end": "2027-08-31"}}) == {"driver 610: listed"}
    assert "driver 620: branch" in wrong({"620": None})
    assert wrong({"580": {"listed": False, "end": None}}) == {"driver 580: listed", "driver 580: end"}
    # What hosts get by default: on Debian 12 a branch that is over, because its end is wrong.
    spoilt = wrong({"535": {"end": "2028-06-30"}, "580": {"platforms": {"debian12": None}}})
    assert spoilt == {"driver 535: listed", "platform debian12: default branch"}
    # With the day: nothing is wrong with 595 being over, and hosts get another branch.
    assert wrong({}, date(2027, 5, 1)) == set()


def test_a_branch_that_is_new_is_found(tmp_path: Path) -> None:
    path = tmp_path / "branches"
    path.write_text(BRANCHES + "R700 production January 2031\nR470 LTS July 2024\n")
    assert _wrong(compare_drivers(packaged_catalog(), path, TODAY)) == {"driver 700: branch"}
    path.write_text(RELEASES)
    rows = list(compare_drivers(packaged_catalog(), path, TODAY))
    assert _wrong(rows) == set()
    skipped = {f"{one.where}: {one.field}" for one in rows if one.verdict == "not compared"}
    assert {"driver 580: end", "driver 595: end"} <= skipped
    assert "driver 580: kind" not in skipped


def test_branch_lists_of_other_forms_are_read() -> None:
    wanted = {"580": Listed("lts", "2028-06")}
    assert read_branches('{"580": {"type": "lts branch", "eol": "2028-06-30"}}', "x") == {
        "580": Listed("lts", "2028-06-30")
    }
    assert read_branches('{"R580": "June 2028"}', "x") == {"580": Listed(None, "2028-06")}
    row = "<table><tr>\n<td>R580</td>\n<td>LTS</td><td>June 2028</td>\n</tr></table>"
    assert read_branches(row, "x") == wanted
    column = (
        "<TABLE><TR><TH>R580</TH></TR><TR><TD>Long-Term Support</TD><TR><TD>End of Life<TD>June 2028</TABLE>"
    )
    assert read_branches(column, "x") == wanted
    assert read_branches("R580  LTS  Jun 2028\n", "x") == wanted
    assert read_branches("| R580 | LTS branch | Jun. 30, 2028 |\n", "x") == {
        "580": Listed("lts", "2028-06-30")
    }
    assert read_branches("nothing of the kind", "x") == {}


def test_pci_ids_of_another_gpu_or_of_none_are_found(tmp_path: Path) -> None:
    path = tmp_path / "pci.ids"
    # pciutils/pciids, August 2026: lines of vendor 10de, with another vendor behind it.
    path.write_text(
        "10de  NVIDIA Corporation\n\t2329  GH100 [H20]\n\t2335  GH100 [H200 SXM 141GB]\n\t\t10de 18be  sub\n"
        "10df  Emulex\n\t2330  not NVIDIA's\n"
    )

    def wrong(catalog: Catalog) -> set[str]:
        return {one for one in _wrong(compare_pci(catalog, path)) if one.startswith("GPU H20:")}

    for device in ("0x2335", "0x2330", "0xffff"):
        ids = {**dict.fromkeys(packaged_catalog().gpus["H20"].pci_ids), device: "pci.ids"}
        assert wrong(load_catalog([{"gpus": {"H20": {"pci_ids": ids}}}])) == {f"GPU H20: pci_ids {device}"}


def test_every_figure_without_a_source_is_listed_and_dates_make_ages() -> None:
    files = {"value": 180, "confidence": "R", "source": "repository listing", "read": "2026-11-19"}
    found = {(one.where, one.field): one for one in sources_of(_spoil("files", files), TODAY)}
    assert found["MiniMax-M2.5 fp8", "files"].age_days == 10
    assert not found["MiniMax-M2.5 fp8", "generations"].source
    assert found["MiniMax-M2.5 fp8", "parsers"].source
    assert found["MiniMax-M2.5 fp8", "kv_dtypes"].age_days == 0
    assert found["MiniMax-M2.7 nvfp4", "licence"].source
    assert found["fault m3-msa-speculative", "where"].source
    assert found["MiniMax-M2.5 fp8", "revision"].source
    assert found["recipe m3-h200", "ep"].age_days == 0


class _Hub(BaseHTTPRequestHandler):
    """Both hubs' answers for one repository, in the formats of their public interfaces."""

    def do_GET(self) -> None:
        answers: dict[str, Any] = {
            "/api/v1/models/MiniMax/MiniMax-M2.5": {"Code": 200, "Data": {"Name": "MiniMax-M2.5"}},
            "config.json": M25,
            "blobs=true": {
                "siblings": [{"rfilename": name, "size": size} for name, size in SIZES.items()],
                "cardData": {"license": "other", "license_name": "modified-mit"},
            },
        }
        found = next((body for end, body in answers.items() if self.path.endswith(end)), None)
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(json.dumps(found or {"Code": 404}).encode())

    def log_message(self, *arguments: Any) -> None:
        """Log nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_hubs_are_asked_and_what_is_spoilt_is_found(hub: str) -> None:
    good = packaged_catalog().models["MiniMax-M2.5"]["fp8"]
    rows = list(from_hub(good, hub))
    assert {"layers", "bytes", "files", "licence"} <= {row.field for row in rows}
    bad = _spoil("layers", 61).models["MiniMax-M2.5"]["fp8"]
    assert "MiniMax-M2.5 fp8: layers" in _wrong(from_hub(bad, hub))
    assert on_modelscope(good, hub).verdict == "agrees"
    other = _spoil("repositories", {"modelscope": "MiniMaxAI/MiniMax-M2.5"}).models["MiniMax-M2.5"]["fp8"]
    assert on_modelscope(other, hub).verdict == "differs"


def test_the_program_reads_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(M25))
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: modified-mit\n---\nA text.\n")
    words = ["--model", "M2.5", "--format", "fp8", "--config", str(tmp_path)]
    main([*words, "--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {"layers", "licence"} <= {row["field"] for row in rows}
    (tmp_path / "config.json").write_text(json.dumps({**M25, "num_hidden_layers": 61}))
    assert main(words) == 1
    assert "differs       MiniMax-M2.5 fp8: layers: catalogue 62, found 61" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "{}"],
        ["--config", "{}", "--model", "M2.5", "--format", "fp8"],
        ["--config", "{}/nothing", "--model", "M2.5", "--format", "fp8"],
        ["--model", "M9", "--config", "{}"],
        ["--engine", "{}"],
        ["--drivers", "{}/config.json"],
        ["--drivers", "{}"],
        ["--pci-ids", "{}/config.json"],
        ["--hub", "ftp://x", "--model", "M2.5", "--format", "fp8"],
        ["--hub", "http://127.0.0.1:9", "--model", "M2.5", "--format", "fp8"],
    ],
)
def test_bad_input_is_one_line(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("[1, 2")
    assert main([word.replace("{}", str(tmp_path)) for word in words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("catalog-audit: found ")
    assert said.count("\n") == 1

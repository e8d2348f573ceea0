"""The whole pull against the lab's hub in the dialects and with the quirks of real ones."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.host.engine.notify import Notifier
from minimax_metal.host.weights.manifest import FOLDER, Manifest
from minimax_metal.host.weights.pull import Options, PullError, RefusedError, Reporter, pull
from minimax_metal.host.weights.request import Request
from tests.support.hub import Hub, model, running
from tests.support.models import write

QUICK = Options(workers=3, stall=5, attempts=2, backoff=0.05, interval=0.2, spare=0)
SHARD = "model-00001-of-00003.safetensors"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running(tmp_path_factory.mktemp("hub"), model(shards=3, size=600_000)) as hub:
        yield hub


@pytest.fixture
def hub(served: Hub) -> Iterator[Hub]:
    served.fail()
    yield served
    served.fail()


def request_for(tmp_path: Path, *found: dict[str, Any], **more: Any) -> Request:
    return Request.parse({"path": str(tmp_path / "srv" / "m" / "r"), "sources": list(found), **more})


def run(request: Request) -> str:
    output = io.StringIO()
    try:
        pull(request, QUICK, Reporter(request, Notifier(None), output))
    finally:
        sys.stdout.write(output.getvalue())
    return output.getvalue()


def tree(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and FOLDER not in path.parts
    }


@pytest.mark.parametrize("dialect", ["artifactory", "nexus", "hf-mirror"])
def test_repository_managers_and_mirrors(dialect: str, tmp_path: Path) -> None:
    with running(tmp_path / "hub", model(shards=2, size=50_000), dialect) as hub:
        request = request_for(tmp_path, hub.source("hf-mirror"))
        run(request)
        assert tree(request.path) == hub.files
        gone = request_for(tmp_path / "gone", hub.source("hf-mirror", repository="MiniMaxAI/Nothing"))
        with pytest.raises(RefusedError, match="does not exist or needs a token"):
            run(gone)


def test_a_resumed_pull_from_modelscope_ends(hub: Hub, tmp_path: Path) -> None:
    """modelscope_hub issue 50: 200 with Content-Range. Before, the pull never ended."""
    hub.fail({"match": f"FilePath={SHARD}", "fault": "cut", "after": 300_000, "times": 2})
    skip = len(hub.lines())
    request = request_for(tmp_path, hub.source("modelscope"))
    run(request)
    assert tree(request.path) == hub.files
    asked = hub.bodies(skip)[SHARD]
    assert [first for first, _, _ in asked] == [0, 300_000, 600_000]
    assert {line["status"] for line in hub.lines(skip) if line["part"]} == {200}


@pytest.mark.parametrize("fault", ["multipart", "no-part", "other-part"])
def test_ranges_that_are_answered_wrongly_cost_bytes_not_the_pull(
    fault: str, hub: Hub, tmp_path: Path
) -> None:
    cut = {"match": f"FilePath={SHARD}", "fault": "cut", "after": 300_000, "times": 1}
    hub.fail(cut, {"match": "FilePath=", "fault": fault})
    request = request_for(tmp_path, hub.source("modelscope"))
    run(request)
    assert tree(request.path) == hub.files


@pytest.mark.parametrize(
    ("rule", "words", "final"),
    [
        ({"fault": "page", "status": 403}, "a proxy or WAF in between", False),
        ({"fault": "page", "status": 200}, "a captive portal or a proxy", False),
        ({"fault": "login"}, "a login page", False),
        ({"fault": "page", "match": "resolve|cdn", "status": 403}, "in between", False),
        ({"fault": "login", "match": "resolve|cdn|login"}, "a login page", False),
        ({"fault": "pointer", "match": "resolve|cdn"}, "serves a git-LFS pointer", True),
        ({"fault": "empty", "match": "cdn"}, "has 0 bytes at the source, expected", False),
    ],
)
def test_what_stands_in_between(
    rule: dict[str, Any], words: str, final: bool, hub: Hub, tmp_path: Path
) -> None:
    hub.fail(rule)
    with pytest.raises(PullError, match=words) as caught:
        run(request_for(tmp_path, hub.source()))
    assert isinstance(caught.value, RefusedError) is final
    assert "licence" not in str(caught.value)
    hub.fail()
    run(request_for(tmp_path, hub.source()))


def test_a_source_that_brings_nothing_new_is_left_for_the_next(hub: Hub, tmp_path: Path) -> None:
    hub.fail({"match": "huggingface-cdn", "fault": "cut", "after": 3000})
    request = request_for(tmp_path, hub.source("hf-mirror"), hub.source("modelscope"))
    said = run(request)
    assert "(2 attempts); trying modelscope" in said
    assert tree(request.path) == hub.files


def test_a_directory_is_taken_as_it_is_only_where_that_is_accepted_and_recorded(tmp_path: Path) -> None:
    folder = write(tmp_path / "nfs", model(shards=2, size=20_000))
    (folder / "tokenizer.json").unlink()
    source = {"kind": "directory", "path": str(folder)}
    with pytest.raises(RefusedError, match=r"tokenizer.json: missing.*model_weights_accept_unproved"):
        run(request_for(tmp_path, source))
    request = request_for(tmp_path, source, accept=["weights-unproved"])
    run(request)
    manifest = Manifest.read(request.path)
    assert manifest is not None
    assert manifest.proof["accepted"] == ["weights-unproved"]
    assert manifest.proof["problems"] == ["tokenizer.json: missing, and there is no other tokenizer"]
    (folder / "tokenizer.json").write_bytes(b"{}")
    other = request_for(tmp_path / "other", source, architectures=["MiniMaxM3ForCausalLM"], bytes=10**9)
    with pytest.raises(RefusedError, match=r"config.json: is of MiniMaxM2ForCausalLM, expected"):
        run(other)
    whole = request_for(tmp_path / "whole", source, architectures=["MiniMaxM2ForCausalLM"])
    run(whole)
    manifest = Manifest.read(whole.path)
    assert manifest is not None
    assert "2 tensors" in manifest.proof["examined"]

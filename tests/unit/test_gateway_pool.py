"""The files of a gateway's pool, and the commands if no gateway answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.cli import main
from minimax_metal.common.errors import UserError
from minimax_metal.host.gateway.launch import key_arguments
from minimax_metal.host.gateway.pool import (
    published,
    read_configuration,
    read_drained,
    worker_url,
    write_drained,
    write_manifest,
)
from tests.support.simulated import free_port

WORKERS = [{"url": "http://gpu01:8000", "host": "gpu01"}, {"url": "http://gpu02:8000", "host": "gpu02"}]


def configure(directory: Path, **changes: Any) -> Path:
    (directory / "admin_key").write_text("admin-0123456789\n")
    found = {
        "url": f"http://127.0.0.1:{free_port()}",
        "ca_file": None,
        "admin_key_file": str(directory / "admin_key"),
        "api_key_file": None,
        "engine_ca_file": None,
        "manifest": str(directory / "state/workers.json"),
        "drained": str(directory / "state/drained.json"),
        "workers": WORKERS,
    }
    path = directory / "admin.json"
    path.write_text(json.dumps(found | changes))
    return path


def metal(configuration: Path, *arguments: str) -> int:
    verb, *rest = arguments
    return main(["gateway", verb, "--config", str(configuration), *rest])


def test_the_manifest_is_the_configuration_less_what_is_drained(tmp_path: Path) -> None:
    configuration = read_configuration(configure(tmp_path))
    assert write_manifest(configuration, []) is True
    assert write_manifest(configuration, []) is False
    assert published(configuration.manifest) == {"http://gpu01:8000", "http://gpu02:8000"}
    assert write_manifest(configuration, ["http://gpu01:8000"]) is True
    assert json.loads(configuration.manifest.read_text()) == {
        "version": 1,
        "workers": [{"id": "http://gpu02:8000", "url": "http://gpu02:8000"}],
    }
    # smg runs as another user, and no half-written file is ever under the name.
    assert configuration.manifest.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in configuration.manifest.parent.iterdir()] == ["workers.json"]


def test_a_broken_list_of_drained_workers_brings_none_back(tmp_path: Path) -> None:
    path = tmp_path / "drained.json"
    assert read_drained(path) == frozenset()
    assert write_drained(path, {"http://b:1", "http://a:1"}) is True
    assert read_drained(path) == {"http://a:1", "http://b:1"}
    for broken in ('{"drained"', "[]", '{"drained": "http://a:1"}'):
        path.write_text(broken)
        with pytest.raises(UserError):
            read_drained(path)


@pytest.mark.parametrize(
    "text", ["gpu01:8000", "http://gpu01", "ftp://gpu01:1", "http://a:1/v1", "http://a:x"]
)
def test_what_is_no_url_of_a_worker_is_said(text: str) -> None:
    with pytest.raises(UserError, match="is not the URL of a worker"):
        worker_url(text)
    assert worker_url("http://gpu01:8000/") == "http://gpu01:8000"
    assert worker_url("https://[2001:db8::1]:8000") == "https://[2001:db8::1]:8000"


def test_without_a_gateway_a_drain_is_remembered_and_an_undrain_is_not_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The worker's port is unused, too: nothing can be in flight."""
    worker = f"http://127.0.0.1:{free_port()}"
    configuration = configure(tmp_path, workers=[{"url": worker, "host": "gpu01"}])
    assert metal(configuration, "sync", "--no-wait") == 0
    assert capsys.readouterr().out.strip() == "1 workers, 0 drained: changed"
    assert metal(configuration, "drain", "--worker", worker, "--timeout", "30") == 0
    assert capsys.readouterr().out.strip() == f"{worker}: drained, nothing in flight: changed"
    assert metal(configuration, "drain", "--worker", worker, "--no-wait") == 0
    assert capsys.readouterr().out.strip() == f"{worker}: out of the pool: unchanged"
    assert published(tmp_path / "state/workers.json") == set()
    assert metal(configuration, "sync", "--no-wait") == 0
    assert capsys.readouterr().out.strip() == "0 workers, 1 drained: unchanged"
    assert metal(configuration, "sync", "--timeout", "0") == 2
    assert "nothing listens at the gateway" in capsys.readouterr().err
    assert metal(configuration, "undrain", "--worker", worker, "--timeout", "0") == 1
    assert capsys.readouterr().out.strip() == f"{worker}: in the pool, but gateway down after 0 s: changed"
    assert metal(configuration, "healthy") == 1
    assert metal(configuration, "ready", "--timeout", "0") == 1


def test_a_process_that_is_gone_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert metal(configure(tmp_path), "ready", "--pid", "4194305", "--timeout", "60") == 2
    assert "process 4194305 no longer exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"workers": [WORKERS[0], WORKERS[0] | {"host": "b"}]}, "http://gpu01:8000 for gpu01 and b"),
        ({"workers": [{"host": "a"}]}, "no usable 'url'"),
        ({"admin_key_file": "/nowhere/key"}, "/nowhere/key: found no key"),
    ],
)
def test_a_wrong_configuration_is_one_line(
    changes: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert metal(configure(tmp_path, **changes), "list") == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_keys_are_read_from_the_directory_that_systemd_gives(tmp_path: Path) -> None:
    assert key_arguments(tmp_path) == []
    (tmp_path / "api_key").write_text("client\n")
    (tmp_path / "admin_key").write_text("admin\n")
    assert key_arguments(tmp_path) == [
        "--api-key",
        "client",
        "--control-plane-api-keys",
        "metal:metal:admin:admin",
    ]


def test_a_host_that_serves_elsewhere_now_is_named_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other ports and another count, at the host's position; other hosts' entries stay."""
    path = configure(tmp_path)
    words = ("workers", "--host", "gpu01", "--worker", "http://gpu01:9000", "--worker", "http://gpu01:9001")
    assert metal(path, *words) == 0
    assert capsys.readouterr().out.endswith(": changed\n")
    found = [(worker.url, worker.host) for worker in read_configuration(path).workers]
    assert found == [
        ("http://gpu01:9000", "gpu01"), ("http://gpu01:9001", "gpu01"), ("http://gpu02:8000", "gpu02"),
    ]  # fmt: skip
    assert metal(path, *words) == 0
    assert capsys.readouterr().out.endswith(": unchanged\n")
    assert metal(path, "workers", "--host", "gpu01", "--worker", "http://gpu02:8000") == 2


def test_a_host_that_had_to_prove_itself_has_to_at_its_new_ports(tmp_path: Path) -> None:
    workers = [
        {"url": "http://gpu01:8000", "host": "gpu01", "proves": True},
        {"url": "http://gpu02:8000", "host": "gpu02"},
    ]
    path = configure(tmp_path, workers=workers)
    for host in ("gpu01", "gpu02"):
        assert metal(path, "workers", "--host", host, "--worker", f"http://{host}:9000") == 0
    found = {worker.url: worker.proves for worker in read_configuration(path).workers}
    assert found == {"http://gpu01:9000": True, "http://gpu02:9000": False}

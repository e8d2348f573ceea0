"""What one role of the installed collection left on a host, and where it came from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import testinfra
from testinfra.host import Host

from tests.support.site import Lab

INSTALLED = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "collections/ansible_collections/minimax/metal"


@pytest.fixture
def host() -> Host:
    lab = Lab(os.environ["METAL_LAB_NAME"], "inventories/lab-driver")
    return testinfra.get_host("ssh://gpu01", ssh_config=str(lab.state / "ssh_config"))


def test_the_driver_runs(host: Host) -> None:
    said = host.check_output("nvidia-smi --query-gpu=name --format=csv,noheader")
    assert said.splitlines() == ["NVIDIA H20"] * 4
    assert "nvidia-driver" in host.check_output("apt-mark showhold")


def test_the_host_has_nothing_of_the_other_roles(host: Host) -> None:
    for path in ("/opt/minimax-metal", "/opt/sglang", "/srv/models", "/etc/systemd/system/sglang.target"):
        assert not host.file(path).exists, path


def test_the_collection_is_a_copy_and_no_link() -> None:
    assert (INSTALLED / "MANIFEST.json").is_file()
    assert not INSTALLED.is_symlink()

"""Hosts of the lab for testinfra, over the lab's own ssh_config: host keys are checked."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

LAB = Path(os.environ.get("METAL_LAB_ROOT", "/var/lib/minimax-metal-lab")) / os.environ.get(
    "METAL_LAB_NAME", "molecule"
)


def connect(name: str) -> Host:
    return testinfra.get_host(f"ssh://{name}", ssh_config=str(LAB / "ssh_config"))


def record(host: Host) -> dict[str, Any]:
    """Return the plan of the newest release record of a host."""
    plan: dict[str, Any] = json.loads(host.file("/var/lib/minimax-metal/releases/current").content_string)[
        "plan"
    ]
    return plan


@pytest.fixture(scope="session")
def api_key() -> str:
    """The key that the run made for clients, on the controller."""
    return (LAB / "secrets" / "api_key").read_text(encoding="ascii").strip()


@pytest.fixture(params=["gpu01", "gpu02"], scope="module")
def gpu_host(request: pytest.FixtureRequest) -> Host:
    return connect(request.param)


@pytest.fixture(scope="module")
def plan(gpu_host: Host) -> dict[str, Any]:
    return record(gpu_host)


@pytest.fixture
def unit(gpu_host: Host, plan: dict[str, Any]) -> Any:
    """The engine's service; when it is down the end of its journal is printed with the failure."""
    service = gpu_host.service(plan["service"]["unit"])
    if not service.is_running:
        print(gpu_host.run(f"journalctl --no-pager --lines=60 --unit={plan['service']['unit']}").stdout)
    return service

"""Readers in Ansible's plugins: output of a host's programs, and its files, for the modules."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.fuzz.target import Form, Target, of_file, of_json, of_text
from tests.fuzz.targets.host import PLAN
from tests.support.plugins import load_plugin

FACTS: Final = load_plugin("modules/metal_facts")
FLEET: Final = load_plugin("modules/metal_fleet_facts")
AWAIT: Final = load_plugin("action/metal_weights_await")
ROLLOUT: Final = load_plugin("filter/metal_rollout")


def _record(path: Path) -> object:
    return FLEET.record(FLEET.document(path))


def _sockets(path: Path) -> object:
    return FACTS.listening_sockets(str(path.parent.parent))


def _soak(results: list[Mapping[str, Any]]) -> object:
    return ROLLOUT._counted({"results": results})


def _printed(text: str) -> object:
    return ROLLOUT.metal_soak_input(text, "a", {})


TARGETS: Final = (
    Target("module-gpu-users", of_text(FACTS.gpu_users), (
        b"GPU-1, 4711, /opt/a,b/python, 1024 MiB\nGPU-1, [N/A], [Insufficient Permissions], [N/A]\n",
    )),
    Target("module-sockets", of_file(_sockets, "net/tcp"), (
        b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        b"   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 5131 1 0\n",
    )),
    Target("module-record", of_file(_record), (
        json.dumps({"number": 1, "digest": "a", "plan": json.loads(PLAN[0])}).encode(),
    ), Form.JSON),
    Target("await-output", of_text(AWAIT._came), (b'a\n{"fetched": 3, "peers": 1, "seconds": 2.5}\n',)),
    Target("soak-results", of_json(_soak, list), (
        b'[{"stdout_lines":["{\\"answers\\":1,\\"failures\\":0,\\"first_sum\\":1.5,\\"first_count\\":2}"]}]',
    ), Form.JSON),
    Target("soak-input", of_text(_printed), (b'{"answers":1,"failures":0}', b"null")),
)  # fmt: skip

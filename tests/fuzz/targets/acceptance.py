"""Readers of the output of programs on a host, for ``metal accept``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from minimax_metal.host.accept import compute, dcgm, driver, endpoint, machine, report, sandbox, smi
from minimax_metal.host.accept.machine import Answer
from minimax_metal.host.accept.redaction import Redaction
from minimax_metal.plan.model import InterconnectPlan
from tests.fuzz.target import Form, Target, of_json, of_lines, of_text, text_of
from tests.fuzz.targets.host import KERNEL

_LINKS: Final = InterconnectPlan("nvlink", 18, 10**11, "a datasheet", {}, {})

DATA: Final = Path(__file__).parents[2] / "unit" / "data" / "accept"


def _kept(*names: str) -> tuple[bytes, ...]:
    return tuple((DATA / name).read_bytes() for name in names)


def _log(text: str) -> object:
    log = smi.parse_log(text)
    for gpu in log.gpus:
        list(smi.sick_values(gpu.log))
        reasons = smi.throttle_reasons(gpu)
        list(smi.active(reasons or {}))
        gpu.log.number("Power Readings", "Power Draw"), gpu.log.number("Minor Number")
    return log.driver, log.attached


def _links(text: str) -> object:
    return [(one.index, one.down) for one in smi.parse_links(text)]


def _dcgm(content: bytes) -> object:
    found = dcgm.judge(Answer(1, text_of(content), ""))
    return found.found, found.expected, found.remedy, found.row().seen if hasattr(found.row(), "seen") else ""


def _report(content: bytes) -> object:
    import io

    found = report.parse(text_of(content), "the host")
    output = io.StringIO()
    found.print(output)
    return output.getvalue(), found.summary


def _object(text: str) -> object:
    found = sandbox.last_object(text)
    outcome = compute.judge_bandwidth(found, 8, _LINKS)
    return outcome.found


def _unit(text: str) -> object:
    return len(sandbox.unit_text(text, "sglang@a.service", "a.slice", ["true"], Path("/a"), 5.0))


TARGETS: Final = (
    Target("smi-log", of_text(_log), _kept("log-l4.txt", "performance-rtx-pro-6000.txt", "remapped-rows-pending.txt")),
    Target("smi-nvlink", of_text(_links), _kept("nvlink-h100.txt", "nvlink-v100-inactive.txt")),
    Target("dcgm", _dcgm, _kept("dcgm-3-skipped.json", "dcgm-4-persistence.json"), Form.JSON, shown=True),
    Target("accept-report", _report, (json.dumps({
        "host": "gpu01", "time": "t", "model": "m", "gpus": "g", "engine": "e", "driver": "580",
        "checks": [{"check": "ecc", "state": "passed", "found": "x", "expected": "", "remedy": "", "seconds": 1.5,
                    "figures": {"a": 1}}],
    }).encode(),), Form.JSON, shown=True),
    Target("sandbox-output", of_text(_object), (
        b'noise\n{"busbw_gb_s": 123.4, "sizes": [[1, 2.5]], "ok": true}\n',
        b'{"ranks": 8, "bytes": 1024, "seconds": 0.1, "busbw": 300.5, "error": null}\n',
    )),
    Target("sandbox-unit", of_text(_unit), (
        b"# /etc/systemd/system/sglang@.service\n[Unit]\nDescription=%i\n[Service]\nExecStart=/a \\\n  b %n\nUser=sglang\n",
    )),
    Target("systemd-moment", of_text(machine.moment), (b"Sun 2026-11-29 02:08:57 UTC", b"1764000000.5")),
    Target("switch-errors", of_lines(driver.switch_errors), (*KERNEL, *_kept("sxids.txt"))),
    Target("launch-arguments", of_json(lambda argv: endpoint.asked_tokens(argv), list), (
        b'["--max-total-tokens","1000","--context-length=5"]',
    ), Form.JSON),
    Target("accept-redaction", of_text(Redaction(["sk-secret-abc"], anonymise=True, names=["gpu01"]).text), (
        b"gpu01 10.0.0.1 fe80::1 aa:bb:cc:dd:ee:ff serial 1234 GPU-12345678-1234-1234-1234-123456789012 sk-secret-abc\n",
    )),
)  # fmt: skip

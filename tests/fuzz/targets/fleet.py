"""Readers of output of hosts, gateways and runs for the controller."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from minimax_metal.common.errors import UserError
from minimax_metal.common.redact import Redactor, slim
from minimax_metal.common.secret_shapes import without_secrets
from minimax_metal.controller.keys.kept import _read as read_key
from minimax_metal.controller.report import check_reports
from minimax_metal.controller.report import make as report
from minimax_metal.controller.run import records
from minimax_metal.controller.run.events import Run
from minimax_metal.controller.run.store import Kept, Store
from minimax_metal.controller.status import commands as status
from minimax_metal.host import lock, soak
from minimax_metal.host.gateway import client as gateway_client
from minimax_metal.host.gateway import pool as gateway_pool
from minimax_metal.host.gateway.identity import Examiner
from minimax_metal.host.releases import commands as releases
from minimax_metal.host.releases import journal
from minimax_metal.host.releases.record import Records
from minimax_metal.host.status import answers
from minimax_metal.host.status import commands as this_host
from minimax_metal.host.status import look as here
from minimax_metal.plan.model import Plan
from minimax_metal.plan.rollout import verdict
from minimax_metal.plan.rollout import works as rollout
from minimax_metal.plan.rollout.batches import Capacity
from tests.fuzz.target import Form, Target, of_ansible, of_file, of_json, of_text
from tests.fuzz.targets.host import METRICS, PLAN

PLANNED: Final = json.loads(PLAN[0])
_DECIDED: Final = Plan.of_record(PLANNED)
ANSWER: Final = {
    "schema": here.SCHEMA, "metal": "1.0", "hostname": "gpu01", "time": "2026-11-01T00:00:00+00:00",
    "release": {"number": 3, "digest": "ab" * 6, "time": "2026"}, "driver": "580.65.06", "cpu_count": 64,
    "certificates": [{"path": "/etc/sglang-tls/tls.crt", "ends": "2027-11-29T12:00:00+00:00", "fleet": True}],
    "applied": {
        "tls": {"directory": "/etc/sglang-tls", "names": ["gpu01"]},
        "platform": {"distribution": "debian", "version": "12", "codename": "bookworm", "architecture": "x86_64",
                     "python": "3.11.2"},
        "model": {"served_name": "MiniMax-M2.5", "format": "fp8", "path": "/srv/models/a"},
        "gpus": {"indices": [0, 1, 2, 3], "name": "NVIDIA H20", "model": "H20", "count": 4,
                 "memory_bytes": 97871 << 20, "compute_capability": "9.0", "nvswitch": False},
        "engine": {"release": "0.5.23", "environment": "/opt/sglang/x", "digest": "d"}, "firewall": False,
        "driver": {"branch": "580"}, "cuda": {"version": "13.0"}, "parallelism": {"tp": 2},
        "services": [{"unit": "sglang@a.service", "argv": ["--a"], "environment": {"A": "b"}, "credentials": {}}],
    },
    "environment_exists": True, "missing": ["sglang@b.service"], "memory_total_bytes": 1 << 40,
    "instances": [{"instance": "a", "unit": "sglang@a.service", "active": "active", "status": "ready: 3 s",
                   "health": "ready", "url": "http://a:8000", "enabled": True, "recorded": True, "restarts": 1,
                   "running": 2, "waiting": 1, "seconds": 1234.5}],
    "lock": {"user": "a", "controller": "b", "time": "t"},
    "rollout": {"kind": "rollout", "stage": "drain", "ended": None},
}  # fmt: skip
STATUS: Final = tuple(
    json.dumps(one).encode()
    for one in (
        {"rc": 0, "stdout": json.dumps(ANSWER), "stderr": ""},
        {"rc": 127, "stdout": "", "stderr": "sh: 1: metal: not found"},
        {"unreachable": True, "msg": "Failed to connect to the host via ssh: Permission denied (publickey)."},
    )
)
FACTS: Final = json.dumps(
    {
        "journal": {"run": "r", "kind": "rollout", "stage": "drain", "ended": None, "result": None,
                    "from_release": "0001-ab", "to_release": "ab", "batch": 1},
        "lock": None, "current": "0001-abcdef012345", "releases": ["0001-abcdef012345"],
        "record": {"digest": "abcdef012345", "model": "MiniMax-M2.5", "units": ["sglang@a.service"],
                   "workers": ["http://10.0.0.1:8000"]},
        "units": {"sglang@a.service": {"active": True, "state": "active", "stale": False, "start_seconds": 12.5}},
        "differs": ["/etc/sglang/a"], "newer": ["/etc/sglang/a"],
    }
).encode()  # fmt: skip
EVENTS: Final = tuple(
    json.dumps(one).encode()
    for one in (
        {"event": "runner_on_ok", "created": "2026-11-29T02:00:00.123456", "stdout": "\x1b[0;32mok\x1b[0m",
         "event_data": {"host": "gpu01", "task": "a", "role": "nvidia_driver", "task_path": "/a/b/c.yml:1",
                        "task_action": "ansible.builtin.debug", "res": {"changed": True, "msg": ["x"], "diff": {
                            "before": "a", "after": "b", "before_header": "/etc/a"}}}},
        {"event": "runner_on_failed", "created": "2026-11-29T02:00:01", "event_data": {
            "host": "gpu01", "task": "b", "role": "x", "res": {"msg": "no", "stderr": "e", "rc": 1, "results": [
                {"failed": True, "msg": "a", "item": 1}]}}},
        {"event": "verbose", "created": "x", "stdout": "engine a: 12 %", "event_data": {}},
        {"event": "playbook_on_stats", "event_data": {"ok": {"gpu01": 3}, "failures": {"gpu01": 1}, "dark": {}}},
    )
)  # fmt: skip
RECORDS: Final = tuple(
    json.dumps(one).encode()
    for one in (
        {"kind": "ok", "host": "gpu01", "task": "a", "stage": "drain", "at": 1.5, "action": "ansible.builtin.debug",
         "result": {"msg": ["a"], "changed": False}},
        {"kind": "failed", "host": "gpu01", "task": "b", "stage": "driver", "at": 2.5, "where": "a/b.yml:3",
         "result": {"msg": "no", "stderr_lines": ["a"], "items": [{"msg": "x"}]}},
        {"kind": "line", "text": "gpu01: engine a: 12 %", "sort": "verbose", "at": 3},
        {"kind": "begin", "host": "gpu01", "task": "a", "stage": "drain", "at": 1},
        {"kind": "stats", "failures": {"gpu01": 1}, "dark": {}, "at": 4},
        {"kind": "changed", "host": "gpu01", "task": "c", "stage": "drain", "at": 2,
         "action": "ansible.builtin.fetch", "result": {"dest": "/srv/a", "diff": "+a"}},
    )
)  # fmt: skip


class _Web:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def get(self, url: str, *_: Any, **__: Any) -> tuple[int, bytes]:
        return 200, self.content

    request = call = ask = get


def _status(answer: Mapping[str, Any]) -> object:
    """The output of ``metal status`` for a host with this answer."""
    host = status.answer_of("gpu01", answer)
    this_host.with_drift(host, partial(status._drift, {"metal_model": "MiniMax-M2.5"}))
    this_host.serves(host)
    this_host.exit_status([host])
    return status.lines_of({"gpu01": answer}), json.dumps(host)


def _checked(here_: Mapping[str, Any]) -> object:
    return answers.checked(here_)


def _look(path: Path) -> object:
    name = "0001-aaaaaaaaaaaa.json"
    (path.parent / name).write_bytes(path.read_bytes())
    link = path.parent / "current"
    link.unlink(missing_ok=True)
    link.symlink_to(name)
    units = "Id=sglang@a.service\nActiveState=active\nLoadState=loaded\nNRestarts=1\n"
    return here.look(path.parent, path.parent, lambda *_: units, lambda _: {"answers": True})


def _kept(path: Path) -> object:
    found = releases.kept(Records(path.parent))
    releases.table(found, None)
    for one in found:
        one.needs(), one.missing()
    return releases.given_up(found, 1, None, []), releases.unused_environments(found, [], "", "")


def _work(facts: Mapping[str, Any]) -> object:
    made = rollout.work_of("gpu01", "abcdef012345", _DECIDED, facts, gateway=True)
    outside = rollout.outsider("gpu02", facts, gateway=True)
    Capacity.of([made, outside], 1)
    return (
        made,
        outside,
        rollout.gateway_workers(facts, _DECIDED),
        verdict.standings({"gpu01": rollout.tidy(facts)}),
    )


def _event(event: Mapping[str, Any]) -> object:
    record = records.record_of(event, Redactor(["sk-secret-of-clients"]))
    if record is not None:
        Run().take(record)
    return record


def _run(path: Path) -> object:
    return report.data_of(Kept(path.parent), None)


def _about(path: Path) -> object:
    kept = Kept(path.parent)
    return kept.about, Store(path.parent.parent).latest(verb="site")


def _check_report(raw: Any) -> object:
    now = check_reports.shaped(raw)
    return now, report._figures(now, now)


def _gateway(path: Path) -> object:
    return gateway_pool.read_configuration(path)


def _workers(content: bytes) -> object:
    gateway = gateway_client.Gateway.__new__(gateway_client.Gateway)
    gateway.url, gateway.web = "http://gateway:30000", _Web(content)  # type: ignore[assignment]  # stands for it
    return gateway.workers()


def _in_flight(content: bytes) -> object:
    class Metrics(_Web):
        def get(self, url: str, *_: Any, **__: Any) -> tuple[int, bytes]:
            return (404, b"") if url.endswith("loads") else (200, self.content)

    web: Any = _Web(content)
    metrics: Any = Metrics(content)
    return gateway_client.in_flight(web, "http://a"), gateway_client.in_flight(metrics, "http://a")


def _identity(content: bytes) -> object:
    web: Any = _Web(content)
    examiner = Examiner.__new__(Examiner)
    examiner.key, examiner.web = "k", web
    examiner.identities = {"http://a": _Own()}  # type: ignore[dict-item]  # stands for it
    return examiner.ask("http://a")


class _Own:
    def proof(self, _nonce: str) -> str:
        return "a" * 64


def _soak(text: str) -> object:
    found = soak.parse(text)
    if found is not None:
        soak.worse(found.since(found), found, 0.1, 2.0, 10)
    return str(found.first) if found else None


def _earlier(text: str) -> object:
    before, batch = soak.read_earlier(text)
    for one in (before, batch):
        if one is not None and before is not None:
            (
                one.since(before),
                soak.worse(one, before, 0.1, 2.0, 10),
                one.words() if hasattr(one, "words") else None,
            )
    return None


def _locked(path: Path) -> object:
    found = lock.read(path)
    return lock.described(found) if found else None


def _result(result: Mapping[str, Any]) -> object:
    return slim(result), verdict.failure_text("a task", result)


TARGETS: Final = (
    Target("status-answer", of_ansible(_status, dict), STATUS, Form.JSON, shown=True),
    Target("status-host", of_json(lambda one: _status({"rc": 0, "stdout": json.dumps(one)}), dict),
           (json.dumps(ANSWER).encode(),), Form.JSON, shown=True),
    Target("status-checked", of_json(_checked, dict), (json.dumps(ANSWER).encode(),), Form.JSON,
           (answers.UnreadableError,), shown=True),
    Target("status-units", of_text(lambda text: here.units(text, 1e6)), (
        b"Id=sglang@a.service\nActiveState=active\nLoadState=loaded\nActiveEnterTimestampMonotonic=12345\n"
        b"NRestarts=1\nStatusText=ready: 3 s\nUnitFileState=enabled\n\nId=sglang@b.service\nActiveState=failed\n",
    )),
    Target("driver-version", of_text(here.driver_version), (
        b"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (x)\nGCC\n",
    )),
    Target("release-in-force", of_file(_look, "plan"), (
        json.dumps({"number": 1, "digest": "a", "plan": PLANNED}).encode(),
    ), Form.JSON),
    Target("release-records", of_file(_kept, "0001-aaaaaaaaaaaa.json"), (
        json.dumps({"number": 1, "digest": "a", "plan": PLANNED}).encode(),
    ), Form.JSON),
    Target("rollout-facts", of_json(_work, dict), (FACTS,), Form.JSON),
    Target("rollout-journal", of_file(journal.read), (
        b'{"run":"r","kind":"rollout","stage":"drain","ended":null,"from_release":"a"}',
    ), Form.JSON),
    Target("fleet-lock", of_file(_locked), (
        b'{"run":"r","user":"u","controller":"c","pid":1,"command":"rollout","time":"2026"}',
    ), Form.JSON, shown=True),
    Target("runner-event", of_json(_event, dict), EVENTS, Form.JSON, shown=True),
    Target("run-events", of_file(_run, "events.jsonl"), (b"\n".join(RECORDS), *RECORDS), Form.JSON),
    Target("run-events-lines", of_file(_run, "events.jsonl"), (b"\n".join(RECORDS),)),
    Target("run-about", of_file(_about, "2026-11-29-020000/run.json"), (
        b'{"run":"r","verb":"site","exit":0,"began":1.0}',
    ), Form.JSON),
    Target("check-report", of_json(_check_report), (
        b'{"schema":1,"model":"a","url":"http://a","passed":true,"counts":{"passed":3},"seconds":1.5,'
        b'"checks":[{"name":"a","status":"failed","expected":"a","got":"b","detail":"c","seconds":1}],'
        b'"figures":[{"concurrency":1,"output_tokens_per_second":{"median":12.5},"first":0.5}]}',
    ), Form.JSON),
    Target("task-result", of_json(_result, dict), (
        b'{"msg":"no","stderr":"a","stdout":"b","rc":1,"changed":false,"results":[{"item":1,"msg":"x","failed":true}]}',
    ), Form.JSON),
    Target("gateway-configuration", of_file(_gateway), (
        b'{"url":"http://127.0.0.1:30000","admin_key_file":"/a","manifest":"/b","drained":"/c","workers":'
        b'[{"url":"http://gpu01:8000","host":"gpu01","proves":true}]}',
    ), Form.JSON, shown=True),
    Target("gateway-drained", of_file(gateway_pool.read_drained), (b'{"drained":["http://gpu01:8000"]}',), Form.JSON),
    Target("gateway-discovery", of_file(gateway_pool.published), (
        b'{"version":1,"workers":[{"id":"http://a:1","url":"http://a:1"}]}',
    ), Form.JSON),
    Target("gateway-workers", _workers, (
        b'{"workers":[{"id":"1","url":"http://gpu01:8000","is_healthy":true,"load":3,"model_id":"a"}]}',
    ), Form.JSON),
    Target("gateway-loads", _in_flight, (
        b'{"loads":[{"num_running_reqs":1,"num_waiting_reqs":2}]}', *METRICS,
    ), Form.JSON),
    Target("gateway-metrics", _in_flight, METRICS),
    Target("gateway-identity", _identity, (b'{"proof":"' + b"a" * 64 + b'"}',), Form.JSON),
    Target("soak-metrics", of_text(_soak), METRICS),
    Target("soak-earlier", of_text(_earlier), (
        b'{"before":{"answers":1,"failures":0,"first_sum":1.5,"first_count":2},"batch":null}',
    ), Form.JSON),
    Target("soak-printed", of_text(soak.said), (b'{"answers":1,"failures":0,"first_sum":1.5,"first_count":2}',), Form.JSON),
    Target("key-file", of_file(lambda path: read_key(path, 16)), (b"sk-0123456789abcdef0123456789abcdef\n",), expects=(UserError, OSError)),
    Target("secret-shapes", of_text(without_secrets), (
        b"AWS_SECRET_ACCESS_KEY=abc --api-key sk-123 auth_pass x Authorization: Bearer abc password: x\n"
        b"-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----\nhttps://user:pass@host/\n",
    )),
)  # fmt: skip

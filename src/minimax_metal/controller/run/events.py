"""The state of a run, computed from its events: hosts and stages, progress, changes, failures.

Pure: the same events give the same state, during a run and when its report is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Final

from minimax_metal.controller.run.records import Record
from minimax_metal.controller.run.refusals import is_refusal, refused
from minimax_metal.plan.rollout.stage import Stage

RUNNING: Final = "running"
_RESULTS: Final = ("ok", "changed", "skipped", "failed", "unreachable")

_SAID = re.compile(r"^\s+(?P<host>[^\s:]+): (?P<what>weights|engine) (?P<name>[^\s:]+): (?P<text>.+)$")
_SHARE = re.compile(r"(?P<share>\d{1,12}(?:\.\d{1,6})?) %")


@dataclass
class Passage:
    """One host's time in one stage; times in seconds since the epoch."""

    name: str
    status: str = "waiting"
    began: float = 0.0
    ended: float = 0.0
    since: float = 0.0
    """When the host last entered it: a host may leave and re-enter a stage, such as the pull of weights."""
    before: float = 0.0
    """Seconds spent in it before that."""
    tasks: int = 0
    """Number of tasks run on the host."""
    changes: int = 0

    @property
    def seconds(self) -> float:
        """Seconds that the host has spent in it, without the time in other stages in between."""
        return self.seconds_at(self.ended)

    def seconds_at(self, now: float) -> float:
        """Seconds that it has spent in it up to some moment while it is in it."""
        return self.before + max(0.0, now - (self.since or self.began))


@dataclass(frozen=True)
class Span:
    """An uninterrupted period that a host spent in a stage."""

    stage: str
    began: float
    ended: float
    status: str


@dataclass(frozen=True)
class Change:
    """One change by a task, or one it would make in check mode."""

    host: str
    stage: str | None
    task: str
    what: str
    at: float


@dataclass(frozen=True)
class Failure:
    """One task that failed on a host, or a host that could not be reached."""

    host: str
    stage: str | None
    task: str
    kind: str
    lines: tuple[str, ...]
    at: float
    where: str = ""
    refuses: tuple[str, ...] = ()
    """Hosts that it refused, instead of failing on them."""

    @property
    def who(self) -> str:
        """The hosts concerned: a task that acts for the fleet runs on any host."""
        if not self.refuses or self.host in self.refuses:
            return self.host
        more = len(self.refuses) - 1
        return self.refuses[0] + (f" and {more} more" if more else "")


@dataclass(frozen=True)
class Said:
    """A task's message (``ansible.builtin.debug``)."""

    host: str
    stage: str | None
    task: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Progress:
    """Progress of long work: a pull of weights, an engine that loads."""

    host: str
    what: str
    name: str
    text: str
    share: float | None
    """From 0 to 1; None if unknown."""
    at: float


@dataclass
class Host:
    """One host of the run."""

    name: str
    stages: dict[str, Passage] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    stage: str | None = None
    task: str = ""
    busy: bool = False
    failed: bool = False
    unreachable: bool = False
    cut: bool = False
    """Whether the run ended in the middle of one of its tasks."""
    progress: Progress | None = None
    tasks: int = 0
    changes: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    """What refusals made of it (``refused`` or ``unreachable``), by the host whose task reported them."""
    spoke: bool = False
    """Whether the task that failed on it refused other hosts, and nothing else failed."""

    @property
    def verdict(self) -> str:
        """One word: running, interrupted, unreachable, refused, failed, reverted, changed, unchanged."""
        back = self.stages.get(Stage.ROLLBACK)
        if self.unreachable or "unreachable" in self.refused.values():
            return "unreachable"
        if back and back.status in {"ok", "changed"}:
            return "reverted"
        if self.refused:
            return "refused"
        if self.failed and not self.spoke:
            return "failed"
        if self.cut:
            return "interrupted"
        if self.busy:
            return RUNNING
        return "changed" if self.changes else "unchanged"


@dataclass
class Run:
    """The state of a whole run."""

    hosts: dict[str, Host] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    steps: list[tuple[str, float]] = field(default_factory=list)
    """Every play and task with its start time, from which the remaining time is estimated."""
    play: str = ""
    task: str = ""
    stage: str | None = None
    pid: int | None = None
    stats: Mapping[str, Mapping[str, int]] | None = None
    began: float = 0.0
    latest: float = 0.0
    over: bool = False
    """Whether it has ended: until then an idle host is waiting for its turn."""
    stopping: str = ""
    """How the user asked it to stop: after the hosts in progress, or now."""
    said: list[Said] = field(default_factory=list)
    fetched: list[tuple[str, str]] = field(default_factory=list)
    """Files that came from a host: its name, and the path here."""

    def take(self, record: Record) -> None:
        """Process one event."""
        at = float(record.get("at") or self.latest)
        self.latest = max(self.latest, at)
        self.began = self.began or at
        kind = record["kind"]
        if kind in _RESULTS:
            self._result(record, kind, at)
        elif kind == "begin":
            self._begin(record, at)
        elif kind == "item" and record["became"] == "changed":
            self._change(record, at, _label(record))
        elif kind in {"task", "play"}:
            self._step(record, kind, at)
        elif kind == "line":
            self._line(record, at)
        elif kind == "stats":
            self._stats(record)
        elif kind == "end":
            self._end(at)
        elif kind == "start":
            self.pid = record.get("pid")
        elif kind == "stop":
            self.stopping = record["how"]

    def take_all(self, records: Iterable[Record]) -> Run:
        """Process many events, and return the state."""
        for record in records:
            self.take(record)
        return self

    @property
    def seconds(self) -> float:
        """Return how long it has run, by its own events."""
        return max(0.0, self.latest - self.began)

    def verdict_of(self, host: Host) -> str:
        """Return one word for a host at this moment: its verdict, or ``waiting`` while others are busy."""
        verdict = host.verdict
        return "waiting" if not self.over and verdict in {"changed", "unchanged"} else verdict

    def seen_stages(self) -> list[str]:
        """Return the stages that any host has entered, in their order."""
        seen = {name for host in self.hosts.values() for name in host.stages}
        return [stage.value for stage in Stage if stage in seen]

    def tasks_done(self, host: str) -> int:
        """Return the number of tasks that ran on a host."""
        return self.hosts[host].tasks if host in self.hosts else 0

    def _host(self, record: Record) -> Host:
        name = str(record.get("host"))
        return self.hosts.setdefault(name, Host(name))

    def _step(self, record: Record, kind: str, at: float) -> None:
        if kind == "play":
            self.play = str(record.get("play") or "")
        else:
            self.task = str(record.get("task") or "")
            self.stage = record.get("stage")
        self.steps.append((f"{kind} {record.get('stage') or ''} {record.get(kind)}", at))

    def _begin(self, record: Record, at: float) -> None:
        host = self._host(record)
        name = record.get("stage")
        if name and name != host.stage:
            self._leave(host, at)
        if name:
            stage = host.stages.setdefault(name, Passage(name, began=at))
            # A failure after which the host continues was rescued: the colour stays, the time goes on.
            if stage.status not in {"failed", "unreachable"}:
                stage.status = RUNNING
            stage.began = stage.began or at
            host.stage = name
            if not host.spans or host.spans[-1].stage != name:
                stage.before = sum(one.ended - one.began for one in host.spans if one.stage == name)
                stage.since = at
                host.spans.append(Span(name, at, at, RUNNING))
        host.busy, host.task = True, str(record.get("task") or "")
        host.unreachable = False

    def _leave(self, host: Host, at: float) -> None:
        """Move the host to another stage: its previous one has ended."""
        if host.stage and host.stage in host.stages:
            stage = host.stages[host.stage]
            if stage.status == RUNNING:
                stage.status = "changed" if stage.changes else "ok" if stage.tasks else "skipped"
            stage.ended = max(stage.ended, stage.began)
        if host.progress:
            host.progress = None

    def _result(self, record: Record, kind: str, at: float) -> None:
        host = self._host(record)
        host.busy = False
        name = record.get("stage")
        result = record.get("result") or {}
        stage = host.stages.setdefault(name, Passage(name, began=at)) if name else None
        if stage:
            stage.ended = at
            if kind != "skipped":
                stage.tasks += 1
            stage.changes += kind == "changed"
            if kind in {"failed", "unreachable"}:
                stage.status = kind
            elif stage.status not in {"failed", "unreachable"}:
                stage.status = "changed" if stage.changes else "ok" if stage.tasks else "skipped"
            if host.spans and host.spans[-1].stage == name:
                host.spans[-1] = Span(name, host.spans[-1].began, at, stage.status)
        if kind != "skipped":
            host.tasks += 1
        if kind == "changed":
            host.changes += 1
            if not result.get("items"):
                self._change(record, at, _what(result))
        self._told(record, host.name, kind, result)
        if kind in {"failed", "unreachable"}:
            lines = tuple(_reason(result))
            refusal = kind == "failed" and is_refusal(name, lines)
            found = refused(host.name, lines, self.hosts) if refusal else {}
            self.failures.append(
                Failure(
                    host=host.name,
                    stage=name,
                    task=str(record.get("task") or ""),
                    kind=kind,
                    lines=lines,
                    at=at,
                    where=str(record.get("where") or ""),
                    refuses=tuple(found),
                )
            )
            host.unreachable = kind == "unreachable"
            for_others = bool(found) and host.name not in found
            host.spoke = for_others and (host.spoke or not host.failed)
            host.failed = host.failed or kind == "failed"
            if stage and for_others:
                stage.status = "changed" if stage.changes else "ok"
            for other, what in found.items():
                self.hosts[other].refused[host.name] = what
                if name in self.hosts[other].stages:
                    self.hosts[other].stages[name].status = "failed"

    def _told(self, record: Record, host: str, kind: str, result: Mapping[str, Any]) -> None:
        action = str(record.get("action") or "").rpartition(".")[2]
        if action in {"fetch", "metal_fetch"} and kind in {"ok", "changed"}:
            for one in result.get("items") or [result]:
                if one.get("dest"):
                    self.fetched.append((host, str(one["dest"])))
        if action == "debug" and kind == "ok":
            lines = [line for one in result.get("items") or [result] for line in _lines(one.get("msg"))]
            if lines:
                task = str(record.get("task") or "")
                self.said.append(Said(host, record.get("stage"), task, tuple(lines)))

    def _change(self, record: Record, at: float, what: str) -> None:
        self.changes.append(
            Change(str(record.get("host")), record.get("stage"), str(record.get("task") or ""), what, at)
        )

    def _line(self, record: Record, at: float) -> None:
        text = str(record["text"])
        if record.get("sort") in {"warning", "system_warning", "error"} and text not in self.warnings:
            self.warnings.append(text)
        said = _SAID.match(text)
        if said and said["host"] in self.hosts:
            share = _SHARE.search(said["text"])
            self.hosts[said["host"]].progress = Progress(
                host=said["host"],
                what=said["what"],
                name=said["name"],
                text=said["text"],
                share=min(1.0, float(share["share"]) / 100.0) if share else None,
                at=at,
            )

    def _stats(self, record: Record) -> None:
        self.over = True
        self.stats = {key: value for key, value in record.items() if isinstance(value, Mapping)}
        failures = self.stats.get("failures", {})
        for host in self.hosts.values():
            host.busy, host.progress = False, None
            # A failure that a rescue handled is not the host's; its stages show the outcome.
            host.failed = bool(failures.get(host.name))
            # The same for a refusal: the reasons for all hosts are repeated at the end.
            host.refused = {said: what for said, what in host.refused.items() if failures.get(said)}
            host.unreachable = bool(self.stats.get("dark", {}).get(host.name)) and host.unreachable
            for stage in host.stages.values():
                if stage.status == RUNNING:
                    stage.status = "changed" if stage.changes else "ok"

    def _end(self, at: float) -> None:
        self.over = True
        for host in self.hosts.values():
            host.cut, host.busy, host.progress = host.busy, False, None
            for stage in host.stages.values():
                if stage.status == RUNNING:
                    stage.status, stage.ended = "interrupted", at
            if host.spans and host.spans[-1].status == RUNNING:
                last = host.spans[-1]
                host.spans[-1] = Span(last.stage, last.began, at, "interrupted")


def _label(record: Record) -> str:
    result = record.get("result") or {}
    label = result.get("label")
    # For a copied file, its destination on the host tells more than its path on the controller.
    if label is None or result.get("dest"):
        return _what(result)
    copied = str(record.get("action") or "").rpartition(".")[2] in {"copy", "template"}
    return PurePath(str(label)).name if copied else str(label)


def _what(result: Mapping[str, Any]) -> str:
    for key in ("dest", "path", "diff", "name"):
        if result.get(key):
            return str(result[key])
    return ""


def _lines(text: Any) -> list[str]:
    lines = text if isinstance(text, list) else str(text or "").splitlines()
    return [str(line).rstrip() for line in lines if str(line).strip()]


def _reason(result: Mapping[str, Any]) -> list[str]:
    """Return why a task failed, in lines; for a loop, why its items did."""
    lines: list[str] = []
    items = [one for one in result.get("items") or [] if one.get("failed")]
    for one in items or [result]:
        said = False
        for key in ("msg", "reason", "module_stderr", "stderr"):
            text = one.get(key)
            if not text or (said and key == "module_stderr"):
                continue
            said = True
            for line in map(str, text) if isinstance(text, list) else str(text).splitlines():
                if line.strip() and line not in lines:
                    lines.append(line.rstrip())
    return lines or ["no reason was given"]

"""Why an engine ended, from its own words and the kernel's: pure.

Exit status of ``metal supervise`` for each kind, so that systemd starts again only what may succeed
(``RestartPreventExitStatus=70 78`` in the unit):

=====  ==============================================================================
78     a start that can never succeed as it is: arguments, model, memory, port, weights
70     a GPU or a host that needs an operator: it is drained, then reset or repaired
other  may succeed next time
=====  ==============================================================================

``lines`` takes prefixes off, ``rules`` holds what is known of the engine's words, ``kernel`` and ``xids``
what is known of the kernel's, ``reading`` finds the first cause among echoes, ``advice`` makes the remedy
exact. All patterns are linear, all lines are cut, and a deadline bounds the whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from minimax_metal.host.engine.diagnosis.advice import directions, exact, spell
from minimax_metal.host.engine.diagnosis.kernel import Event, Weight, concerns, find_events, first_xids
from minimax_metal.host.engine.diagnosis.lines import Line, read_lines
from minimax_metal.host.engine.diagnosis.reading import Read, last_start, place_of, raised_in, read, words_of
from minimax_metal.host.engine.diagnosis.reason import ACTS, EXIT_GPU, EXIT_NEVER, Reason, Who
from minimax_metal.host.engine.diagnosis.rules import Level, rule_of, rules
from minimax_metal.host.engine.diagnosis.xids import XIDS, Xid, XidRule, find_xids

SECONDS: Final = 5.0
"""Time limit of a diagnosis; 300 lines take some hundredths of a second."""
EVIDENCE: Final = 8
_GPU_CODES: Final = frozenset(
    {"cuda", "engine", "echo", "nccl", "nccl-timeout", "rank-death", "crash", "killed", "watchdog"}
)
_HEALS: Final = frozenset({"nfs", "nic"})
"""Codes that need an operator, although the next start may succeed without one."""
_IO_CODES: Final = frozenset({"weights", "io-error", "config", "shared-memory", "killed", "crash"})


def diagnose(
    lines: Sequence[str] | Sequence[Line],
    xids: Sequence[Xid] = (),
    *,
    ready: bool,
    events: Sequence[Event] = (),
    port: int | None = None,
    signal: int | None = None,
    seconds: float = SECONDS,
    stop: Callable[[], bool] = lambda: False,
) -> Reason | None:
    """Return why the engine ended, or None if nothing tells.

    Args:
        lines: the engine's last lines, newest last.
        xids: of the kernel's log since the engine's start.
        ready: whether it had been ready: after running out of memory under load it may be restarted, after
            doing so at start it would fail again.
        events: other events in the kernel's log since then.
        port: of the endpoint; conflicts on other ports concern only the engine.
        signal: the signal that ended the engine's main process.
        seconds: time limit.
        stop: ends the reading early when it returns true.
    """
    if grave := _grave(xids, events):
        return grave
    texts = [line if isinstance(line, Line) else None for line in lines]
    read_in = [line for line in texts if line is not None]
    if len(read_in) != len(lines):
        read_in = list(read_lines([line for line in lines if isinstance(line, str)]))
    found = read(read_in, time.monotonic() + seconds, stop)
    kills = [event for event in events if event.weight == Weight.KILL and event.ours]
    if kills:
        return _of_event(kills[0], final=not ready)
    reason = _of_engine(found, ready=ready, port=port)
    backing = [event for event in events if event.weight == Weight.BACKING]
    for event in backing:
        if reason is None or _explains(event, reason.code):
            return _of_event(event, reason=reason)
    if reason is None and signal is not None:
        reason = _of_signal(signal)
    reason = _with_xids(reason, xids)
    notes = [event for event in events if event.weight == Weight.NOTE]
    return _of_event(notes[0]) if reason is None and notes else reason


def _grave(xids: Sequence[Xid], events: Sequence[Event]) -> Reason | None:
    grave = first_xids(xids)
    if grave:
        told = ", ".join(dict.fromkeys(str(xid) for xid in grave))
        remedy = "drain the host, then reset the GPU or reboot"
        return Reason(
            "gpu-xid", f"{told}: {remedy}", gpu=True, who=Who.OPERATOR, cause=told, remedy=remedy,
            evidence=tuple(xid.line for xid in xids[:EVIDENCE]),
        )  # fmt: skip
    first = next((event for event in events if event.weight == Weight.GRAVE), None)
    if first is None:
        return None
    lines = tuple(event.line for event in events if event.weight == Weight.GRAVE)[:EVIDENCE]
    # A module of the wrong kind is reported before the failure that follows from it.
    named = next((event for event in events if event.who == Who.USER and event.weight == Weight.GRAVE), first)
    return _of_event(named, final=named.who == Who.USER, evidence=lines)


def _of_event(
    event: Event, *, final: bool = False, reason: Reason | None = None, evidence: tuple[str, ...] = ()
) -> Reason:
    where = f" ({event.device})" if event.device and event.device not in event.text else ""
    cause = words_of(f"{event.text}{where}")
    also = f"; the engine said: {reason.cause}" if reason and reason.cause else ""
    return Reason(
        event.code,
        f"{cause}{also}; {event.remedy}",
        final=final,
        gpu=event.who == Who.OPERATOR and event.code not in _HEALS,
        who=event.who if final or event.who != Who.USER else Who.RESTART,
        cause=cause,
        remedy=event.remedy,
        evidence=evidence or (event.line, *(reason.evidence if reason else ())),
    )


def _explains(event: Event, code: str) -> bool:
    """Return whether a kernel event caused the engine's error."""
    if event.code in {"disk", "nfs"}:
        return code in _IO_CODES
    if event.code in {"driver-held", "secure-boot", "module-kernel"}:
        return code in {"driver", "gpu-visible"}
    if event.code == "nic":
        return code in {"nccl", "nccl-timeout", "nccl-ib", "rendezvous", "rank-death", "echo"}
    if event.code in {"gpu-gsp", "iommu", "pcie", "memory-error", "lockup", "bar"}:
        return code in _GPU_CODES or code == "driver"
    return code in {"crash", "echo", "rank-death", "engine-silent"}


def _of_engine(found: Read, *, ready: bool, port: int | None) -> Reason | None:
    evidence = tuple(
        dict.fromkeys(one.line.shown.strip() for one in found.findings if one.rule.level >= Level.DEATH)
    )
    if found.unknown_first and found.exception is not None:
        at, words = found.exception
        shown = (found.lines[at].shown.strip(), *evidence)
        advice = directions(words)
        if advice and not ready:
            remedy = f"{spell(advice)}: the engine's own advice"
            return Reason(
                "setting", f"{words}; {remedy}", final=True, who=Who.USER, cause=words, remedy=remedy,
                evidence=shown[:EVIDENCE],
            )  # fmt: skip
        place = raised_in(found.lines, at)
        rule = rule_of(place_of(place) or "") if place and not ready else None
        if rule is not None:
            return Reason(
                rule.code, f"{words}; {rule.remedy}", final=True, who=rule.who, cause=words,
                remedy=rule.remedy, evidence=shown[:EVIDENCE],
            )  # fmt: skip
        return Reason("engine", words, cause=words, remedy="", evidence=shown[:EVIDENCE])
    if found.finding is None:
        return None
    rule = found.finding.rule
    code, words, remedy = exact(found.finding, found.lines, port)
    if code != rule.code:
        known = rule_of(code) or rule
        rule = known
        remedy = remedy if code == "gpu-memory" else known.remedy
    who = Who.RESTART if rule.at_start and ready else rule.who
    if found.finding.line.rank:
        words = f"{words} (rank {found.finding.line.rank})"
    # While it captures CUDA graphs the engine wraps any failure: a build that was cut off, or that raced with
    # another rank's, may succeed next time; lack of memory will not.
    retry = rule.retry or (found.capturing and who == Who.USER and code not in {"memory", "gpu-memory"})
    final = who in {Who.USER, Who.WEIGHTS} and not retry
    lines = tuple(dict.fromkeys((found.finding.line.shown.strip(), *evidence)))[:EVIDENCE]
    return Reason(
        code,
        f"{words}; {remedy}",
        final=final,
        gpu=who == Who.OPERATOR and not rule.retry,
        who=who,
        cause=words,
        remedy=remedy,
        evidence=lines,
    )


def _of_signal(signal: int) -> Reason | None:
    """Return the reason if there is no message: the signal itself."""
    code = {9: "killed", 7: "shared-memory", 4: "crash", 6: "crash", 8: "crash", 11: "crash"}.get(signal)
    if code is None:
        return None
    cause = f"the engine was ended by signal {signal} without any message"
    remedy = next(one.remedy for one in rules() if one.code == code and one.level == Level.DEATH)
    return Reason(code, f"{cause}; {remedy}", who=Who.RESTART, cause=cause, remedy=remedy)


def _with_xids(reason: Reason | None, xids: Sequence[Xid]) -> Reason | None:
    """Add Xids that need no operator to a reason: they show whose error it was."""
    mild = list(dict.fromkeys(str(xid) for xid in xids))
    if not mild:
        return reason
    told = ", ".join(mild[:4])
    lines = tuple(xid.line for xid in xids[:4])
    if reason is None:
        remedy = "usually an application's error; if it returns on one GPU, run metal accept"
        return Reason("xid", f"{told}; {remedy}", cause=told, remedy=remedy, evidence=lines)
    if reason.code not in _GPU_CODES:
        return reason
    return Reason(
        reason.code, f"{reason.text}; the kernel said: {told}", reason.final, reason.gpu, reason.who,
        reason.cause, reason.remedy, (*reason.evidence, *lines),
    )  # fmt: skip


__all__ = [
    "ACTS", "EXIT_GPU", "EXIT_NEVER", "XIDS", "Event", "Line", "Reason", "Weight", "Who", "Xid", "XidRule",
    "concerns", "diagnose", "find_events", "find_xids", "last_start", "read_lines",
]  # fmt: skip

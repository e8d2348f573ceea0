"""NVIDIA's own quick diagnosis, if DCGM is installed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.text import one_line
from minimax_metal.host.accept.context import Context
from minimax_metal.host.accept.machine import NO_PROGRAM, TIMED_OUT, Answer
from minimax_metal.host.accept.outcome import Outcome, failed, limited, passed, skipped

SECONDS: Final = 300.0
CONFIGURATION: Final = 5
"""DCGM's error severity for a setting of the host, as opposed to its hardware (dcgm_errors.h,
DCGM_ERROR_CONFIG; seen in published results of 4.2 for persistence mode)."""


def check_dcgm(context: Context) -> Outcome:
    """``dcgmi diag -r 1``: libraries, permissions, retired pages, as DCGM sees them."""
    answer = context.ask("dcgmi-diag", "dcgmi", "diag", "-r", "1", "-j", seconds=SECONDS)
    return judge(answer)


def judge(answer: Answer) -> Outcome:
    """Return the contents of the program's JSON; its exit status is not 0 for warnings either."""
    if answer.status == NO_PROGRAM:
        return skipped(
            "dcgm", "DCGM is not installed", "optional: NVIDIA's package datacenter-gpu-manager-4-cuda13"
        )
    if answer.status == TIMED_OUT:
        return failed("dcgm", answer.error, "a diagnosis", "nvidia-smi; journalctl -u nvidia-dcgm")
    try:
        # Lines of plain text may precede it.
        data = read_json(answer.out[answer.out.index("{") :])
    except ValueError:
        return skipped("dcgm", f"dcgmi gave no diagnosis: {answer.words}", "systemctl start nvidia-dcgm")
    tests = list(_tests(data))
    if not tests:
        return skipped("dcgm", f"no test in the diagnosis: {answer.words[:120]}")
    hardware: list[str] = []
    settings: list[str] = []
    for name, status, result in tests:
        if status.lower() in {"fail", "warn"}:
            for text, severity in _warnings(result):
                line = f"{name}: {text}"
                (settings if severity == CONFIGURATION else hardware).append(line)
    names = sorted({name for name, _, _ in tests})
    ran = [name for name, status, _ in tests if status.lower() != "skip"]
    figures = {"tests": names, "results": len(tests), "skipped": len(tests) - len(ran)}
    if hardware:
        found = "; ".join(dict.fromkeys(hardware))
        return failed(
            "dcgm", found, "every test passed", "run dcgmi diag -r 1 on the host for details", **figures
        )
    if settings:
        found = "; ".join(list(dict.fromkeys(settings))[:4])
        return limited("dcgm", found, "every test passed", "settings of the host: see persistence", **figures)
    if not ran:
        return skipped("dcgm", f"every test of the diagnosis was skipped: {', '.join(names)}")
    return passed("dcgm", f"{', '.join(sorted(set(ran)))}: {len(ran)} results pass", **figures)


def _tests(data: Any) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield each result with its test's name: one per GPU. DCGM 3 and 4 wrap the same tree in other names."""
    root = data if isinstance(data, Mapping) else {}
    for key in ("DCGM Diagnostic", "DCGM GPU Diagnostic"):
        if isinstance(root.get(key), Mapping):
            root = root[key]
            break
    for category in _each(root, "test_categories"):
        for test in _each(category, "tests"):
            for result in _each(test, "results"):
                yield one_line(str(test.get("name", "unnamed")), 80), str(result.get("status", "")), result


def _each(holder: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """Return the mappings in a list of a mapping; DCGM has nothing else there."""
    found = holder.get(key)
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def _warnings(result: Mapping[str, Any]) -> Iterator[tuple[str, int | None]]:
    """Return the reasons of a failed result: objects with a severity in DCGM 4, plain text before."""
    warnings = result.get("warnings") or result.get("warning") or []
    for one in warnings if isinstance(warnings, list) else [warnings]:
        if isinstance(one, Mapping):
            severity = one.get("error_severity")
            yield (
                one_line(str(one.get("warning", "no reason")), 500),
                severity if isinstance(severity, int) else None,
            )
        else:
            yield one_line(str(one), 500), None
    if not warnings:
        entity = result.get("entity_id", result.get("gpu_id", result.get("gpu_ids", "?")))
        yield one_line(f"GPU {entity}: {result.get('status')}", 200), None

"""What a rollout reports: why it can't begin, where earlier runs left hosts, what failed, its outcome."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minimax_metal.common.text import one_line
from minimax_metal.plan.rollout.stage import INSEPARABLE


@dataclass(frozen=True)
class Outcome:
    """What became of a host.

    Attributes:
        result: ``done`` (it has its release), ``returned`` (it failed, and is back on the previous one),
            ``reverted`` (it had its release, and went back since another host failed), ``failed`` (it is out
            of service).
        message: why, in one line; empty where it is done.
    """

    result: str
    message: str = ""


def standing(host: str, journal: Mapping[str, Any]) -> str:
    """Return where an earlier run left a host; empty if it ended well. The journal comes from the host."""
    return one_line(_standing(host, journal)) if isinstance(journal, Mapping) and journal else ""


def _standing(host: str, journal: Mapping[str, Any]) -> str:
    run, stage = journal.get("run"), journal.get("stage")
    way = f"from {journal.get('from_release') or 'no release'} to {journal.get('to_release')}"
    if journal.get("ended") is None:
        since = f"{journal.get('kind', 'rollout')} {run}, begun {journal.get('started')}"
        return f"{host}: {since}, stopped at stage {stage} {way}"
    if journal.get("result") == "failed":
        return (
            f"{host}: {journal.get('kind', 'rollout')} {run} failed {way}: {journal.get('message') or stage}"
        )
    return ""


def failure_text(task: str, result: Mapping[str, Any], width: int = 400) -> str:
    """Return in one line what failed: the task and what it said."""
    results = result.get("results")
    items = [one for one in results if isinstance(one, Mapping)] if isinstance(results, list | tuple) else []
    failed = [one for one in items or [result] if one.get("failed") or one.get("unreachable")] or [result]
    said = failed[0].get("msg") or failed[0].get("stderr") or failed[0].get("stdout") or "no reason given"
    if said == "non-zero return code":
        said = failed[0].get("stderr") or failed[0].get("stdout") or said
    text = " ".join(map(str, said)) if isinstance(said, list | tuple) else str(said)
    return f"{task}: {one_line(text, width)}"


def verdict(
    batches: Sequence[Sequence[str]],
    begun: Sequence[str],
    results: Mapping[str, Outcome],
    stop: str = "",
) -> list[str]:
    """Return one line for each host that did not get its release, and for those left alone; nothing when
    all is well.

    Args:
        batches: what was decided.
        begun: hosts of the batches that were begun.
        results: what became of each; a host that was begun with and has none was lost.
        stop: why the run stopped before its end; empty when it did not.
    """
    lines = []
    for host in begun:
        one = results.get(host)
        if one is None:
            lines.append(
                f"{host}: lost during its change (no answer); its journal has the stage, and the next run "
                "begins with it"
            )
        elif one.result == "returned":
            lines.append(f"{host}: rolled back to its previous release, serving: {one.message}")
        elif one.result == "reverted":
            lines.append(f"{host}: rolled back to its previous release (metal_rollout_on_failure: revert)")
        elif one.result == "failed":
            lines.append(f"{host}: is out of service: {one.message}")
    untouched = [host for batch in batches for host in batch if host not in begun]
    if stop and not lines:
        lines.append(f"stopped: {stop}")
    if lines and untouched:
        lines.append(f"not touched: {', '.join(untouched)}")
    done = [host for host in begun if host in results and results[host].result == "done"]
    if lines and done:
        lines.append(f"on the new release: {', '.join(done)}")
    return lines


def standings(facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return where earlier runs left hosts, one line each; nothing of those that ended well."""
    lines = (standing(host, found.get("journal") or {}) for host, found in facts.items())
    return [line for line in lines if line]


def tags_refusal(run: Iterable[str], skip: Iterable[str]) -> str:
    """Return why these tags can't be run; empty when they can."""
    wanted, left_out = set(run), set(skip)
    halves = sorted(
        (wanted & INSEPARABLE if not wanted & {"all", "rollout"} else set()) | left_out & INSEPARABLE
    )
    if not halves:
        return ""
    return (
        f"found the tags {', '.join(halves)}, expected all stages of a host's change or none; "
        "use --tags rollout, or stages that only prepare (host_tools, model_weights, sglang_runtime); "
        "soak may be skipped"
    )


def lock_refusals(held: Mapping[str, str]) -> list[str]:
    """Return why a run can't begin: ``held`` says by host who else holds the fleet's lock, empty where
    nobody does."""
    by_holder: dict[str, list[str]] = {}
    for host, words in held.items():
        if words:
            by_holder.setdefault(one_line(str(words), 400), []).append(host)
    return [
        f"{', '.join(hosts)}: found the fleet locked by {words}; expected nobody else at work on it; "
        "wait until that run has ended or, when it is dead, take the lock from it with "
        "-e metal_lock_break=true"
        for words, hosts in by_holder.items()
    ]

"""The report of a run: one self-contained HTML file, and the same as JSON.

It is made from the stored events and the post-checks' reports, so it can be made again at any time (``metal
report``).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.durations import spell
from minimax_metal.common.errors import UserError
from minimax_metal.common.files import read_bounded
from minimax_metal.common.redact import Redactor, secrets_of_environment
from minimax_metal.controller.report.check_reports import BYTES, host_of, number, shaped
from minimax_metal.controller.report.check_reports import level as level_of
from minimax_metal.controller.run.events import Host, Run
from minimax_metal.controller.run.store import Kept, Store, runs_directory
from minimax_metal.plan.rollout.stage import Stage, colour_of, label_of

SCHEMA: Final = 1
TEMPLATE: Final = Path(__file__).resolve().parent / "report.html.j2"
CHECKS: Final = "checks"
SAID: Final = (None, *(stage for stage in Stage if stage.step))
"""Stages whose messages the report repeats; for the others, failures and changes contain them."""
FIGURES: Final = (
    ("tokens/s", "tokens_per_second", 1),
    ("first token, s", "first_token_seconds", 3),
    ("tokens/s, one stream", "decode_tokens_per_second", 1),
)


def keep_checks(kept: Kept, run: Run, redactor: Redactor) -> None:
    """Copy the post-checks' reports, which the play fetched, to the run: the next run overwrites them."""
    for host, path in run.fetched:
        source = Path(path)
        if source.suffix != ".json":
            continue
        checked = _read(source)
        if checked is not None and "checks" in checked:
            (kept.path / CHECKS).mkdir(mode=0o700, exist_ok=True)
            place = Kept(kept.path / CHECKS)
            name = f"{host}.{source.stem}.json".replace("/", "_")
            place.write(name, json.dumps(redactor.value(shaped(checked)), ensure_ascii=False))


def _read(path: Path) -> dict[str, Any] | None:
    """Return a report that came from a host, or None if it is too large or not a JSON mapping."""
    try:
        found = read_json(read_bounded(path, BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def checks_of(kept: Kept) -> dict[str, dict[str, Any]]:
    """Return the post-check reports of a run, by ``HOST.INSTANCE``."""
    found = {}
    for path in sorted((kept.path / CHECKS).glob("*.json")):
        checked = _read(path)
        if checked is not None:
            found[path.stem] = shaped(checked)
    return found


def earlier_checks(store: Store, kept: Kept, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return for each ``HOST.INSTANCE`` the report of the newest earlier run that has one."""
    found: dict[str, dict[str, Any]] = {}
    for run in reversed([one for one in store.all() if one.age < kept.age]):
        missing = [name for name in names if name not in found]
        if not missing:
            break
        there = checks_of(run)
        found |= {name: there[name] | {"run": run.name} for name in missing if name in there}
    return found


def _stage(host: Host, name: str) -> dict[str, Any]:
    stage = host.stages[name]
    return {
        "stage": name,
        "status": stage.status,
        "began": stage.began,
        "seconds": round(stage.seconds, 1),
        "tasks": stage.tasks,
        "changes": stage.changes,
    }


def _figures(now: Mapping[str, Any], before: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return a post-check's measurements beside those of the previous one."""
    old = {level_of(level.get("concurrency")): level for level in (before or {}).get("figures") or []}
    rows = []
    for level in now.get("figures") or []:
        at_once = level_of(level.get("concurrency"))
        for name, key, digits in FIGURES:
            values = [number(one.get(key)) for one in (old.get(at_once, {}), level)]
            if values[1] is not None:
                change = (values[1] / values[0] - 1.0) * 100.0 if values[0] else None
                rows.append(
                    {
                        "name": f"{name}, {at_once} concurrent requests",
                        "before": None if values[0] is None else round(values[0], digits),
                        "after": round(values[1], digits),
                        "change_percent": None if change is None else round(change, 1),
                    }
                )
    return rows


def _checks(kept: Kept, store: Store | None, hosts: Collection[str]) -> list[dict[str, Any]]:
    now = checks_of(kept)
    before = earlier_checks(store, kept, list(now)) if store else {}
    return [
        {
            "host": host_of(name, hosts),
            "name": name,
            "model": one.get("model"),
            "url": one.get("url"),
            "passed": bool(one.get("passed")),
            "counts": one.get("counts") or {},
            "seconds": one.get("seconds"),
            "notable": [
                check for check in one.get("checks") or [] if check.get("status") in {"failed", "limited"}
            ],
            "checks": one.get("checks") or [],
            "figures": _figures(one, before.get(name)),
            "figures_before_run": before.get(name, {}).get("run"),
        }
        for name, one in now.items()
    ]


def _changes(run: Run) -> list[dict[str, Any]]:
    """Return the changes: each task once, with the hosts it changed something on."""
    grouped: dict[tuple[str | None, str], dict[str, Any]] = {}
    for change in run.changes:
        one = grouped.setdefault(
            (change.stage, change.task),
            {"stage": change.stage, "task": change.task, "hosts": [], "what": []},
        )
        if change.host not in one["hosts"]:
            one["hosts"].append(change.host)
        if change.what and change.what not in one["what"]:
            one["what"].append(change.what)
    return list(grouped.values())


def data_of(kept: Kept, store: Store | None = None) -> dict[str, Any]:
    """Return the report of a run as data: the contents of ``report.json``."""
    run = Run().take_all(kept.records())
    about = kept.about
    stages = run.seen_stages()
    return {
        "schema": SCHEMA,
        "about": about | {"run": about.get("run", kept.name)},
        "began": run.began,
        "seconds": round(run.seconds, 1),
        "stages": stages,
        "hosts": [
            {
                "host": host.name,
                "verdict": host.verdict,
                "tasks": host.tasks,
                "changes": host.changes,
                "stages": [_stage(host, name) for name in stages if name in host.stages],
                "spans": [
                    {"stage": s.stage, "began": s.began, "ended": s.ended, "status": s.status}
                    for s in host.spans
                ],
            }
            for host in run.hosts.values()
        ],
        "changes": _changes(run),
        "checks": _checks(kept, store, list(run.hosts)),
        "failures": [
            {
                "host": one.who,
                "stage": one.stage,
                "task": one.task,
                "kind": "refused" if one.refuses else one.kind,
                "lines": list(one.lines),
                "at": one.at,
                "where": one.where,
            }
            for one in run.failures
        ],
        "said": [
            {"host": one.host, "stage": one.stage, "task": one.task, "lines": list(one.lines)}
            for one in run.said
            if one.stage in SAID
        ],
        "warnings": run.warnings,
    }


def html_of(data: Mapping[str, Any]) -> str:
    """Return the page."""
    from jinja2 import Environment, StrictUndefined

    from minimax_metal.controller.report.timeline import timeline

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"spell": spell, "label": label_of, "colour": colour_of}
    environment.filters["clock"] = lambda at: datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S")
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        **data,
        order=[stage for stage in Stage if stage in data["stages"]],
        timeline=timeline(data["hosts"], data["began"], data["seconds"]),
    )


def write(kept: Kept, store: Store | None = None) -> Path:
    """Write ``report.html`` and ``report.json`` of a run; return the path of the page."""
    data = data_of(kept, store)
    kept.write("report.json", json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    return kept.write("report.html", html_of(data))


def main(argv: Sequence[str]) -> int:
    """Run ``metal report``."""
    parser = argparse.ArgumentParser(
        prog="metal report", description="Rebuild the report of a run from its stored events."
    )
    parser.add_argument(
        "run", nargs="?", help="run name, the start of it, or its directory (default: the newest)"
    )
    parser.add_argument("--runs", type=Path, metavar="DIRECTORY", help="directory of runs")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--list", action="store_true", help="list the stored runs")
    arguments = parser.parse_args(list(argv))
    store = Store(runs_directory(arguments.runs))
    if arguments.list:
        for run in store.all():
            about = run.about
            print(
                f"{run.name}  {about.get('outcome', 'still running, or killed')}  {about.get('command', '')}"
            )
        return 0
    kept = store.find(arguments.run)
    if arguments.json:
        json.dump(Redactor(secrets_of_environment()).value(data_of(kept, store)), sys.stdout, indent=1)
        sys.stdout.write("\n")
        return 0
    try:
        print(write(kept, store))
    except OSError as error:
        raise UserError(f"can't write into {kept.path} ({error.strerror}); fix its permissions") from None
    return 0

"""``metal status`` on a host: this host, without an inventory.

A controller runs ``metal status --here --json`` on every host, and compares the answers with its inventory.

Exit status: 0 this host serves; 1 it does not; with ``--here --json`` always 0.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from minimax_metal.common.text import one_line
from minimax_metal.host.status.answers import checked
from minimax_metal.host.status.drift import local_drift
from minimax_metal.host.status.look import look
from minimax_metal.plan.model import Plan

SERVING: Final = ("ready",)


def main(argv: Sequence[str]) -> int:
    """Run ``metal status`` on the host that it is about."""
    made = argparse.ArgumentParser(
        prog="metal status",
        description="Show model, release, engine, driver, health, load and uptime of this host, and its "
        "drift from its release.",
        epilog="On the controller, metal status -i INVENTORY shows every host of a fleet.",
        allow_abbrev=False,
    )
    made.add_argument("--here", action="store_true", help="show this host only; with --json in one line")
    made.add_argument("--json", action="store_true", help="print everything as JSON")
    arguments = made.parse_args(list(argv))
    if arguments.here and arguments.json:
        # For a controller: fast, complete, one line.
        print(json.dumps(look(), ensure_ascii=False, separators=(",", ":")))
        return 0
    hosts = this_host()
    if arguments.json:
        print(json.dumps(hosts, indent=2, ensure_ascii=False))
    else:
        from minimax_metal.host.status.table import show

        show(hosts)
    return exit_status(hosts)


def with_drift(host: dict[str, Any], compare: Callable[[Mapping[str, Any]], list[str]] | None = None) -> None:
    """Add how a host differs from its release, and the result of ``compare``; errors affect no other host's
    row.
    """
    if host["state"] != "known":
        return
    try:
        host["drift"] = local_drift(host)
        if compare is not None:
            host["drift"] += compare(host)
        # A plan is long, and only useful for comparing.
        host["applied"] = _brief(Plan.of_record(host["applied"]))
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, ArithmeticError) as error:
        # The type of each part was checked; their contents are still the host's.
        why = f"a recorded plan that can't be compared ({type(error).__name__}: {one_line(str(error), 120)})"
        name = host["host"]
        host.clear()
        host |= {"host": name, "state": "unreadable", "why": why}


def _brief(applied: Plan) -> dict[str, Any]:
    model, engine, gpus = applied.model, applied.engine, applied.gpus
    named = {
        "model": model.served_name if model else "",
        "format": model.format if model else "",
        "engine": engine.release if engine else "",
        "engine_digest": engine.digest if engine else "",
        "driver_branch": applied.driver.branch if applied.driver else "",
        "gpus": f"{gpus.count} x {gpus.model}" if gpus else "",
    }
    return {key: value or None for key, value in named.items()}


def serves(host: Mapping[str, Any]) -> bool:
    """Return whether every instance of a host's release is ready."""
    instances = [one for one in host.get("instances") or [] if one.get("recorded")]
    return bool(instances) and not host.get("missing") and all(one["health"] in SERVING for one in instances)


def exit_status(hosts: Sequence[Mapping[str, Any]]) -> int:
    """Return the exit status for the results."""
    if any(host["state"] == "unreachable" for host in hosts):
        return 3
    return 0 if all(serves(host) for host in hosts) else 1


def this_host() -> list[dict[str, Any]]:
    """Return the status of this machine."""
    host = {"host": os.uname().nodename, "state": "known", **checked(look())}
    with_drift(host)
    return [host]

"""Which hosts of a run share a model, and how much they transferred: pure, for the play."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from minimax_metal.common.sizes import spell_bytes
from minimax_metal.plan.model import ModelPlan
from minimax_metal.plan.reading import lenient


def members(hosts: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return the hosts of an inventory that have a plan: name, path of the model, address.

    Args:
        hosts: the variables of each; the address is ``metal_address``, else ``ansible_host``, else the name.
    """
    found = []
    for variables in hosts:
        plan = variables.get("metal_plan")
        # Each host of a run asks for all of them: only this part is read.
        model = lenient(ModelPlan, plan.get("model") if isinstance(plan, Mapping) else None)
        if not model.path:
            continue
        name = variables["inventory_hostname"]
        address = variables.get("metal_address") or variables.get("ansible_host") or name
        found.append({"name": str(name), "path": model.path, "address": str(address)})
    return found


def share(hosts: Iterable[Mapping[str, str]], me: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request's field ``share`` for one host; {} if no other host has the same model.

    Args:
        hosts: from :func:`members`.
        me: the host.
        settings: fields that are the same for all hosts.
    """
    known = list(hosts)
    paths = {host["path"] for host in known if host["name"] == me}
    peers = [
        {"name": host["name"], "address": host["address"]}
        for host in sorted(known, key=lambda host: host["name"])
        if host["name"] != me and host["path"] in paths
    ]
    return {"me": me, "peers": peers, **settings} if peers else {}


def account(came: Iterable[Mapping[str, Any]], size: int) -> str:
    """Return one line: how much all hosts together fetched, and how much of it from the source.

    Args:
        came: per host ``fetched`` and ``peers``, bytes; {} for a host that already had everything.
        size: bytes of the model.
    """
    rows = list(came)
    fetched, peers = (sum(_bytes(row, key) for row in rows) for key in ("fetched", "peers"))
    origin = fetched - peers
    times = f", {origin / size:.2f} × the model" if size else ""
    from_origin = f"{spell_bytes(origin)} from the source{times}"
    return f"{len(rows)} hosts: {from_origin}, {spell_bytes(peers)} from one another"


def _bytes(row: Any, key: str) -> int:
    """Return how much a host reports to have fetched; 0 for impossible values."""
    value = row.get(key) if isinstance(row, Mapping) else None
    return int(value) if isinstance(value, int | float) and 0 <= value < 1 << 62 else 0

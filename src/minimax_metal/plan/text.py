"""Plans in words, one line each: what preflight prints. Works on a plan as plain data (`Plan.as_dict`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minimax_metal.plan.model import Refusal


def _gigabytes(number: int | None) -> str:
    return "an unknown number of GB" if number is None else f"{number / 1e9:,.1f} GB"


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """Return what was decided: a headline, then a line for each difference, warning and lifted refusal."""
    model, gpus, spread = plan["model"], plan["gpus"], plan["parallelism"]
    tokens = plan["capacity"]["kv_tokens"]
    capacity = f"{tokens:,} KV tokens" if tokens else "KV capacity not known"
    lines = [
        f"{plan['host']}: {model['name']} ({model['format']}, {_gigabytes(plan['weights']['bytes'])}) on "
        f"{gpus['count']} × {gpus['model']}, tp {spread['tp']} ep {spread['ep']}, "
        f"SGLang {plan['engine']['release']}, driver {plan['driver']['branch']}, "
        f"CUDA {plan['cuda']['version']}, {capacity}"
    ]
    lines += [
        f"not as the guide, {item['what']}: here {item['here']}, there {item['guide']}; {item['reason']}"
        for item in plan["differences"]
    ]
    lines += [f"warning {item['code']}: {item['message']}" for item in plan["warnings"]]
    lines += [f"accepted by you, {Refusal(**item).line(plan['host'])}" for item in plan["accepted"]]
    return lines

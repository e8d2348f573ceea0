"""Plans in words, one line each, for preflight."""

from __future__ import annotations

from minimax_metal.common.errors import UserError
from minimax_metal.plan.model import Plan


def _gigabytes(number: int | None) -> str:
    return "an unknown number of GB" if number is None else f"{number / 1e9:,.1f} GB"


def plan_lines(plan: Plan) -> list[str]:
    """Return the decisions: a headline, then a line for each deviation, warning and lifted refusal.

    Raises:
        UserError: the plan is refused.
    """
    model, weights, gpus, spread = plan.model, plan.weights, plan.gpus, plan.parallelism
    engine, driver, cuda, room = plan.engine, plan.driver, plan.cuda, plan.capacity
    if not (model and weights and gpus and spread and engine and driver and cuda and room):
        raise UserError(f"{plan.host}: found a plan that is refused, expected one that fits; run metal plan")
    capacity = f"{room.kv_tokens:,} KV tokens" if room.kv_tokens else "KV capacity unknown"
    lines = [
        f"{plan.host}: {model.name} ({model.format}, {_gigabytes(weights.bytes)}) on "
        f"{gpus.count} × {gpus.model}, tp {spread.tp} ep {spread.ep}, "
        f"SGLang {engine.release}, driver {driver.branch}, CUDA {cuda.version}, {capacity}"
    ]
    lines += [
        f"differs from the guide, {one.what}: here {one.here}, there {one.guide}; {one.reason}"
        for one in plan.differences
    ]
    lines += [f"warning {one.code}: {one.message}" for one in plan.warnings]
    lines += [f"accepted by you, {one.line(plan.host)}" for one in plan.accepted]
    return lines

"""The pull of a draft for speculative decoding: like a model's, with another plan."""

from __future__ import annotations

from typing import Any

from minimax_metal.common.errors import UserError
from minimax_metal.plan.model import Plan, WeightsPlan, plain


def draft_alone(plan: Plan) -> dict[str, Any]:
    """Return a host's plan as plain data, with its draft in place of the model, for the same pull.

    Raises:
        UserError: the plan has no draft with its own repository.
    """
    draft = plan.draft
    if draft is None:
        raise UserError(f"{plan.host}: found a plan without a draft, expected one; check it with metal plan")
    names = ("name", "path", "revision", "repositories", "bytes", "licence")
    model = {name: plain(getattr(draft, name)) for name in names}
    return plan.as_dict() | {
        "model": {**model, "served_name": draft.name, "architectures": []},
        "weights": plain(WeightsPlan(draft.bytes, draft.instance, draft.sources)),
        "draft": None,
    }

"""The pull of a draft for speculative decoding: that of a model, asked for with another plan."""

from __future__ import annotations

from typing import Any

from minimax_metal.common.errors import UserError
from minimax_metal.plan.model import Plan, WeightsPlan, plain


def draft_alone(plan: Plan) -> dict[str, Any]:
    """Return the plan of a host, as plain data, with its draft in the place of the model: for the same pull.

    Raises:
        UserError: the plan has no draft of a repository of its own.
    """
    draft = plan.draft
    if draft is None:
        raise UserError(f"{plan.host}: found a plan without a draft, expected one; look at metal plan")
    names = ("name", "path", "revision", "repositories", "bytes", "licence")
    model = {name: plain(getattr(draft, name)) for name in names}
    return plan.as_dict() | {
        "model": {**model, "served_name": draft.name, "architectures": []},
        "weights": plain(WeightsPlan(draft.bytes, draft.instance, draft.sources)),
        "draft": None,
    }

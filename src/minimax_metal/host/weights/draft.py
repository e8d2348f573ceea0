"""The pull of a draft for speculative decoding: that of a model, asked for with another plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def draft_alone(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan of a host with its draft in the place of the model, for the same pull."""
    draft = plan["draft"]
    model = {key: draft[key] for key in ("name", "path", "revision", "repositories", "bytes", "licence")}
    return {
        **plan,
        "model": {**model, "served_name": draft["name"], "architectures": []},
        "weights": {key: draft[key] for key in ("bytes", "instance", "sources")} | {"adopt": []},
        "draft": None,
    }

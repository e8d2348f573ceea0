"""Templates of the repository, rendered with Ansible's filters and the project's own."""

from __future__ import annotations

import runpy
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import yaml
from ansible.plugins.filter.core import FilterModule as Core
from ansible.plugins.filter.mathstuff import FilterModule as Sets

REPOSITORY = Path(__file__).parents[2]
TEMPLATES = {path.name: path for path in sorted(REPOSITORY.glob("roles/*/templates/*.j2"))}
"""Every template of a role by name; names are unique over all roles."""


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(  # noqa: S701 - units and rules, no HTML
        trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    ours = runpy.run_path(str(REPOSITORY / "plugins/filter/metal.py"))["FilterModule"]
    for filters in (Core(), Sets()):
        environment.filters.update(filters.filters())
    environment.filters.update({f"minimax.metal.{name}": one for name, one in ours().filters().items()})
    return environment


def role_variables(role: str, **given: Any) -> dict[str, Any]:
    """Return a role's defaults and variables; a single expression is evaluated on access."""
    variables: dict[str, Any] = {}
    for part in ("defaults", "vars"):
        path = REPOSITORY / "roles" / role / part / "main.yml"
        if path.exists():
            variables |= yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return variables | given


def evaluate(variables: Mapping[str, Any], name: str) -> Any:
    """Return the value of a variable that is one Jinja expression."""
    expression = str(variables[name]).strip().removeprefix("{{").removesuffix("}}")
    return _environment().compile_expression(expression)(**variables)


def render(destination: Path, template: str, plan: Mapping[str, Any], **variables: Any) -> str:
    """Render a role's template to a file and return its text."""
    source = TEMPLATES[template].read_text(encoding="utf-8")
    text = _environment().from_string(source).render(
        {"ansible_managed": "Ansible managed", "metal_plan": plan, **variables}
    )  # fmt: skip
    destination.write_text(text, encoding="utf-8")
    return text

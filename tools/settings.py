"""Write what comes from the settings' declarations, or say what is stale.

    python tools/settings.py          # write the files; `make settings` does the same
    python tools/settings.py --check  # change nothing, name the files that differ

The settings are declared in ``src/minimax_metal/plan/settings/``. From them come ``meta/argument_specs.yml``
and ``defaults/main.yml`` of every role, and ``docs/settings.md``. All are committed: a role works from an
installed collection, and ``ansible-doc`` and readers see them without running anything.
Exit status: 0 done or nothing is stale, 1 something is stale.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from minimax_metal.plan.settings import PLAYBOOK_SETTINGS, SETTINGS
from minimax_metal.plan.settings.declared import Setting
from minimax_metal.plan.settings.roles import ROLES, Role

ROOT: Final = Path(__file__).resolve().parents[1]
WRITTEN: Final = "Written by `make settings` from src/minimax_metal/plan/settings: change it there."
WIDTH: Final = 116
TYPES: Final = {
    "bool": "bool",
    "float": "float",
    "int": "int",
    "list": "list",
    "mapping": "dict",
    "numbers": "list",
    "path": "path",
    "text": "str",
}
"""Ansible's types, by the kind of a role's setting."""
SPOKEN: Final = {
    "batches": "number, share or list",
    "bool": "true or false",
    "date": "date",
    "float": "number",
    "int": "whole number",
    "list": "list",
    "mapping": "mapping",
    "mode": "text",
    "numbers": "list of numbers",
    "packages": "list of paths",
    "share": "number or share",
    "words": "list, or one line",
}
"""How the documentation calls a kind; others by their own name."""
HEAD: Final = f"""\
# Settings

<!-- {WRITTEN} -->

Every setting, with what it takes and its default. Set it in the inventory (`group_vars`, `host_vars` or
`hosts.yml`), or for one run with `-e`. A name that does not exist is refused with the nearest one that does.
So is a value of another type or out of bounds. All of them are reported at once, before anything changes. A
setting that is null counts as not set.

Texts have one line and at most 1,024 characters; an argument or an environment variable has at most 16,384.
A list or mapping has at most 256 entries. A default of `-` means that the setting is not set; its description
says what applies then. A computed one comes from the inventory, the plan or the controller.
"""
PARTS: Final = (
    (
        "Hosts",
        "What the [plan](plan.md) of a host is made from: model, weights, engine, endpoint, driver, sources.",
        SETTINGS,
    ),
    (
        "Playbooks",
        "What a run of a playbook is told: [rollouts and rollbacks](rollout.md), removal, keys, acceptance.",
        PLAYBOOK_SETTINGS,
    ),
)


class _Dumper(yaml.SafeDumper):
    """YAML as the rest of the project has it."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def generate_anchor(self, node: yaml.Node) -> str:
        return "options"

    def ignore_aliases(self, data: Any) -> bool:
        # Only the options of an entry point appear in two places.
        return not (isinstance(data, dict) and "metal_plan" in data)


def _text(dumper: _Dumper, text: str) -> yaml.Node:
    style = ">" if len(text) > 96 else '"' if "'" in text and "{{" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _list(dumper: _Dumper, items: list[Any]) -> yaml.Node:
    short = sum(len(str(item)) + 2 for item in items) < 90
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=short)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _list)


def _yaml(data: Any) -> str:
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=WIDTH)
    return f"# {WRITTEN}\n---\n{text}"


def default(setting: Setting) -> Any:
    """A default as YAML has it."""
    return list(setting.default) if isinstance(setting.default, tuple) else setting.default


def option(setting: Setting) -> dict[str, Any]:
    """A setting in an argument specification."""
    made: dict[str, Any] = {
        "description": re.sub(r"`([^`]+)`", r"C(\1)", setting.meaning),
        "type": TYPES[setting.kind],
    }
    if made["type"] == "list":
        made["elements"] = "int" if setting.kind == "numbers" else "str"
    if setting.choices:
        made["choices"] = list(setting.choices)
    if setting.secret:
        made["no_log"] = True
    if setting.default is not None:
        made["default"] = default(setting)
    return made


def options(settings: Iterable[Setting], plan: str | None, *, required: bool) -> dict[str, Any]:
    """The options of one entry point."""
    made = {one.name: option(one) for one in settings}
    if plan:
        made["metal_plan"] = {"description": plan, "type": "dict", "required": required}
    return made


def specification(role: Role) -> str:
    """A role's ``meta/argument_specs.yml``."""
    whole = options(role.settings, role.plan, required=role.plan_required)
    entries = {"main": {"short_description": role.does, "options": whole}}
    entries |= {name: {"short_description": does, "options": whole} for name, does in role.same.items()}
    entries |= {
        name: {
            "short_description": one.does,
            "options": options(one.settings, one.plan, required=True),
        }
        for name, one in role.entries.items()
    }
    return _yaml({"argument_specs": entries})


def defaults(role: Role) -> str:
    """A role's ``defaults/main.yml``."""
    return _yaml({one.name: default(one) for one in role.settings})


def _takes(setting: Setting) -> str:
    kind = SPOKEN.get(setting.kind, setting.kind)
    if setting.choices:
        words = ", ".join(f"`{word}`" if word else "empty" for word in setting.choices)
        return f"{kind}: {words}" if setting.kind == "list" else words
    return f"{kind}, {setting.bounds}" if setting.bounds else kind


def _shown(setting: Setting) -> str:
    value = setting.default
    if setting.computed:
        return "computed"
    if value is None or value in ("", (), {}):
        return "-"
    if isinstance(value, bool):
        return "`true`" if value else "`false`"
    words = (
        json.dumps(value) if isinstance(value, dict)
        else ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    )  # fmt: skip
    return f"`{words}`"


def table(settings: Sequence[Setting]) -> str:
    """The rows of some settings, in Markdown."""
    rows = [f"| `{one.name}` | {_takes(one)} | {_shown(one)} | {one.meaning} |" for one in settings]
    return "\n".join(("| setting | takes | default | meaning |", "|---|---|---|---|", *rows)) + "\n"


def document() -> str:
    """docs/settings.md."""
    parts = [HEAD, *(f"## {title}\n\n{about}\n\n{table(rows)}" for title, about, rows in PARTS)]
    parts.append("## Roles\n\nNames begin with the role's. Roles without settings are not listed.\n")
    parts += [f"### {role.name}\n\n{role.does}.\n\n{table(role.settings)}" for role in ROLES if role.settings]
    return "\n".join(parts)


def files() -> Mapping[str, str]:
    """The content of every file that is written, by its place in the project."""
    made = {"docs/settings.md": document()}
    for role in ROLES:
        made[f"roles/{role.name}/meta/argument_specs.yml"] = specification(role)
        if role.settings:
            made[f"roles/{role.name}/defaults/main.yml"] = defaults(role)
    return made


def stale(root: Path) -> list[str]:
    """The files that are not as they would be written."""
    return [
        name
        for name, text in files().items()
        if not (root / name).is_file() or (root / name).read_text(encoding="utf-8") != text
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files, or say which are stale; return the exit status."""
    parser = argparse.ArgumentParser(description="Write the files generated from the settings' declarations.")
    parser.add_argument("--check", action="store_true", help="change nothing, name the files that are stale")
    arguments = parser.parse_args(argv)
    names = stale(ROOT)
    if arguments.check:
        for name in names:
            print(f"{name} differs from the declared settings; run make settings", file=sys.stderr)
        return 1 if names else 0
    for name in names:
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files()[name], encoding="utf-8")
        print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())

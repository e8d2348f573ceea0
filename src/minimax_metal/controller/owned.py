"""The list of what a role owns on a host (``roles/ROLE/meta/owned.yml``), rendered for one host.

=================  =======================================================================================
``files``          ``path``; one of ``template`` (of the role's ``templates/``), ``content``, ``copy`` (a file
                   of the controller), ``link`` (a target), ``directory: true``, ``kept: true`` (others write
                   it; only its owner and mode count). ``owner``, ``group`` (root), ``mode`` (0644, directory
                   0755; ``preserve`` keeps both). ``present: false``: it must not be there. ``secret``: never
                   shown. ``restarts``, ``reloads``: units that read it at their start, or when reloaded.
                   ``validate``: a command that must accept the new file, ``%s``. ``part``: written later.
``units``          ``name``; ``enabled`` and ``running`` where the role decides them. ``ready``: it is started
                   where it is only on its way.
``packages``       ``name`` of the distribution's packages, or the name alone; ``unless``: paths, any of which
                   stands for the package.
``users``          ``name`` and ``home`` of system users without a shell, each with a group of its name.
``environments``   ``path`` of a Python environment, its ``locks``, ``wheels`` and ``python`` version, and
                   ``projects``, versions by name that count more than the locks'.
``strays``         patterns of names in a directory: what is there and in no entry is an earlier run's.
=================  =======================================================================================

Every entry may have ``each``, a list: it stands for one entry per ``item``. With ``when`` false
it is left out. The order of ``files`` is the order of writing: a directory stands before what is in it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from minimax_metal.common.errors import UserError
from minimax_metal.plan.owned import Removable, removable

_YAML: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
LIST: Final = Path("meta/owned.yml")
"""Of a role."""
SHELL: Final = "/usr/sbin/nologin"
KINDS: Final = ("template", "content", "copy", "link", "directory", "kept")
"""How an entry of ``files`` says what belongs at its path; none of them with ``present: false`` only."""
KEYS: Final = {
    "files": frozenset(
        {*KINDS, "path", "owner", "group", "mode", "present", "secret", "restarts", "reloads", "validate",
         "part", "removal", "removal_path"}
    ),
    "units": frozenset({"name", "enabled", "running", "ready", "removal", "removal_name"}),
    "packages": frozenset({"name", "unless"}),
    "users": frozenset({"name", "home", "removal"}),
    "environments": frozenset({"path", "locks", "wheels", "projects", "python"}),
}  # fmt: skip

Render = Callable[[Any, Mapping[str, Any]], Any]
"""Renders a value with more variables; a string of one expression gives its own type."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, link or directory.

    Attributes:
        module: what the module on the host is given (plugins/modules/metal_owned.py).
        content: the file's text; None where it is another kind, or transferred.
        source: the file on the controller that is transferred; None otherwise.
        part: name of the part of the list that a role writes later, when something else is done; "" for none.
        restarts: units that read it at their start.
        reloads: units that read it again when they are reloaded.
    """

    module: dict[str, Any]
    content: str | None
    source: Path | None
    part: str
    restarts: tuple[str, ...]
    reloads: tuple[str, ...]

    @property
    def path(self) -> str:
        """Where it belongs on the host."""
        return str(self.module["path"])

    @property
    def secret(self) -> bool:
        """Whether its content is never shown."""
        return bool(self.module["secret"])


@dataclass(frozen=True, slots=True)
class Owned:
    """A role's list, rendered for one host; the attributes are those of the list."""

    files: tuple[Entry, ...]
    units: tuple[dict[str, Any], ...]
    packages: tuple[dict[str, Any], ...]
    users: tuple[dict[str, Any], ...]
    environments: tuple[dict[str, Any], ...]
    strays: tuple[str, ...] = ()

    def units_of(self, files: Sequence[Entry]) -> list[dict[str, Any]]:
        """Return every unit, each with the paths of these files that it reads."""
        found: dict[str, dict[str, Any]] = {
            unit["name"]: {**unit, "restarts": [], "reloads": []} for unit in self.units
        }
        for entry in files:
            for kind, names in (("restarts", entry.restarts), ("reloads", entry.reloads)):
                for name in names:
                    unit = found.setdefault(name, {"name": name, "restarts": [], "reloads": []})
                    unit[kind].append(entry.path)
        return list(found.values())


@dataclass(frozen=True, slots=True)
class Rendering:
    """How the parts of a list become what they are on one host.

    Attributes:
        value: see :data:`Render`.
        template: the text of a template of the role, for a destination and with more variables.
        file: the path on the controller of a file that is transferred.
    """

    value: Render
    template: Callable[[str, str, Mapping[str, Any]], str]
    file: Callable[[str], Path]
    role: str = field(default="")

    def owned(self, raw: Any, part: str = "") -> Owned:
        """Return a list, rendered.

        Args:
            raw: the document as it is written.
            part: the only part whose files are rendered; "" for all.

        Raises:
            UserError: it is not such a list; the text names role and entry.
        """
        if not isinstance(raw, Mapping):
            raise UserError(f"{self.role}: found no mapping in {LIST}, expected files, units and the like")
        return Owned(
            files=tuple(self._file(one, more) for one, more in self._each(raw, "files", part)),
            units=tuple(self._unit(one, more) for one, more in self._each(raw, "units")),
            packages=tuple(self._package(one, more) for one, more in self._each(raw, "packages")),
            users=tuple(
                {
                    "name": str(self.value(one["name"], more)),
                    "home": str(self.value(one["home"], more)),
                    "shell": SHELL,
                }
                for one, more in self._each(raw, "users")
            ),
            environments=tuple(self._environment(one, more) for one, more in self._each(raw, "environments")),
            strays=tuple(str(pattern) for pattern in self.value(raw.get("strays") or [], {})),
        )

    def _each(
        self, raw: Mapping[str, Any], kind: str, part: str = ""
    ) -> Iterator[tuple[Mapping[str, Any], dict[str, Any]]]:
        """Yield every entry of a kind with its ``item``; without those whose ``when`` is false."""
        listed = raw.get(kind) or []
        # A list of packages may be a variable of the role's.
        for one in self.value(listed, {}) if isinstance(listed, str) else listed:
            entry = {"name": one} if isinstance(one, str) else one
            unknown = set(entry) - KEYS[kind] - {"each", "when"}
            if unknown:
                raise UserError(
                    f"{self.role}: found {', '.join(sorted(unknown))} in an entry of {kind} in {LIST}, "
                    f"expected {', '.join(sorted(KEYS[kind]))}, each, when"
                )
            if part and entry.get("part") != part:
                continue
            items = self.value(entry["each"], {}) if "each" in entry else [None]
            for item in items:
                more = {} if item is None else {"item": item}
                if self.value(entry.get("when", True), more):
                    yield entry, more

    def _file(self, entry: Mapping[str, Any], more: dict[str, Any]) -> Entry:
        value = {key: self.value(entry[key], more) for key in entry if key not in {"each", "when", *KINDS}}
        path, kinds = str(value["path"]), [kind for kind in KINDS if kind in entry]
        present = bool(value.get("present", True))
        if not path.startswith("/") or len(kinds) > 1 or (present and not kinds):
            raise UserError(
                f"{self.role}: found {path} with {', '.join(kinds) or 'no content'} in {LIST}, expected an "
                f"absolute path and one of {', '.join(KINDS)}"
            )
        kind = kinds[0] if present else "absent"
        module: dict[str, Any] = {
            "path": path,
            "kind": kind if kind in {"link", "directory", "kept", "absent"} else "file",
            "owner": value.get("owner", "root"),
            "group": value.get("group", "root"),
            "mode": str(value.get("mode", "0755" if kind == "directory" else "0644")),
            "secret": bool(value.get("secret", False)),
        }
        if "validate" in value:
            module["validate"] = [str(word) for word in value["validate"]]
        content: str | None = None
        source: Path | None = None
        if kind == "template":
            content = self.template(str(self.value(entry["template"], more)), path, more)
        elif kind == "content":
            content = str(self.value(entry["content"], more))
        elif kind == "link":
            module["target"] = str(self.value(entry["link"], more))
        elif kind == "copy":
            source = self.file(str(self.value(entry["copy"], more)))
            module |= {"sha256": _digest(source), "size": source.stat().st_size}
        return Entry(
            module=module,
            content=content,
            source=source,
            part=str(value.get("part", "")),
            restarts=tuple(str(unit) for unit in value.get("restarts") or ()),
            reloads=tuple(str(unit) for unit in value.get("reloads") or ()),
        )

    def _package(self, entry: Mapping[str, Any], more: dict[str, Any]) -> dict[str, Any]:
        unless = [str(path) for path in self.value(entry.get("unless") or [], more)]
        return {"name": str(self.value(entry["name"], more)), "unless": unless}

    def _unit(self, entry: Mapping[str, Any], more: dict[str, Any]) -> dict[str, Any]:
        unit: dict[str, Any] = {"name": str(self.value(entry["name"], more))}
        unit |= {
            key: bool(self.value(entry[key], more)) for key in ("enabled", "running", "ready") if key in entry
        }
        return unit

    def _environment(self, entry: Mapping[str, Any], more: dict[str, Any]) -> dict[str, Any]:
        python = str(self.value(entry.get("python", ""), more))
        projects: dict[str, str] = {}
        for lock in self.value(entry.get("locks") or [], more):
            projects |= projects_of_lock(self.file(str(lock)).read_text(encoding="utf-8"), python)
        for wheel in self.value(entry.get("wheels") or [], more):
            projects |= project_of_wheel(str(wheel))
        stated = self.value(entry.get("projects") or {}, more)
        projects |= {canonicalize_name(str(name)): str(version) for name, version in stated.items()}
        return {"path": str(self.value(entry["path"], more)), "projects": projects}


def removable_of(roles: Path) -> Removable:
    """Return what the lists of all roles below a directory say of removal."""
    lists = {}
    for path in sorted(roles.glob(f"*/{LIST}")):
        role = path.parents[1]
        variables: dict[str, Any] = {}
        for part in ("defaults", "vars"):
            if (role / part / "main.yml").is_file():
                variables |= _load(role / part / "main.yml") or {}
        texts = {name: value for name, value in variables.items() if isinstance(value, str)}
        lists[role.name] = (_load(path), texts)
    return removable(lists)


def _load(path: Path) -> Any:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_YAML)  # noqa: S506 - CSafeLoader is safe


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def encoded(content: str) -> str:
    """Return a file's text as the module on the host takes it."""
    return base64.b64encode(content.encode()).decode("ascii")


def projects_of_lock(text: str, python: str) -> dict[str, str]:
    """Return the version of each project that a lock has for a host: ``{"uv": "0.13.9"}``.

    Args:
        text: a requirements file with ``name==version ; marker`` lines.
        python: the host's, such as ``3.12``; it decides markers, with Linux.
    """
    found: dict[str, str] = {}
    where = {"sys_platform": "linux", "os_name": "posix", "platform_system": "Linux"}
    where |= {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    if short := re.match(r"\d+\.\d+", python):
        full = python if python.count(".") > 1 else f"{python}.0"
        where |= {"python_version": short[0], "python_full_version": full}
    for line in text.splitlines():
        stated = line.split("--hash")[0].rstrip(" \\")
        if not stated or stated[0] in "# \t-":
            continue
        try:
            requirement = Requirement(stated)
        except InvalidRequirement:
            continue
        versions = [one.version for one in requirement.specifier if one.operator == "=="]
        if versions and (requirement.marker is None or requirement.marker.evaluate(where)):
            found[canonicalize_name(requirement.name)] = versions[0]
    return found


def project_of_wheel(name: str) -> dict[str, str]:
    """Return name and version of a wheel by its file name; nothing where it is not one's."""
    try:
        project, version = parse_wheel_filename(Path(name).name)[:2]
    except InvalidWheelFilename:
        return {}
    return {project: str(version)}

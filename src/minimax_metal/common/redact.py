"""What may be stored of a run: no arguments of modules, no environment, no known secrets.

There are three layers: only named parts of a result are stored (:func:`slim`), known secrets are masked
wherever they appear, and so is any text that looks like a secret.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import yaml

from minimax_metal.common.files import read_bounded
from minimax_metal.common.secret_shapes import MASK, is_secret_name, without_secrets

__all__ = ("MASK", "Redactor", "is_secret_name", "slim")

SHORTEST: Final = 6
"""Minimum length of a secret that is masked: a shorter one would mask half a log."""
LONGEST_TEXT: Final = 8_000
"""Maximum characters stored of one text of a result: its end, which contains the reason."""
ITEMS: Final = 200

KEPT: Final = ("changed", "failed", "unreachable", "skipped", "rc", "attempts", "retries", "line")
TEXTS: Final = ("msg", "reason", "skip_reason", "stderr", "module_stderr", "stdout")
PLACES: Final = ("dest", "path", "name", "state")


class Redactor:
    """Masks secrets in texts."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = {one for one in secrets if len(one) >= SHORTEST}
        # In plain form, and as encoded in JSON and URLs.
        known |= {form for one in known for form in (json.dumps(one)[1:-1], quote(one, safe=""), quote(one))}
        # Longest first: one may be part of another.
        self.secrets = sorted(known, key=len, reverse=True)

    def text(self, text: str) -> str:
        """Return ``text`` with every secret masked."""
        for secret in self.secrets:
            text = text.replace(secret, MASK)
        return without_secrets(text)

    def value(self, value: Any, *, secret: bool = False) -> Any:
        """Return a JSON value with all texts masked, including keys of mappings.

        A text whose key is named like a secret is masked completely.
        """
        if isinstance(value, str):
            return MASK if secret and value else self.text(value)
        if isinstance(value, Mapping):
            return {
                self.text(str(key)): self.value(one, secret=secret or is_secret_name(str(key)))
                for key, one in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.value(one, secret=secret) for one in value]
        return value


def slim(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stored part of a module's result: its outcome and reason, never its arguments.

    Output of commands is stored only if they failed: otherwise it is facts that nobody reads again.
    """
    if result.get("_ansible_no_log"):
        return {key: bool(result[key]) for key in ("changed", "failed", "skipped") if key in result}
    kept: dict[str, Any] = {
        key: result[key] for key in KEPT if isinstance(result.get(key), str | int | float | bool)
    }
    bad = bool(result.get("failed") or result.get("unreachable"))
    for key in TEXTS:
        text = result.get(key)
        if text and (bad or key in {"msg", "reason", "skip_reason"}):
            kept[key] = _shortened(text)
    for key in PLACES:
        if isinstance(result.get(key), str):
            kept[key] = str(result[key])
    if result.get("_ansible_item_label") is not None:
        kept["label"] = _shortened(result["_ansible_item_label"])
    delegated = result.get("_ansible_delegated_vars")
    if isinstance(delegated, Mapping):
        kept["delegated"] = str(delegated.get("ansible_delegated_host") or "somewhere else")
    if diff := _diff(result.get("diff")):
        kept["diff"] = diff
    results = result.get("results")
    if isinstance(results, list | tuple) and all(isinstance(one, Mapping) for one in results):
        kept["items"] = [slim(one) for one in results[:ITEMS]]
    return kept


def _shortened(text: Any) -> Any:
    if isinstance(text, list | tuple):
        lines = [str(line) for line in text]
        return lines if sum(map(len, lines)) <= LONGEST_TEXT else ["…", *_last(lines)]
    text = text if isinstance(text, str) else json.dumps(text, default=str, ensure_ascii=False)
    return text if len(text) <= LONGEST_TEXT else "…" + text[-LONGEST_TEXT:]


def _last(lines: Sequence[str]) -> list[str]:
    kept: list[str] = []
    left = LONGEST_TEXT
    for line in reversed(lines):
        left -= len(line)
        if left < 0:
            break
        kept.insert(0, line)
    return kept


def _diff(diff: Any) -> str:
    """Return which files differ; their contents are only for the user's terminal (``--diff``)."""
    parts = diff if isinstance(diff, list) else [diff]
    names = []
    for part in parts:
        if isinstance(part, Mapping):
            name = part.get("after_header") or part.get("before_header")
            if isinstance(name, str) and name not in names:
                names.append(name)
    return ", ".join(names)


def secrets_of_environment(environment: Mapping[str, str] | None = None) -> list[str]:
    """Return the values of environment variables that are named like secrets (``HF_TOKEN``)."""
    environment = os.environ if environment is None else environment
    return [value for name, value in environment.items() if is_secret_name(name)]


def secrets_of_directories(directories: Iterable[Path]) -> list[str]:
    """Return the contents of small files in secrets directories; unreadable ones are skipped."""
    found = []
    for directory in directories:
        try:
            # A hidden file is state, such as that of a key rotation, which has its own reader.
            paths = [
                path
                for path in sorted(directory.iterdir())
                if path.is_file() and not path.name.startswith(".")
            ]
        except OSError:
            continue
        for path in paths:
            try:
                if path.stat().st_size <= 64 << 10:
                    text = path.read_text(encoding="utf-8", errors="replace").strip()
                    found += [text, *text.splitlines()]
            except OSError:
                continue
    return [text for text in found if text]


def secrets_of_extra_variables(words: Iterable[str]) -> list[str]:
    """Return the values of ``-e`` whose names look like secrets, in both of Ansible's formats."""
    found: list[str] = []
    for word in words:
        if word.startswith("@"):
            found += _of_file(Path(word[1:]))
            continue
        if word.lstrip().startswith(("{", "[")):
            try:
                found += _named(yaml.load(word, _Values))  # noqa: S506  # a subclass of the safe loader
            except (yaml.YAMLError, ValueError, RecursionError):
                found.append(word)
            continue
        try:
            pairs = shlex.split(word)
        except ValueError:
            pairs = word.split()
        for pair in pairs:
            name, _, value = pair.partition("=")
            if is_secret_name(name):
                found.append(value)
    return found


class _Values(yaml.SafeLoader):
    """Reads Ansible's YAML; an encrypted value is not a secret in that form."""


_Values.add_multi_constructor(
    "!", lambda loader, suffix, node: node.value if isinstance(node, yaml.ScalarNode) else None
)


def _of_file(path: Path) -> list[str]:
    """Return the secrets in a variables file; Ansible reports an error in an unreadable one."""
    try:
        content = yaml.load(read_bounded(path, 1 << 20), _Values)  # noqa: S506  # a subclass of the safe loader
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return []
    return _named(content)


def _named(value: Any, *, secret: bool = False) -> list[str]:
    if isinstance(value, Mapping):
        return [
            text
            for key, one in value.items()
            for text in _named(one, secret=secret or is_secret_name(str(key)))
        ]
    if isinstance(value, list):
        return [text for one in value for text in _named(one, secret=secret)]
    return [str(value)] if secret and isinstance(value, str | int) else []

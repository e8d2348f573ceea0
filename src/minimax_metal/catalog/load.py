"""Reads the catalogue's files and the users' overlays, and validates them.

The packaged catalogue is validated once and then cached (:mod:`minimax_metal.catalog.kept`). With an overlay
it is validated each time. YAML and pydantic are imported only then.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from minimax_metal.catalog import kept
from minimax_metal.catalog.schema import Catalog
from minimax_metal.common.errors import UserError

HERE = Path(__file__).parent
FILES = (
    "models.yml",
    "gpus.yml",
    "engines.yml",
    "gateways.yml",
    "platforms.yml",
    "drivers.yml",
    "mirrors.yml",
    "faults.yml",
    "licences.yml",
    "drafts.yml",
    "vendors.yml",
    "profiles.yml",
)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``over`` merged into it: mappings merge by key, anything else replaces.

    A key set to null is removed. A number with its source (a mapping with ``value``) is replaced as a whole,
    so that a new number never keeps the old number's source.
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and "value" not in value:
            # Merge missing parts too: a key to remove may not exist.
            merged[key] = merge(old if isinstance(old, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


MOST_OPENED = 10_000
"""Maximum number of brackets in a file: parsing time grows with the square of their nesting."""


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        # Plain data only: both loaders build nothing but mappings, lists and scalars.
        content = path.read_bytes()
        if max(content.count(b"{"), content.count(b"[")) > MOST_OPENED:
            raise UserError(
                f"catalogue overlay {path}: found more than {MOST_OPENED} opening brackets, expected a file "
                "like the catalogue's own; write lists and mappings in lines of their own"
            )
        document = yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except OSError as error:
        raise UserError(
            f"catalogue overlay {path}: {error.strerror or error}; give a readable YAML file"
        ) from error
    # ValueError: a day that no month has, or a number that is too long
    except (yaml.YAMLError, ValueError) as error:
        problem = " ".join(str(error).split())[:300]
        raise UserError(f"catalogue overlay {path}: not YAML ({problem}); fix the file") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UserError(
            f"catalogue overlay {path}: found a {type(document).__name__}, expected a mapping with "
            "models, gpus, engines, platforms; write it like the catalogue's own files"
        )
    return document


def read_overlay(path: Path) -> dict[str, Any]:
    """Return the contents of an overlay file; raises ``UserError`` if it is unreadable or not a mapping."""
    return _read(path)


def _resolve_models(document: dict[str, Any]) -> None:
    """Turn families, models and formats into one complete checkpoint entry per model and format."""
    families = document.pop("families", {})
    resolved: dict[str, dict[str, Any]] = {}
    for section, entries in (("families", families), ("models", document.get("models", {}))):
        _check_mapping(section, entries)
    for name, model in document.get("models", {}).items():
        if not isinstance(model, Mapping) or not isinstance(model.get("formats"), Mapping):
            raise UserError(f"catalogue: model {name} has no formats; give it at least one under `formats:`")
        family = model.get("family")
        if family not in families:
            raise UserError(
                f"catalogue: model {name} names family {family!r}, known are "
                f"{', '.join(sorted(families))}; name one of them or add it under `families:`"
            )
        wrong = [form for form, entry in model["formats"].items() if not isinstance(entry, Mapping | None)]
        if wrong or not isinstance(families[family], Mapping):
            where = f"format {wrong[0]} of model {name}" if wrong else f"family {family}"
            raise UserError(
                f"catalogue: {where} is not a mapping; write its entries below it, indented, as in "
                "the catalogue's own files"
            )
        rest = {key: value for key, value in model.items() if key != "formats"}
        common = merge(families[family], rest)
        resolved[name] = {
            form: merge(common, entry or {}) | {"name": name, "format": form}
            for form, entry in model["formats"].items()
        }
        if published := _published_name(name, resolved[name]):
            resolved[name] = {form: {"served_name": published} | one for form, one in resolved[name].items()}
    document["models"] = resolved


def _published_name(name: str, formats: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the name that clients use for a model in any format: that of its own repository.

    Quantised repositories have other names (MiniMax-M3-MXFP8). If each replica were served under its
    repository's name, a gateway would put replicas of one model into separate pools.
    """
    repositories = [
        str(one["repositories"]["huggingface"])
        for one in formats.values()
        if isinstance(one.get("repositories"), Mapping) and one["repositories"].get("huggingface")
    ]
    own = [repository for repository in repositories if repository.rpartition("/")[2] == name]
    return next(iter(own or repositories), None)


def _check_mapping(section: str, entries: Any) -> None:
    if not isinstance(entries, Mapping):
        raise UserError(
            f"catalogue: {section} is not a mapping; write its entries below it, indented, as in the "
            "catalogue's own files"
        )


def _named(document: dict[str, Any], section: str, key: str) -> None:
    entries = document.get(section, {})
    _check_mapping(section, entries)
    document[section] = {
        name: {**entry, key: name} if isinstance(entry, Mapping) else entry for name, entry in entries.items()
    }


def _branches_as_text(overlay: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the overlay with driver branch numbers as texts: YAML reads a bare 580 as a number."""
    drivers = overlay.get("drivers")
    if not isinstance(drivers, Mapping):
        return overlay
    return {**overlay, "drivers": {str(branch): entry for branch, entry in drivers.items()}}


def _own_locks(engines: Mapping[str, Any]) -> dict[str, str]:
    """Return the sha256 of every lock that an overlay names by an absolute path (a user's own engine)."""
    found = {}
    for release, entry in engines.items():
        locks = entry.get("locks") if isinstance(entry, Mapping) else None
        for name in locks.values() if isinstance(locks, Mapping) else ():
            if isinstance(name, str) and name.startswith("/"):
                try:
                    found[name] = _sha256(Path(name))
                except OSError as error:
                    raise UserError(
                        f"catalogue: release {release} names the lock {name}: {error.strerror}; give a file "
                        "that this machine can read"
                    ) from error
    return found


def load_catalog(overlays: Sequence[Mapping[str, Any]] = ()) -> Catalog:
    """Return the packaged catalogue with ``overlays`` merged into it, in order.

    Raises ``UserError`` (one line, with the place) if the result does not validate.
    """
    document: dict[str, Any] = {}
    for name in FILES:
        document = merge(document, _read(HERE / name))
    for overlay in overlays:
        document = merge(document, _branches_as_text(overlay))
    for anchor in ("driver_packages", "repository_keys", "recipe_parts", "driver_places"):
        document.pop(anchor, None)
    _resolve_models(document)
    _named(document, "gpus", "name")
    _named(document, "engines", "release")
    _named(document, "gateways", "release")
    _named(document, "cuda", "version")
    _named(document, "platforms", "slug")
    _named(document, "drivers", "branch")
    _named(document, "faults", "name")
    _named(document, "vendors", "name")
    _named(document, "licences", "name")
    _named(document, "drafts", "name")
    document["lock_sha256"] = _locks() | _own_locks(document["engines"] | document["gateways"])
    from minimax_metal.catalog.validate import validated

    return validated(document)


def _locks() -> dict[str, str]:
    """Return the sha256 of every packaged lock."""
    return {path.name: _sha256(path) for path in sorted((HERE / "locks").glob("*.txt"))}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest() -> str:
    """Return the digest of everything the packaged catalogue is made from: its files, its locks, and its
    code.
    """
    made_from = {path.name: _sha256(path) for path in [*(HERE / name for name in FILES), *HERE.glob("*.py")]}
    return hashlib.sha256(json.dumps([made_from, _locks()], sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=1)
def packaged_catalog() -> Catalog:
    """Return the packaged catalogue, loaded once per process."""
    if (found := kept.load(_digest(), HERE)) is not None:
        return found
    return keep_packaged()


def keep_packaged() -> Catalog:
    """Validate the packaged catalogue and cache it for later runs; ``make setup`` calls this."""
    digest = _digest()
    catalog = load_catalog()
    if _digest() == digest:  # no file was edited in the meantime
        kept.save(digest, catalog, HERE)
    return catalog

"""What the guard is told: by the unit's environment, the keys' directory and the engine's own command line.

=============================  ====================================================================
``METAL_MEDIA_DOMAINS``        domains with commas between from which media is fetched; none: ``data:`` only
``METAL_MAX_REQUEST_BYTES``    size of a request's body (64 MiB)
``METAL_REQUEST_SECONDS``      time in which a body has to arrive (60)
``METAL_MAX_IMAGE_PIXELS``     pixels of all images of a request together (128 million)
``METAL_IDENTITY``             address by which gateways reach this engine, which it proves to be
``METAL_SECRETS``              directory of ``engine.yaml`` (what the engine was started with),
                               ``accepted.json`` (what counts now, ``keys.py``), ``api_key``,
                               ``admin_api_key``
=============================  ====================================================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .keys import ADMIN_KEY, FILE, USER_KEY, Accepted, KeyFile

MAX_REQUEST_BYTES = 64 * 2**20
REQUEST_SECONDS = 60.0
MAX_IMAGE_PIXELS = 128_000_000
CONFIG = "engine.yaml"
_LINE = re.compile(r'^(admin-)?api-key: "([^"\s]+)"$', re.MULTILINE)


@dataclass(frozen=True)
class Settings:
    """The guard's settings; sizes in bytes, times in seconds."""

    user_key: str | None = None
    admin_key: str | None = None
    """Keys that the engine was started with, and accepts from the guard."""
    accepted: KeyFile | None = None
    """Keys that are valid now; without such a file, those two."""
    secrets: tuple[str, ...] = ()
    """Everything that no answer may contain, longest first."""
    served_name: str | None = None
    """The model name that requests may give; None: any."""
    adapters: bool = False
    """Whether ``NAME:ADAPTER`` names a LoRA adapter of it."""
    media_domains: frozenset[str] = frozenset()
    max_request_bytes: int = MAX_REQUEST_BYTES
    request_seconds: float = REQUEST_SECONDS
    max_image_pixels: int = MAX_IMAGE_PIXELS
    identity: str | None = None
    """Address by which gateways reach this engine."""


def read_settings(environment: Mapping[str, str], argv: Sequence[str]) -> Settings:
    """Read all settings.

    Raises:
        ValueError: a number is invalid, or not positive.
        OSError: a key in the given keys' directory can't be read.
    """
    directory = environment.get("METAL_SECRETS")
    keys = _keys(Path(directory)) if directory else {}
    domains = environment.get("METAL_MEDIA_DOMAINS", "").split(",")
    return Settings(
        user_key=keys.get(USER_KEY),
        admin_key=keys.get(ADMIN_KEY),
        accepted=_accepted(Path(directory), keys) if directory else None,
        secrets=tuple(sorted(keys.values(), key=len, reverse=True)),
        served_name=_after(argv, "--served-model-name"),
        adapters=any(word.split("=")[0] in {"--enable-lora", "--lora-paths"} for word in argv),
        media_domains=frozenset(domain.strip().lower() for domain in domains if domain.strip()),
        max_request_bytes=int(_number(environment, "METAL_MAX_REQUEST_BYTES", MAX_REQUEST_BYTES)),
        request_seconds=_number(environment, "METAL_REQUEST_SECONDS", REQUEST_SECONDS),
        max_image_pixels=int(_number(environment, "METAL_MAX_IMAGE_PIXELS", MAX_IMAGE_PIXELS)),
        identity=environment.get("METAL_IDENTITY") or None,
    )


def _keys(directory: Path) -> dict[str, str]:
    """Return the engine's own keys, by name: those of ``engine.yaml``, else those in ``<directory>/*_key``.

    The engine has just read ``engine.yaml``; the others may be newer. An empty file is not a key.
    """
    found = {path.name: path.read_text(encoding="utf-8").strip() for path in directory.glob("*_key")}
    if (directory / CONFIG).exists():
        lines = _LINE.findall((directory / CONFIG).read_text(encoding="utf-8"))
        found |= {ADMIN_KEY if admin else USER_KEY: key for admin, key in lines}
    return {name: key for name, key in found.items() if key}


def _accepted(directory: Path, keys: Mapping[str, str]) -> KeyFile | None:
    """Return the file of valid keys, or None if the engine does not have both of its keys."""
    if USER_KEY not in keys or ADMIN_KEY not in keys:
        return None
    path = directory / FILE
    if path.exists():
        return KeyFile(path)
    return KeyFile(path, Accepted((keys[USER_KEY],), (keys[ADMIN_KEY],)))


def _number(environment: Mapping[str, str], name: str, default: float) -> float:
    value = float(environment.get(name) or default)
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} is {value}, expected a positive number")
    return value


def _after(argv: Sequence[str], flag: str) -> str | None:
    """Return the value of a command-line flag; the last one counts, as for the engine."""
    found = None
    for place, word in enumerate(argv):
        if word == flag and place + 1 < len(argv):
            found = argv[place + 1]
        elif word.startswith(f"{flag}="):
            found = word.partition("=")[2]
    return found

"""The pool of a gateway: its workers, and which of them an operator has drained.

Three files on the gateway's host:

- the configuration (``admin.json``), written by the role: every worker of the plan, and other paths;
- the drained workers (``drained.json``), written only by ``metal gateway drain`` and ``undrain``;
- the manifest (``workers.json``), made from the two: smg's own file discovery reads it whenever it changes,
  adds new workers, drains removed ones, and retries unreachable ones. A restarted gateway reads the same
  file, so a drained worker stays out.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from minimax_metal.common.documents import read_json
from minimax_metal.common.errors import UserError
from minimax_metal.common.files import write_atomic
from minimax_metal.common.text import has_controls, one_line

MANIFEST_VERSION: Final = 1
"""Version of smg's discovery manifest (smg 1.13: ``invalid discovery manifest: missing field version``)."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One endpoint behind the gateway."""

    url: str
    host: str
    """Name in the inventory."""
    proves: bool = False
    """Whether it can prove to be the engine."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """The role's configuration for commands on the gateway's host; it has no keys, only their paths."""

    url: str
    """Where this host reaches its gateway."""
    ca_file: Path | None
    admin_key_file: Path | None
    api_key_file: Path | None
    """Key of the engines, which report the number of requests in flight."""
    engine_ca_file: Path | None
    manifest: Path
    drained: Path
    workers: tuple[Worker, ...]


def read_configuration(path: Path) -> Configuration:
    """Read ``admin.json``.

    Raises:
        UserError: it can't be read, is invalid, or names one worker twice.
    """
    raw = _read_json(path, "the gateway's configuration")

    def file(name: str) -> Path | None:
        return Path(raw[name]) if raw.get(name) else None

    try:
        workers = tuple(
            Worker(worker_url(entry["url"]), one_line(str(entry["host"]), 255), entry.get("proves") is True)
            for entry in raw["workers"]
        )
        found = Configuration(
            url=worker_url(raw["url"]),
            ca_file=file("ca_file"),
            admin_key_file=file("admin_key_file"),
            api_key_file=file("api_key_file"),
            engine_ca_file=file("engine_ca_file"),
            manifest=Path(raw["manifest"]),
            drained=Path(raw["drained"]),
            workers=workers,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: found no usable {error}; expected the file that the role writes; run "
            "playbooks/gateway.yml"
        ) from None
    urls = [worker.url for worker in workers]
    for url in urls:
        if urls.count(url) > 1:
            hosts = " and ".join(worker.host for worker in workers if worker.url == url)
            raise UserError(
                f"{path}: found {url} for {hosts}; expected distinct URLs; set metal_address for both"
            )
    return found


def replace_workers(path: Path, host: str, urls: Iterable[str]) -> bool:
    """Replace one host's workers in the configuration in place; return whether it changed.

    Raises:
        UserError: the configuration can't be read, or one of the URLs is another host's.
    """
    raw = _read_json(path, "the gateway's configuration")
    read_configuration(path)
    before: list[Any] = raw["workers"]
    # Workers that had to prove to be the engine must do so at their new ports too: another program may listen
    # there.
    proves = any(one.get("proves") is True for one in before if str(one["host"]) == host)
    kept = {"proves": True} if proves else {}
    wanted = [{"url": worker_url(url), "host": host, **kept} for url in dict.fromkeys(urls)]
    place = next((at for at, one in enumerate(before) if str(one["host"]) == host), len(before))
    others = [one for one in before if str(one["host"]) != host]
    for one in others:
        if worker_url(one["url"]) in {new["url"] for new in wanted}:
            raise UserError(
                f"{path}: found {one['url']} for {one['host']}; expected distinct URLs for all hosts"
            )
    raw["workers"] = [*others[:place], *wanted, *others[place:]]
    text = json.dumps(raw, indent=4, separators=(",", ": ")) + "\n"
    if raw["workers"] == before:
        return False
    state = path.stat()
    write_atomic(path, text, mode=state.st_mode & 0o777, owner=(state.st_uid, state.st_gid))
    return True


def worker_url(text: str) -> str:
    """Return a worker's URL in its comparable form: scheme, host and port only.

    Raises:
        UserError: it is not a URL.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    host = parts.hostname or ""
    usable = host and not has_controls(host) and not any(one.isspace() for one in host)
    if parts.scheme not in {"http", "https"} or not usable or port is None or parts.path.strip("/"):
        raise UserError(
            f"{one_line(text, 200)!r} is not the URL of a worker; write it like http://gpu01:8000"
        )
    name = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{name}:{port}"


def read_key(path: Path | None) -> str | None:
    """Return the key in use in a file, its first line; None without a file.

    Raises:
        UserError: the file can't be read.
    """
    if path is None:
        return None
    try:
        return path.read_text(encoding="ascii").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: found no key: {error}; run as root, or run playbooks/gateway.yml") from None


def read_drained(path: Path) -> frozenset[str]:
    """Return the drained workers' URLs; empty if nothing was ever drained.

    Raises:
        UserError: the file exists and is broken: this must not bring a worker back.
    """
    if not path.exists():
        return frozenset()
    raw = _read_json(path, "the list of drained workers")
    if not isinstance(raw, Mapping) or not isinstance(raw.get("drained"), list):
        raise UserError(
            f'{path}: found no list of drained workers; expected {{"drained": [URL, ...]}}; fix the file'
        )
    return frozenset(str(url) for url in raw["drained"])


def write_drained(path: Path, drained: Iterable[str]) -> bool:
    """Write the drained workers' URLs; return whether that changed the file."""
    return _write_json(path, {"drained": sorted(drained)})


def read_withheld(configuration: Configuration) -> frozenset[str]:
    """Return the workers that have not proved to be the engine, including those never asked."""
    able = frozenset(worker.url for worker in configuration.workers if worker.proves)
    try:
        raw = read_json(_withheld(configuration).read_bytes())
        return able & (frozenset(map(str, raw["withheld"])) | (able - frozenset(map(str, raw["asked"]))))
    except (OSError, ValueError, KeyError, TypeError):
        return able


def write_withheld(configuration: Configuration, withheld: Iterable[str]) -> bool:
    """Write them; return whether that changed the file."""
    asked = sorted(worker.url for worker in configuration.workers if worker.proves)
    return _write_json(_withheld(configuration), {"asked": asked, "withheld": sorted(withheld)})


def _withheld(configuration: Configuration) -> Path:
    return configuration.drained.with_name("withheld.json")


def write_manifest(configuration: Configuration, drained: Iterable[str]) -> bool:
    """Write the workers that may get requests; return whether that changed the file."""
    away = set(drained)
    workers = [
        {"id": worker.url, "url": worker.url} for worker in configuration.workers if worker.url not in away
    ]
    return _write_json(configuration.manifest, {"version": MANIFEST_VERSION, "workers": workers})


def published(manifest: Path) -> frozenset[str]:
    """Return the URLs in a manifest; none without one."""
    try:
        return frozenset(entry["url"] for entry in read_json(manifest.read_bytes())["workers"])
    except (OSError, ValueError, KeyError, TypeError):
        return frozenset()


@contextmanager
def only_one(configuration: Configuration) -> Iterator[None]:
    """Lock the pool against other commands; the kernel releases it when this process ends."""
    configuration.drained.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with configuration.drained.with_suffix(".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _read_json(path: Path, what: str) -> Any:
    try:
        return read_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: found no {what}: {error.strerror}; run playbooks/gateway.yml") from None
    except ValueError as error:
        raise UserError(f"{path}: {what} is not JSON: {error}; run playbooks/gateway.yml") from None


def _write_json(path: Path, content: Mapping[str, Any]) -> bool:
    """Write atomically, readable by all (there is no secret in it); return whether it changed."""
    text = json.dumps(content, indent=1) + "\n"
    try:
        if path.read_text(encoding="utf-8") == text:
            return False
    except OSError:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).rename(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return True

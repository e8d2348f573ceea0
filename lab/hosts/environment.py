"""Settings of this machine that hosts need to fetch packages: resolver, CAs, proxies, package indexes."""

from __future__ import annotations

import configparser
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from lab.hosts.errors import LabError

CA_DIRECTORY: Final = Path("/usr/local/share/ca-certificates")
CA_BUNDLE: Final = "/etc/ssl/certs/ca-certificates.crt"
RESOLVERS: Final = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
PIP_FILES: Final = (
    Path("/etc/xdg/pip/pip.conf"),
    Path("/etc/pip.conf"),
    Path("~/.pip/pip.conf"),
    Path("~/.config/pip/pip.conf"),
)
UV_FILES: Final = (Path("/etc/uv/uv.toml"), Path("~/.config/uv/uv.toml"))
PROXIES: Final = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
PIP_KEYS: Final = ("index-url", "extra-index-url", "trusted-host", "timeout", "retries")
HERE_ONLY: Final = re.compile(r"^(file:|/|\.|~)|//(localhost|127\.|\[::1\])")


def resolver(files: tuple[Path, ...] = RESOLVERS) -> tuple[str, list[str]]:
    """Return a resolv.conf for the hosts and its name servers.

    Hosts can't reach a stub resolver on this machine's loopback, so the list behind it is used.

    Raises:
        LabError: there is no name server that hosts can reach.
    """
    for path in files:
        if not path.exists():
            continue
        lines = [line for line in path.read_text().splitlines() if not line.startswith(("#", ";"))]
        servers = [
            line.split()[1] for line in lines if line.startswith("nameserver") and len(line.split()) > 1
        ]
        if servers and not any(server.startswith("127.") or server == "::1" for server in servers):
            return "\n".join(lines).strip() + "\n", servers
    raise LabError(
        "no name server that lab hosts can reach: /etc/resolv.conf names only this machine's loopback"
    )


def ca_certificates() -> dict[str, str]:
    """Return the machine's own CA certificates by file name."""
    if not CA_DIRECTORY.is_dir():
        return {}
    return {path.name: path.read_text() for path in sorted(CA_DIRECTORY.rglob("*.crt")) if path.is_file()}


def _reachable(value: str) -> str:
    """Return the words of a setting that are valid on another host."""
    return " ".join(word for word in value.split() if not HERE_ONLY.search(word))


def pip_settings(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return pip's package-index settings, from its files and ``PIP_*``, without this machine's own paths."""
    found: dict[str, str] = {}
    for path in PIP_FILES:
        parser = configparser.RawConfigParser()
        parser.read(path.expanduser())
        for section in ("global", "install"):
            if parser.has_section(section):
                found.update({key: value for key, value in parser.items(section) if key in PIP_KEYS})
    for key in PIP_KEYS:
        value = environment.get(f"PIP_{key.upper().replace('-', '_')}")
        if value:
            found[key] = value
    return {key: words for key, value in found.items() if (words := _reachable(value))}


def uv_indexes(pip: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> dict[str, list[str]]:
    """Return uv's package indexes: ``default`` (at most one) and ``extra``.

    From uv's own files and ``UV_*``; if those name none, from pip's: a machine with a mirror needs it for
    both.
    """
    default: list[str] = []
    extra: list[str] = []
    for path in UV_FILES:
        if path.expanduser().is_file():
            table = tomllib.loads(path.expanduser().read_text())
            default = [str(table["index-url"])] if "index-url" in table else default
            extra += [str(url) for url in table.get("extra-index-url", [])]
            for index in table.get("index", []):
                (default if index.get("default") else extra).append(str(index.get("url", "")))
    named = environment.get("UV_DEFAULT_INDEX") or environment.get("UV_INDEX_URL")
    default = [named] if named else default
    listed = environment.get("UV_INDEX") or environment.get("UV_EXTRA_INDEX_URL") or ""
    extra += [url.rpartition("=")[2] if "=http" in url else url for url in listed.split()]
    default = default or pip.get("index-url", "").split()
    extra = extra or pip.get("extra-index-url", "").split()
    return {
        "default": [url for url in default if url and not HERE_ONLY.search(url)][-1:],
        "extra": [url for url in extra if url and not HERE_ONLY.search(url)],
    }


def variables(
    reached_directly: Sequence[str], own_cas: bool, environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the environment of everything on a host: reachable proxies, and the CA bundle.

    Args:
        reached_directly: The lab's addresses, which no proxy can reach; one by one, since few programs
            understand a network here.
        own_cas: Whether this machine has CAs of its own: Python programs have their own bundle and must
            be told of the system's.
        environment: This machine's.
    """
    found: dict[str, str] = {}
    for name in PROXIES:
        value = environment.get(name) or environment.get(name.upper())
        if value and (name == "no_proxy" or not HERE_ONLY.search(value)):
            found[name] = value
    if set(found) - {"no_proxy"}:
        found["no_proxy"] = ",".join(
            filter(None, [found.get("no_proxy", ""), *reached_directly, "localhost", "127.0.0.1"])
        )
    else:
        found.pop("no_proxy", None)
    if own_cas:
        found |= {"SSL_CERT_FILE": CA_BUNDLE, "REQUESTS_CA_BUNDLE": CA_BUNDLE}
    return found


def host_files(reached_directly: Sequence[str], resolv_conf: str) -> dict[str, str]:
    """Return the files, by path on the host, that make it fetch packages like this machine."""
    own_cas = bool(ca_certificates())
    pip = pip_settings()
    indexes = uv_indexes(pip)
    environment = variables(reached_directly, own_cas)
    files = {"etc/resolv.conf": resolv_conf}
    pip_lines = [f"{key} = {value}" for key, value in sorted(pip.items())]
    if own_cas:
        pip_lines.append(f"cert = {CA_BUNDLE}")
    if pip_lines:
        files["etc/pip.conf"] = "[global]\n" + "\n".join(pip_lines) + "\n"
    uv_lines = [f'[[index]]\nurl = "{url}"\n' for url in indexes["extra"]]
    uv_lines += [f'[[index]]\nurl = "{url}"\ndefault = true\n' for url in indexes["default"]]
    if uv_lines:
        files["etc/uv/uv.toml"] = "\n".join(uv_lines)
    if environment:
        assignments = [f"{name}={value}" for name, value in sorted(environment.items())]
        # For programs started through PAM (ssh, sudo), and for those that systemd starts.
        files["etc/environment"] = "\n".join(assignments) + "\n"
        quoted = " ".join(f'"{assignment}"' for assignment in assignments)
        files["etc/systemd/system.conf.d/50-fetching.conf"] = f"[Manager]\nDefaultEnvironment={quoted}\n"
    return files

"""What the fleet's cache is told: its origins, its archives, and who may ask it.

Decided from the plans of the hosts that are to ask it. The cache itself is nginx, which knows nothing of
packages: what it keeps is verified on the hosts, by the locks' hashes and the repositories' signatures.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from html.parser import HTMLParser
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

PROBE: Final = "packaging"
"""The project whose page of the index says where files lie: small, and part of every lock here."""
Resolver = Callable[[str], Iterable[str]]


def decide(
    members: Mapping[str, Mapping[str, Any]],
    allowed: Sequence[str],
    known: Sequence[str],
    resolve: Resolver | None = None,
) -> dict[str, Any]:
    """The table of one cache.

    Args:
        members: every host of the fleet: ``plan`` (or None), ``archives`` that it is to ask through the cache
            (or None), ``address`` by which Ansible reaches it.
        allowed: networks that may ask, instead of the members' addresses.
        known: archives that the cache knew before; a run with fewer hosts forgets none.
        resolve: name to addresses; the system's by default.

    Returns:
        ``port``, ``index`` (None: not named by any setting), ``python``, ``vendor``, ``archives`` and
        ``clients``, or just ``problem``.
    """
    tables = {
        host: member["plan"]["mirrors"]
        for host, member in members.items()
        if member.get("plan") and member["plan"].get("mirrors") and member["plan"]["mirrors"]["cache_url"]
    }
    if not tables:
        return {
            "problem": "found hosts in group cache_hosts and none that is to ask them, expected "
            "metal_cache_url; set it for gpu_hosts, to http://HOST:PORT of the host in cache_hosts"
        }
    first, table = next(iter(tables.items()))
    for host, other in tables.items():
        for what, mine, theirs in (
            ("metal_cache_url", table["cache_url"], other["cache_url"]),
            ("origins", table["origins"], other["origins"]),
        ):
            if mine != theirs:
                return {
                    "problem": f"found other {what} on {first} ({mine}) than on {host} ({theirs}), expected "
                    "one table for all hosts of a cache; set the metal_* variables for the whole group"
                }
    clients, unknown = list(allowed), []
    if not clients:
        for host, member in members.items():
            found = sorted(set((resolve or _resolve)(str(member.get("address") or host))))
            clients += found
            unknown += [] if found else [host]
    if unknown:
        return {
            "problem": f"found no address of {', '.join(unknown)}, expected names that the controller can "
            "resolve; set artefact_cache_allowed_cidrs to the fleet's networks"
        }
    for client in clients:
        try:
            ip_network(client, strict=False)
        except ValueError:
            return {
                "problem": f"found {client} among artefact_cache_allowed_cidrs, expected a network such as "
                "10.0.0.0/24; put the variable right"
            }
    archives = {one for member in members.values() for one in member.get("archives") or ()} | set(known)
    return {
        "problem": None,
        "port": urlsplit(table["cache_url"]).port,
        "index": table["origins"]["package_index"],
        "python": _origin(table["origins"]["python"]),
        "vendor": _origin(table["origins"]["vendor"]),
        "archives": [_origin(one) for one in sorted(archives)],
        "clients": sorted(set(clients)),
    }


def _origin(url: str) -> dict[str, str]:
    """An origin as nginx is told of it: what to ask, and the path by which it is asked for."""
    parts = urlsplit(url.rstrip("/"))
    return {"url": url.rstrip("/"), "path": f"{parts.scheme}/{parts.netloc}{parts.path}"}


def _resolve(name: str) -> list[str]:
    try:
        return [str(ip_address(name))]
    except ValueError:
        pass
    try:
        return [str(one[4][0]) for one in socket.getaddrinfo(name, None, proto=socket.IPPROTO_TCP)]
    except OSError:
        return []


def index_origins(page: str, url: str) -> list[str]:
    """Where a package index has its files: ``scheme://host`` of every link on one of its pages.

    Both forms of answer are read, JSON (PEP 691) and HTML (PEP 503); links may be relative to the page.
    """
    try:
        links = [str(file["url"]) for file in json.loads(page)["files"]]
    except (ValueError, KeyError, TypeError):
        reader = _Links()
        reader.feed(page)
        links = reader.links
    found = {urlsplit(urljoin(url, link))[:2] for link in links}
    return sorted(f"{scheme}://{host}" for scheme, host in found if scheme in {"http", "https"} and host)


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if tag == "a" and name == "href" and value]


def default_index() -> str | None:
    """The package index that uv asks on this machine when nobody names one; None where uv is not there."""
    beside = Path(sys.executable).with_name("uv")
    program = str(beside) if beside.exists() else shutil.which("uv")
    if program is None:
        return None
    done = subprocess.run(
        [program, "pip", "compile", "--quiet", "--no-header", "--emit-index-url", "-"],
        input="",
        check=False,
        capture_output=True,
        text=True,
    )
    match = re.search(r"^--index-url (https?://\S+)$", done.stdout, re.MULTILINE)
    return match[1].rstrip("/") if match else None


def name_servers(resolv_conf: str) -> list[str]:
    """The name servers of a resolv.conf, as nginx writes them."""
    found = re.findall(r"^nameserver\s+(\S+)", resolv_conf, re.MULTILINE)
    return [f"[{one.split('%')[0]}]" if ":" in one else one for one in found]


def member(variables: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`decide` wants to know of a host, from its Ansible variables."""
    sources = variables.get("__package_sources") or {}
    return {
        "plan": variables.get("metal_plan"),
        "archives": sources.get("origins"),
        "address": next((variables[n] for n in ("metal_address", "ansible_host") if variables.get(n)), None),
    }


def file_places(files: Sequence[str], index: str) -> list[dict[str, str]]:
    """Where files of the index are asked for: on each of their servers, and beside the index itself."""
    parent = index.rstrip("/").rpartition("/")[0]
    places = [{"location": f"/pypi/files/{one.replace('://', '/')}/", "base": one} for one in files]
    own = "{0.scheme}://{0.netloc}".format(urlsplit(index))
    if own not in files:
        places.append({"location": f"/pypi/files/{own.replace('://', '/')}/", "base": own})
    return [*places, {"location": "/pypi/", "base": parent}]


def archive_places(table: Mapping[str, Any]) -> list[dict[str, str]]:
    """Where archives are asked for: NVIDIA's, and the distributions' by the address of their origin."""
    places = [{"location": "/nvidia/", "base": table["vendor"]["url"]}]
    for archive in table["archives"]:
        parts = urlsplit(archive["url"])
        places.append({"location": f"/apt/{archive['path']}/", "base": f"{parts.scheme}://{parts.netloc}"})
    return places

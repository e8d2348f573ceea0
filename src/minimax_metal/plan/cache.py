"""Configuration of the fleet's cache: its origins, its archives, and its clients.

Decided from the plans of the hosts that use it. The cache itself is nginx, which knows nothing of packages:
hosts verify what it stores, by the locks' hashes and the repositories' signatures. Everything in its
configuration is checked here, because an index's pages and hosts' sources are foreign text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html.parser import HTMLParser
from ipaddress import ip_address, ip_network
from typing import Any, Final
from urllib.parse import SplitResult, urljoin, urlsplit

from minimax_metal.common.documents import read_json
from minimax_metal.common.text import one_line
from minimax_metal.plan.mirrors import is_url

PROBE: Final = "packaging"
"""The project whose index page shows where files are: it is small, and part of every lock here."""
_NETLOC = re.compile(r"[A-Za-z0-9.-]+(:\d{1,5})?|\[[0-9A-Fa-f:]+\](:\d{1,5})?")
_PATH = re.compile(r"(/[A-Za-z0-9._-]+)+")
_SERVERS: Final = 16
"""Servers on which an index may have its files."""
Resolver = Callable[[str], Iterable[str]]


def decide(
    members: Mapping[str, Mapping[str, Any]],
    allowed: Sequence[str],
    known: Sequence[str],
    resolve: Resolver,
) -> dict[str, Any]:
    """Return the table of one cache.

    Args:
        members: every host of the fleet: ``plan`` (or None), ``archives`` that it requests through the cache
            (or None), ``address`` by which Ansible reaches it.
        allowed: networks that may connect, instead of the members' addresses.
        known: archives that the cache already knew; a run with fewer hosts keeps them.
        resolve: name to addresses.

    Returns:
        ``port``, ``index`` (None: not named by any setting), ``python``, ``vendor``, ``archives`` and
        ``clients``, or only ``problem``.
    """
    tables = {
        host: member["plan"]["mirrors"]
        for host, member in members.items()
        if member.get("plan") and member["plan"].get("mirrors") and member["plan"]["mirrors"]["cache_url"]
    }
    if not tables:
        return {
            "problem": "found hosts in group cache_hosts and no host that uses them, expected "
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
                    "problem": f"found different {what} on {first} ({mine}) and on {host} "
                    f"({theirs}), expected the same for all hosts of a cache; set the metal_* variables "
                    "for the whole group"
                }
    clients, unknown = list(allowed), []
    if not clients:
        for host, member in members.items():
            found = sorted(set(resolve(str(member.get("address") or host))))
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
                "10.0.0.0/24; fix the variable"
            }
    archives = {one for member in members.values() for one in member.get("archives") or ()} | set(known)
    for url in (*sorted(archives), table["origins"]["python"], table["origins"]["vendor"]):
        if not is_url(url):
            return {
                "problem": f"found the archive {one_line(url, 120)}, expected an http(s) URL without "
                f"quotes, spaces "
                "or credentials; fix the source on the host that names it, or set "
                "metal_distribution_mirror_url"
            }
    return {
        "problem": None,
        "port": urlsplit(table["cache_url"]).port,
        "index": table["origins"]["package_index"],
        "python": _origin(table["origins"]["python"]),
        "vendor": _origin(table["origins"]["vendor"]),
        "archives": [_origin(one) for one in sorted(archives)],
        "clients": sorted(set(clients)),
    }


def settings_problem(given: Mapping[str, Any]) -> str | None:
    """Return which of the role's settings is not allowed in nginx's configuration or in a unit, or None.

    Args:
        given: ``index_url``, ``directory``, ``resolvers``, ``redirects``.
    """
    directory = given.get("directory")
    if not isinstance(directory, str) or not _PATH.fullmatch(directory) or ".." in directory.split("/"):
        return (
            f"found artefact_cache_directory {one_line(str(directory), 80)}, expected an absolute path of "
            f"letters, "
            "digits, dots, dashes and underscores; fix it"
        )
    for name in ("index_url", "redirects"):
        urls = given.get(name) or []
        for url in urls if isinstance(urls, list | tuple) else [urls]:
            if not is_url(url):
                return (
                    f"found {one_line(str(url), 120)} in artefact_cache_{name}, expected an http(s) URL "
                    f"without "
                    "credentials, quotes or spaces; fix it"
                )
    resolvers = given.get("resolvers") or []
    for one in resolvers if isinstance(resolvers, list | tuple) else [resolvers]:
        host = str(one).strip("[]") if str(one).startswith("[") else str(one).rpartition(":")[0] or str(one)
        try:
            ip_address(host)
        except ValueError:
            return (
                f"found {one_line(str(one), 60)} in artefact_cache_resolvers, expected addresses of name "
                f"servers; "
                "fix it"
            )
    return None


def _origin(url: str) -> dict[str, str]:
    """Return an origin for nginx: its URL, and the path under which hosts request it."""
    parts = urlsplit(url.rstrip("/"))
    return {"url": url.rstrip("/"), "path": f"{parts.scheme}/{parts.netloc}{parts.path}"}


def index_origins(page: str, url: str) -> list[str]:
    """Return where a package index has its files: ``scheme://host`` of every link on one of its pages.

    Both formats are parsed, JSON (PEP 691) and HTML (PEP 503); links may be relative to the page.
    """
    try:
        links = [str(file["url"]) for file in read_json(page)["files"]]
    except (ValueError, KeyError, TypeError):
        reader = _Links()
        reader.feed(page)
        links = reader.links
    own = urlsplit(url)
    found: set[str] = set()
    for link in links:
        try:
            parts = urlsplit(urljoin(url, link))
        except ValueError:
            continue
        if (parts.scheme, parts.netloc) == (own.scheme, own.netloc) or _may_have_files(parts, own):
            found.add(f"{parts.scheme}://{parts.netloc}")
    return sorted(found)[:_SERVERS]


def _may_have_files(parts: SplitResult, index: SplitResult) -> bool:
    """Return whether an index may send the cache to a server: by https if it uses that itself, never to an
    address.

    The page is foreign text. Names that lead into the cache's own network (an address, a name without a dot)
    are refused, unless the index itself is there, as with a site's own index.
    """
    if parts.scheme not in ({"https"} if index.scheme == "https" else {"http", "https"}):
        return False
    if not _NETLOC.fullmatch(parts.netloc):
        return False
    host, own = parts.hostname or "", index.hostname or ""
    return _is_public(host) or not _is_public(own)


def _is_public(host: str) -> bool:
    """Return whether a host name looks like a server on the Internet; addresses and bare names don't."""
    return re.fullmatch(
        r"[a-z0-9-]+(\.[a-z0-9-]+)*\.[a-z][a-z0-9-]*", host
    ) is not None and not host.endswith((".local", ".localhost", ".internal", ".lan", ".home.arpa"))


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if tag == "a" and name == "href" and value]


def name_servers(resolv_conf: str) -> list[str]:
    """Return the name servers of a resolv.conf in nginx's format."""
    found: list[str] = []
    for one in re.findall(r"^nameserver\s+(\S+)", resolv_conf, re.MULTILINE):
        try:
            address = ip_address(one.split("%")[0])
        except ValueError:
            continue
        found.append(f"[{address}]" if address.version == 6 else str(address))
    return found


def member(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a host's Ansible variables that :func:`decide` needs."""
    sources = variables.get("__package_sources") or {}
    return {
        "plan": variables.get("metal_plan"),
        "archives": sources.get("origins"),
        "address": next((variables[n] for n in ("metal_address", "ansible_host") if variables.get(n)), None),
    }


def file_places(files: Sequence[str], index: str) -> list[dict[str, str]]:
    """Return where the index's files are requested: on each of their servers, and beside the index."""
    parent = index.rstrip("/").rpartition("/")[0]
    places = [{"location": f"/pypi/files/{one.replace('://', '/')}/", "base": one} for one in files]
    own = "{0.scheme}://{0.netloc}".format(urlsplit(index))
    if own not in files:
        places.append({"location": f"/pypi/files/{own.replace('://', '/')}/", "base": own})
    return [*places, {"location": "/pypi/", "base": parent}]


def archive_places(table: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return where archives are requested: NVIDIA's, and the distributions' by their origin's address."""
    places = [{"location": "/nvidia/", "base": table["vendor"]["url"]}]
    for archive in table["archives"]:
        parts = urlsplit(archive["url"])
        places.append({"location": f"/apt/{archive['path']}/", "base": f"{parts.scheme}://{parts.netloc}"})
    return places

"""Where a host fetches everything that is big or remote: one table of URLs, decided from the settings.

Three kinds of place, one behind the other. The *origins* are public servers or mirrors of them (a preset of
``metal_mirrors``, and the variables that name single URLs). The fleet's *cache* (``metal_cache_url``) stands
between the hosts and the origins. A *served bundle* (``metal_mirrors`` as a URL) replaces the origins.

A cache and a served bundle have the same paths, so that hosts need not know which of the two they ask:

====================  ==========================================================================
``/pypi/simple/``     Python package index
``/python/``          Pythons that uv brings
``/nvidia/``          NVIDIA's package repositories
``/apt/``             archives of distributions: ``debian``, ``debian-security``, ``ubuntu`` in a bundle,
                      ``SCHEME/HOST/PATH`` of the origin in a cache
``/weights/``         weights, ``ORG/NAME/REVISION`` (bundle only)
====================  ==========================================================================

What comes from there is verified as what comes from anywhere: by the hashes of the locks, the signatures of
the repositories, the manifest of the weights. So neither can change a byte, and plain HTTP will do. What they
can do is to give nothing, or old lists for as long as those are valid.
"""

from __future__ import annotations

import re
from dataclasses import replace
from urllib.parse import urlsplit

from minimax_metal.catalog import Catalog
from minimax_metal.catalog.schema import Mirrors
from minimax_metal.plan.findings import Findings, near
from minimax_metal.plan.model import MirrorsPlan, OriginsPlan
from minimax_metal.plan.settings import Settings

ORIGIN = "origin"
"""The preset that others extend."""
TIMEOUT_SECONDS = 600
"""How long uv and pip wait for a byte from a cache, which may still be waiting for its own origin."""
# Printable ASCII, as in URLs; nothing that ends a word or a line, or begins another, in any file.
_URL = re.compile(r"https?://[A-Za-z0-9._\[\]:-]+(/(?:(?![\"';{}$\\])[!-~])*)?")
_PROXY = re.compile(r"https?://((?:(?![\"';{}$\\/@])[!-~]){1,300}@)?[A-Za-z0-9._\[\]:-]+/?")
_CACHE = re.compile(r"http://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\]):(\d{1,5})")


def with_mirrors(settings: Settings, catalog: Catalog, found: Findings) -> tuple[Settings, MirrorsPlan]:
    """Return the settings with the preset's defaults, and the table of URLs.

    An invalid URL, an unknown preset and a cache without a port are refused.
    """
    settings = _without_bad_urls(settings, found)
    cache = settings.cache_url.rstrip("/") if settings.cache_url else None
    if cache is not None and not _is_cache(cache):
        found.refuse(
            "mirror-url",
            f"metal_cache_url {cache}",
            "http://HOST:PORT of the host in group cache_hosts",
            "write it like http://10.0.0.5:8642",
        )
        cache = None
    origins = _origins(settings, catalog, found)
    bundle = bundle_url(settings)
    if bundle and "weights_source" not in settings.given:
        settings = replace(settings, weights_source=("bundle",))
    elif origins.weights and "weights_source" not in settings.given:
        settings = replace(settings, weights_source=origins.weights)
    if cache is None:
        return settings, MirrorsPlan(
            cache_url=None,
            bundle_url=bundle,
            package_index_url=origins.package_index,
            python_url=origins.python if settings.python_mirror or settings.mirrors else None,
            vendor_url=origins.vendor,
            distribution_url=origins.distribution,
            direct_hosts=_hosts(bundle),
            stale_lists=settings.frozen_sources,
            origins=origins,
        )
    return settings, MirrorsPlan(
        cache_url=cache,
        bundle_url=bundle,
        package_index_url=f"{cache}/pypi/simple",
        python_url=f"{cache}/python",
        vendor_url=f"{cache}/nvidia",
        distribution_url=through(cache, origins.distribution) if origins.distribution else None,
        direct_hosts=_hosts(cache),
        stale_lists=settings.frozen_sources,
        origins=origins,
    )


def through(cache: str, url: str) -> str:
    """Return the URL by which a cache is asked for a file of a distribution's archive."""
    parts = urlsplit(url)
    return f"{cache}/apt/{parts.scheme}/{parts.netloc}{parts.path.rstrip('/')}"


def pip_environment(mirrors: MirrorsPlan) -> dict[str, str]:
    """Return pip's settings for the package index. Plain HTTP is trusted: the lock has the hashes."""
    index = mirrors.package_index_url
    if not index:
        return {}
    values = {"PIP_INDEX_URL": index}
    if index.startswith("http://"):
        values["PIP_TRUSTED_HOST"] = urlsplit(index).netloc
    if mirrors.cache_url:
        values["PIP_DEFAULT_TIMEOUT"] = str(TIMEOUT_SECONDS)
    return values


def uv_environment(mirrors: MirrorsPlan) -> dict[str, str]:
    """Return uv's settings for the package index and for the source of its Pythons."""
    values = {
        "UV_DEFAULT_INDEX": mirrors.package_index_url,
        "UV_PYTHON_INSTALL_MIRROR": mirrors.python_url,
        "UV_HTTP_TIMEOUT": str(TIMEOUT_SECONDS) if mirrors.cache_url else None,
    }
    return {name: value for name, value in values.items() if value}


def bundle_url(settings: Settings) -> str | None:
    """Return the URL of the served bundle, if ``metal_mirrors`` names one."""
    named = settings.mirrors or ""
    return named.rstrip("/") if "://" in named else None


def _without_bad_urls(settings: Settings, found: Findings) -> Settings:
    def checked(name: str, value: str | None) -> str | None:
        if not value or _URL.fullmatch(value) or (name == "metal_mirrors" and "://" not in value):
            return value
        found.refuse(
            "mirror-url",
            f"{name} {value}",
            "an http(s) URL without credentials, quotes or spaces",
            "fix the variable",
        )
        return None

    return replace(
        settings,
        mirrors=checked("metal_mirrors", settings.mirrors),
        package_index_url=checked("metal_package_index_url", settings.package_index_url),
        python_mirror=checked("metal_python_mirror", settings.python_mirror),
        vendor_repository_url=checked("metal_vendor_repository_url", settings.vendor_repository_url),
        distribution_mirror_url=checked("metal_distribution_mirror_url", settings.distribution_mirror_url),
    )


def _origins(settings: Settings, catalog: Catalog, found: Findings) -> OriginsPlan:
    """Return the preset's values, overridden by single variables."""
    base = catalog.mirrors[ORIGIN]
    bundle = bundle_url(settings)
    if bundle:
        base = Mirrors(
            package_index=f"{bundle}/pypi/simple",
            python=f"{bundle}/python",
            vendor=f"{bundle}/nvidia",
            distribution=f"{bundle}/apt",
        )
    chosen = base
    if settings.mirrors and not bundle:
        preset = catalog.mirrors.get(settings.mirrors)
        if preset is None:
            found.refuse(
                "mirror-unknown",
                f"metal_mirrors {settings.mirrors}",
                f"{', '.join(catalog.mirrors)}, or the URL of a served bundle",
                near(settings.mirrors, catalog.mirrors),
            )
        else:
            chosen = preset
    index = settings.package_index_url or chosen.package_index
    distribution = settings.distribution_mirror_url or chosen.distribution
    python = settings.python_mirror or chosen.python or base.python or ""
    vendor = settings.vendor_repository_url or chosen.vendor or base.vendor or ""
    return OriginsPlan(
        package_index=index.rstrip("/") if index else None,
        python=python.rstrip("/"),
        vendor=vendor.rstrip("/"),
        distribution=distribution.rstrip("/") if distribution else None,
        weights=chosen.weights,
    )


def is_url(text: object) -> bool:
    """Return whether a text is an http(s) URL that is safe in any file: no credentials, quotes or spaces."""
    return isinstance(text, str) and _URL.fullmatch(text) is not None


def is_proxy(text: object) -> bool:
    """Return whether a text is the URL of a proxy; it may contain user and password, but no line end."""
    return isinstance(text, str) and _PROXY.fullmatch(text) is not None


def _is_cache(url: str) -> bool:
    match = _CACHE.fullmatch(url)
    return match is not None and 1024 <= int(match[2]) <= 65535


def _hosts(url: str | None) -> tuple[str, ...]:
    host = urlsplit(url).hostname if url else None
    return (host,) if host else ()

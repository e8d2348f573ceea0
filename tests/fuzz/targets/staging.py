"""Readers of bundles, archives, package indexes and the cache's log."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any, Final

from minimax_metal.common import traffic
from minimax_metal.common.errors import UserError
from minimax_metal.controller.bundle import debian, serve, wheels
from minimax_metal.controller.bundle.wanted import Wheels
from minimax_metal.controller.bundle.wheels import choose
from minimax_metal.controller.bundle_store import document, signature
from minimax_metal.plan import archives, cache
from minimax_metal.plan.model import Plan
from tests.fuzz.target import SKIPPED, Form, Target, of_file, of_json, of_lines, of_text
from tests.fuzz.targets.artefacts import BUNDLE, PAGE

DEB822: Final = (
    b"# see sources.list(5)\nTypes: deb\nURIs: http://mirror.example.org/debian\nSuites: bookworm bookworm-updates\n"
    b"Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\nTypes: deb\n"
    b"URIs: mirror+file:/etc/apt/mirrors/debian.list\nSuites: bookworm-security\nComponents: main\nEnabled: no\n"
)
ONE_LINE: Final = (
    b"deb [arch=amd64 signed-by=/a.gpg] http://mirror.example.org/debian bookworm main contrib\n"
    b"deb-src http://mirror.example.org/debian bookworm-updates main # a\n# deb http://a b c\n"
)
RELEASE: Final = (
    b"Origin: Debian\nSuite: stable\nCodename: bookworm\nAcquire-By-Hash: yes\nSHA256:\n "
    + b"a" * 64 + b" 1234 main/binary-amd64/Packages.xz\n " + b"b" * 64 + b" 12 main/i18n/Translation-en.xz\n"
    b"SHA1:\n " + b"c" * 40 + b" 1234 main/binary-amd64/Packages.xz\n"
)  # fmt: skip
PYLOCK: Final = (
    b'lock-version = "1.0"\n[[packages]]\nname = "a"\nversion = "1"\n[[packages.wheels]]\n'
    b'url = "https://files/a-1-py3-none-any.whl"\nsize = 12\nhashes = {sha256 = "' + b"a" * 64 + b'"}\n'
)
_PLAN: Final = Plan.of_record({
    "platform": {"distribution": "debian", "codename": "bookworm"},
    "mirrors": {"cache_url": "http://cache:8080", "distribution_url": None, "stale_lists": True,
                "origins": {"distribution": "http://mirror.example.org/debian"}},
})  # fmt: skip


def _redirected(deb822: bool) -> Any:
    def read(text: str) -> object:
        archives.restore(text)
        path = "/etc/apt/sources.list.d/a.sources" if deb822 else "/etc/apt/sources.list"
        files = [{"path": path, "content": text}, {"path": "/etc/apt/mirrors/debian.list", "content": text}]
        found = archives.decide(files, _PLAN)
        return found["problem"]

    return read


def _listed(text: str) -> object:
    entries, _ = debian.listed(text)
    return debian.chosen(entries, "amd64", flat=False), debian.chosen(entries, "amd64", flat=True)


def _parsed(content: bytes) -> object:
    return document.parse(content, "manifest.json")


def _wheel(package: Any) -> object:
    order = {tag: number for number, tag in enumerate(wheels.tags(Wheels("engine/a", "3.12", "x86_64")))}
    found = choose(package, {"a" * 64}, order)
    return wheels.pages([found])


def _pylock(content: bytes) -> object:
    if re.search(rb"(?:\.[^.=\n]{0,80}){50}", content):
        return SKIPPED  # uv writes no such keys; Python's reader of TOML takes the square of their length
    try:
        found = tomllib.loads(content.decode("utf-8", "replace"))
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        return SKIPPED
    packages = found.get("packages")
    return [_wheel(one) for one in packages if isinstance(one, dict)] if isinstance(packages, list) else None


def _index(page: str) -> object:
    return cache.index_origins(page, "https://pypi.example.org/simple/a/")


def _traffic(lines: list[str]) -> object:
    return traffic.ratio(traffic.read(lines), ".deb")


def _signers(path: Path) -> object:
    return signature.public_keys(path)


def _listen(text: str) -> object:
    return serve.address(text[:300])


def _range(text: str) -> object:
    found = serve._RANGE.fullmatch(text)
    return serve._part(found[1], found[2], 100) if found else None


def _cache_settings(given: Any) -> object:
    return cache.settings_problem(given)


TARGETS: Final = (
    Target("bundle-manifest", _parsed, (BUNDLE,), Form.JSON, shown=True),
    Target("bundle-signers", of_file(_signers), (b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI me@here\n# a\n",)),
    Target("bundle-listen", of_text(_listen), (b"0.0.0.0:8643", b"[::1]:80"), expects=(UserError,)),
    Target("bundle-range", of_text(_range), (b"bytes=0-99", b"bytes=-5", b"bytes=3-")),
    Target("apt-release", of_text(_listed), (RELEASE,)),
    Target("apt-sources", of_text(_redirected(True)), (DEB822,)),
    Target("apt-sources-list", of_text(_redirected(False)), (ONE_LINE,)),
    Target("package-index", of_text(_index), (
        PAGE, b'{"files":[{"url":"https://files.example.org/a/a.whl"}]}',
        b'<a href="https://files.example.org/packages/a-1.whl#sha256=aa">a</a>',
    )),
    Target("pylock", _pylock, (PYLOCK,)),
    Target("pylock-package", of_json(_wheel, dict), (
        json.dumps(tomllib.loads(PYLOCK.decode())["packages"][0]).encode(),
    ), Form.JSON),
    Target("cache-log", of_lines(_traffic), (
        b'1 {"client":"10.0.0.1","path":"/a.deb","sent":"123","of":"bytes 0-1/200","origin_bytes":"100, 23"}\n',
    ), Form.JSON),
    Target("cache-settings", of_json(_cache_settings, dict), (
        b'{"directory":"/srv/cache","index_url":"https://a/simple","redirects":["https://b"],"resolvers":["10.0.0.1"]}',
    ), Form.JSON, shown=True),
    Target("resolv-conf", of_text(cache.name_servers), (b"nameserver 10.0.0.1\nnameserver fe80::1%eth0\nsearch a\n",)),
)  # fmt: skip

"""Packages with all dependencies, and the signed lists that name them: a partial mirror with intact
signatures.

apt itself resolves them, in a root without installed packages: the bundle has everything that a host may
need, whatever it has installed. apt also verifies the signatures, here and on the hosts.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from minimax_metal.common.documents import digits
from minimax_metal.common.errors import UserError
from minimax_metal.common.program import Answer
from minimax_metal.controller.bundle import programs
from minimax_metal.controller.bundle.download import Item, get
from minimax_metal.controller.bundle.wanted import Packages
from minimax_metal.plan.driver.packages import BESIDE, PREFERENCES, upstream
from minimax_metal.plan.driver.sources import (
    TARGETS,
    has_key,
    is_key,
    plain_fingerprint,
    preferences,
    primary_fingerprints,
    source_pins,
)
from minimax_metal.plan.versions import version_key

ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
COMPONENTS: Final = {
    "debian": ("main", "contrib", "non-free", "non-free-firmware"),
    "ubuntu": ("main", "restricted", "universe", "multiverse"),
}
POCKETS: Final = ("", "-updates", "-security", "-backports")
COMPRESSED: Final = ("xz", "gz", "bz2")
"""Formats of a list, in apt's order of preference."""
_URI = re.compile(r"'([^']+)' (\S+) (\d+) SHA256:([0-9a-f]{64})")
_QUOTED: Final = '\\|{}[]<>"^~_=!@#$%^&*'


@dataclass(frozen=True)
class Archives:
    """Addresses of a distribution's archive and its security updates, and the keyring that signs both."""

    main: str
    security: str
    keyring: Path


@dataclass(frozen=True)
class Repository:
    """One source for apt, and its place in the bundle."""

    url: str
    path: str
    suites: tuple[str, ...]
    """Empty for a repository without suites, such as NVIDIA's."""
    signed_by: Path


def collect(
    wanted: Packages, archives: Archives, vendor: str, root: Path, fingerprint: str | None = None
) -> tuple[list[Item], dict[str, bytes]]:
    """Decide which parts of the archives go into a bundle.

    Args:
        wanted: the packages, of one platform.
        archives: the distribution's.
        vendor: directory of NVIDIA's repositories.
        root: an empty directory for apt.
        fingerprint: of the key of a mirror that signs itself, as ``FILE=FINGERPRINT``.

    Returns:
        The files to fetch, and the small files already available: path in the bundle to content.

    Raises:
        UserError: an archive does not answer, a signature does not match, or a package is missing.
    """
    _prepare(root)
    placed: dict[str, bytes] = {}
    slug = f"{wanted.platform}/{wanted.architecture}"
    key_file, key_fingerprint = (fingerprint or f"{wanted.vendor_key}={wanted.vendor_fingerprint}").split(
        "=", 1
    )
    place = f"{vendor}/{slug}/{key_file}"
    key = only_key(get(place, "the key of NVIDIA's repository"), key_fingerprint, place)
    (root / "vendor.asc").write_bytes(key)
    (root / "vendor.asc").chmod(0o644)
    placed[f"nvidia/{slug}/{key_file}"] = key
    repositories = [
        *_distribution(wanted, archives),
        Repository(f"{vendor}/{slug}", f"nvidia/{slug}", (), root / "vendor.asc"),
    ]
    apt = _Apt(root, ARCHITECTURES[wanted.architecture])
    apt.update(repositories, COMPONENTS[wanted.distribution])
    apt.keep_apart(f"{vendor}/{slug}")
    items = [item for one in repositories for item in _lists(one, wanted, apt, placed)]
    for uri, size, digest in apt.closure(wanted):
        place_of = next((one for one in repositories if uri.startswith(one.url.rstrip("/") + "/")), None)
        if place_of is None:
            raise UserError(
                f"found {uri} in apt's answer, expected a URL under {', '.join(r.url for r in repositories)}"
            )
        name = unquote(uri.removeprefix(place_of.url.rstrip("/") + "/")).removeprefix("./")
        if name.startswith("/") or ".." in name.split("/"):
            raise UserError(
                f"found {uri} in apt's answer, expected a name inside {place_of.url}; don't use this mirror"
            )
        items.append(Item(uri, f"{place_of.path}/{name}", size, digest))
    return items, placed


def _distribution(wanted: Packages, archives: Archives) -> list[Repository]:
    suites = [wanted.codename + pocket for pocket in POCKETS]
    if wanted.distribution == "ubuntu":
        return [Repository(archives.main, "apt/ubuntu", tuple(suites), archives.keyring)]
    others = tuple(suite for suite in suites if not suite.endswith("-security"))
    return [
        Repository(archives.main, "apt/debian", others, archives.keyring),
        Repository(
            archives.security, "apt/debian-security", (f"{wanted.codename}-security",), archives.keyring
        ),
    ]


def only_key(content: bytes, fingerprint: str, url: str) -> bytes:
    """Return the key with a fingerprint from a file that may contain others too.

    Args:
        content: the file, armoured or not.
        fingerprint: of the primary key, complete.
        url: source of the file, for the message.

    Raises:
        UserError: the key is not in it, or can't be extracted.
    """
    with tempfile.TemporaryDirectory(prefix="metal-key-") as home:
        listing = _gpg(home, content, "--no-keyring", "--with-colons", "--show-keys")
        if not has_key(listing.decode(errors="replace"), fingerprint):
            found = primary_fingerprints(listing.decode(errors="replace"))
            raise UserError(
                f"found a key with the fingerprint {', '.join(found) or 'none'} at {url}, expected "
                f"{fingerprint}; check the mirror, or give --vendor-key FILE=FINGERPRINT if the "
                "mirror signs with its own key"
            )
        _gpg(home, content, "--import")
        wanted = f"0x{plain_fingerprint(fingerprint)}"
        alone = _gpg(home, b"", "--armor", "--export-options", "export-minimal", "--export", wanted)
        again = _gpg(home, alone, "--no-keyring", "--with-colons", "--show-keys")
        if not is_key(again.decode(errors="replace"), fingerprint):
            raise UserError(
                f"found other data around the key {fingerprint} at {url}, expected that key alone; "
                "check the mirror"
            )
    return alone


def _gpg(home: str, content: bytes, *words: str) -> bytes:
    command = [
        "gpg",
        "--batch",
        "--no-options",
        "--no-autostart",
        "--trust-model=always",
        f"--homedir={home}",
    ]
    try:
        return subprocess.run(
            [*command, *words], check=False, capture_output=True, input=content, timeout=60
        ).stdout
    except FileNotFoundError:
        raise UserError("found no gpg, expected it to read the repository's key; install gpg") from None


def _lists(one: Repository, wanted: Packages, apt: _Apt, placed: dict[str, bytes]) -> list[Item]:
    """Return the lists of a repository, from its signed index; that index is put in place."""
    items: list[Item] = []
    for suite in one.suites or ("",):
        base = f"{one.url.rstrip('/')}/dists/{suite}" if suite else one.url.rstrip("/")
        path = f"{one.path}/dists/{suite}" if suite else one.path
        release = apt.release(f"{base}/InRelease")
        if release is None:
            continue  # a pocket that this archive does not have
        placed[f"{path}/InRelease"] = release
        entries, by_hash = listed(release.decode(errors="replace"))
        for name in chosen(entries, ARCHITECTURES[wanted.architecture], flat=not suite):
            size, digest = entries[name]
            folder, _, _ = name.rpartition("/")
            kept = "/".join(filter(None, (folder, "by-hash/SHA256", digest))) if by_hash else name
            items.append(Item(f"{base}/{name}", f"{path}/{kept}", size, digest))
    return items


def listed(release: str) -> tuple[dict[str, tuple[int, str]], bool]:
    """Return the files that a release names (path to size and SHA-256), and whether hosts request them by
    hash.
    """
    entries: dict[str, tuple[int, str]] = {}
    section = ""
    for line in release.splitlines():
        if not line.startswith(" "):
            section = line.partition(":")[0]
        elif (
            section == "SHA256" and len(words := line.split()) == 3 and (size := digits(words[1])) is not None
        ):
            entries[words[2].removeprefix("./")] = (size, words[0])
    return entries, re.search(r"^Acquire-By-Hash:\s*yes", release, re.MULTILINE) is not None


def chosen(entries: Mapping[str, tuple[int, str]], architecture: str, *, flat: bool) -> list[str]:
    """Return the lists that hosts request: packages, sources, English descriptions, in apt's preferred
    format.
    """
    wanted = rf"[^/]+/(binary-{architecture}/Packages|source/Sources|i18n/Translation-en)"
    pattern = r"Packages" if flat else wanted
    stems = {
        name.rpartition(".")[0] or name for name in entries if re.fullmatch(rf"({pattern})(\.\w+)?", name)
    }
    stems = {stem for stem in stems if re.fullmatch(pattern, stem)}
    found: list[str] = []
    for stem in sorted(stems):
        forms = [f"{stem}.{form}" for form in COMPRESSED if f"{stem}.{form}" in entries]
        found += forms[:1] if not flat else [*forms, *([stem] if stem in entries else [])]
        if not forms and not flat and stem in entries:
            found.append(stem)
    return found


def _prepare(root: Path) -> None:
    """Make the directories for a separate apt, also accessible to its unprivileged user."""
    for name in (".", "state", "state/lists", "state/lists/partial", "cache", "cache/archives/partial"):
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name).chmod(0o755)
    (root / "status").touch()


def _sandbox() -> str:
    """Return the user that an apt started by root switches to for downloads and signatures.

    An apt of another user can't switch; root's would stay root if that user can't enter its directories.
    """
    if os.geteuid() != 0:
        return ""
    try:
        return pwd.getpwnam("_apt").pw_name
    except KeyError:
        return ""


class _Apt:
    """A separate apt with its own root that downloads like this machine's (proxies, certificates)."""

    def __init__(self, root: Path, architecture: str) -> None:
        self.root = root
        self.architecture = architecture

    def run(self, *words: str) -> Answer:
        options = {
            "Dir::State": self.root / "state",
            "Dir::State::status": self.root / "status",
            "Dir::Cache": self.root / "cache",
            "Dir::Etc::sourcelist": self.root / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": self.root / "preferences",
            "Dir::Etc::preferencesparts": "/dev/null",
            "APT::Architecture": self.architecture,
            "APT::Architectures": self.architecture,
            "APT::Sandbox::User": _sandbox(),
            "APT::Update::Post-Invoke-Success": "",
            "Acquire::Languages": "none",
            # Otherwise apt names the packages with their MD5.
            "Acquire::ForceHash": "SHA256",
            "Debug::NoLocking": "1",
        }
        program, *rest = words
        if shutil.which(program) is None:
            raise UserError(
                f"found no {program}, expected a Debian or Ubuntu machine: a bundle with packages is "
                "made there; use one, or leave packages out with --without packages"
            )
        settings = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        return programs.run([program, *settings, *rest], environment)

    def update(self, repositories: Sequence[Repository], components: Iterable[str]) -> None:
        lines = []
        for one in repositories:
            options = f"[arch={self.architecture} signed-by={one.signed_by}]"
            lines += [f"deb {options} {one.url} {suite} {' '.join(components)}" for suite in one.suites]
            lines += [] if one.suites else [f"deb {options} {one.url}/ /"]
        (self.root / "sources.list").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (self.root / "preferences").touch()
        done = self.run("apt-get", "update", "-qq", "-o", "APT::Update::Error-Mode=any")
        bad = [line for line in done.err.splitlines() if line.startswith("E:") and "-backports" not in line]
        if bad:
            raise UserError(
                f"found that apt can't read the archives ({' '.join(bad[0].split())[:300]}), "
                "expected signed lists; check the mirrors, the keyring and this machine's clock"
            )

    def keep_apart(self, vendor: str) -> None:
        """Let apt use nothing but the vendor's own packages from the vendor's repository."""
        done = self.run("apt-get", "indextargets", "--format", TARGETS, "Created-By: Packages")
        found = source_pins(done.out.splitlines(), vendor)
        if found["problem"]:
            raise UserError(found["problem"])
        (self.root / "preferences").write_text(preferences(found["pins"]), encoding="utf-8")

    def release(self, url: str) -> bytes | None:
        """Return the signed index that apt verified and kept, or None if the archive has none."""
        bare = re.sub(r"^\w+://", "", url)
        quoted = "".join(f"%{ord(one):02x}" if one in _QUOTED else one for one in bare).replace("/", "_")
        path = self.root / "state/lists" / quoted
        return path.read_bytes() if path.is_file() else None

    def offered(self, names: Sequence[str]) -> dict[str, list[str]]:
        """Return the versions of packages, by name."""
        found: dict[str, list[str]] = {name: [] for name in names}
        if not names:
            return found
        for line in self.run("apt-cache", "madison", *names).out.splitlines():
            words = [word.strip() for word in line.split("|")]
            if len(words) == 3 and words[0] in found and words[1] not in found[words[0]]:
                found[words[0]].append(words[1])
        return found

    def closure(self, wanted: Packages) -> list[tuple[str, int, str]]:
        """Return URI, size and SHA-256 of the packages and their dependencies, with the driver's at one
        version.
        """
        versions = self.offered([*wanted.driver, *filter(None, [wanted.pinning])])
        of_branch = {
            name: {upstream(one): one for one in versions[name] if one.startswith(f"{wanted.branch}.")}
            for name in wanted.driver
        }
        shared = [
            one
            for one in (set.intersection(*(set(found) for found in of_branch.values())) if of_branch else ())
            if one
        ]
        if of_branch and not shared:
            each = "; ".join(f"{name} {', '.join(found) or 'none'}" for name, found in versions.items())
            raise UserError(
                f"found no version of driver branch {wanted.branch} that all packages share "
                f"({each}), expected one; synchronise the mirror, or set metal_driver_branch"
            )
        target = max(shared, key=version_key) if shared else None
        names = list(wanted.names)
        if target:
            pins = [(PREFERENCES, f"{target}*"), (BESIDE, f"{target}*")]
            text = "\n".join(
                f"Package: {packages}\nPin: version {version}\nPin-Priority: 1001\n"
                for packages, version in pins
            )
            # First, because apt uses the earlier of two entries for one package.
            apart = (self.root / "preferences").read_text(encoding="utf-8")
            (self.root / "preferences").write_text(f"{text}\n{apart}", encoding="utf-8")
            names += [f"{name}={of_branch[name][target]}" for name in wanted.driver]
        if wanted.pinning and versions.get(wanted.pinning):
            names.append(wanted.pinning)
        done = self.run(
            "apt-get", "install", "--print-uris", "-qq", "--yes", "--no-install-recommends", *names
        )
        if done.status:
            said = " ".join(line for line in done.err.splitlines() if line.startswith("E:"))[:300]
            raise UserError(
                f"found that apt can't resolve the packages of {wanted.platform} ({said}), expected "
                "all of them in the archives; check metal_distribution_mirror_url and "
                "metal_vendor_repository_url"
            )
        found = [(uri, int(size), digest) for uri, _, size, digest in _URI.findall(done.out)]
        if not found:
            raise UserError(
                "found no package in apt's answer, expected names with SHA256; use apt 2 or newer"
            )
        return found

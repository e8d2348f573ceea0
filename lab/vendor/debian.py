"""Debian packages and a signed flat repository of them, as plain data and files.

Packages are built by dpkg-deb with fixed times, so the same inputs give the same bytes. Indices are written
here: they are short, and the machine then needs no apt-utils.
"""

import gzip
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

# Every time in packages and indices. Older than any lab, and later than the packages stood in for were made.
EPOCH = int(datetime(2026, 9, 1, tzinfo=UTC).timestamp())


@dataclass(frozen=True)
class File:
    """A file in a package: content and mode, or a link when `link` is set."""

    content: bytes = b""
    mode: int = 0o644
    link: str | None = None


@dataclass(frozen=True)
class Package:
    """A binary package. `relations` holds the control fields Depends, Provides, ... in their own syntax."""

    name: str
    version: str
    source: str
    description: str
    relations: dict[str, str] = field(default_factory=dict)
    files: dict[str, File] = field(default_factory=dict)
    scripts: dict[str, str] = field(default_factory=dict)
    conffiles: tuple[str, ...] = ()
    architecture: str = "amd64"
    section: str = "NVIDIA"

    @property
    def file_name(self) -> str:
        """The name of the package's file in the repository."""
        return f"{self.name}_{self.version}_{self.architecture}.deb"

    def control(self) -> str:
        """Return the control file."""
        size = sum(len(file.content) for file in self.files.values())
        fields = {
            "Package": self.name,
            "Source": "" if self.source == self.name else self.source,
            "Version": self.version,
            "Architecture": self.architecture,
            "Maintainer": "cudatools <cudatools@nvidia.com>",
            "Installed-Size": str(size // 1024 + 1),
            **self.relations,
            "Section": self.section,
            "Priority": "optional",
            "Description": f"{self.description}\n This is the lab's stand-in; it holds nothing of NVIDIA's.",
        }
        return "".join(f"{name}: {value}\n" for name, value in fields.items() if value)

    def digest(self) -> str:
        """Return a digest of everything the package is made of."""
        state = hashlib.sha256(repr((self.control(), self.scripts, self.conffiles, EPOCH)).encode())
        for path in sorted(self.files):
            state.update(repr((path, self.files[path])).encode())
        return state.hexdigest()


def build_packages(packages: Mapping[Path, Package]) -> None:
    """Build each package into its file, some at a time: most of the work is waiting for dpkg-deb."""
    for directory in {path.parent for path in packages}:
        directory.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(lambda item: _build(item[1], item[0]), packages.items()))


def packages_index(packages: Iterable[Package], directory: Path) -> bytes:
    """Return the Packages file of the packages whose files are in `directory`."""
    stanzas = []
    for package in sorted(packages, key=lambda package: (package.name, package.version)):
        content = (directory / package.file_name).read_bytes()
        control, _, description = package.control().partition("Description: ")
        stanzas.append(
            f"{control}Filename: ./{package.file_name}\nSize: {len(content)}\n"
            f"MD5sum: {hashlib.md5(content, usedforsecurity=False).hexdigest()}\n"
            f"SHA256: {hashlib.sha256(content).hexdigest()}\nDescription: {description}"
        )
    return "\n".join(stanzas).encode()


def release_file(label: str, indices: dict[str, bytes]) -> str:
    """Return the Release file of a flat repository; the names of `indices` are relative to it. Never
    expires."""
    lines = [
        "Origin: NVIDIA",
        f"Label: {label}",
        "Architectures: amd64",
        f"Date: {format_datetime(datetime.fromtimestamp(EPOCH, UTC), usegmt=True).replace('GMT', 'UTC')}",
        "SHA256:",
        *[
            f" {hashlib.sha256(data).hexdigest()} {len(data):>16} {name}"
            for name, data in sorted(indices.items())
        ],
    ]
    return "\n".join(lines) + "\n"


def write_indices(packages: Iterable[Package], directory: Path, label: str, key: "SigningKey") -> None:
    """Write Packages, Packages.gz, Release, Release.gpg and InRelease for the packages in `directory`."""
    index = packages_index(packages, directory)
    indices = {"Packages": index, "Packages.gz": gzip.compress(index, mtime=EPOCH)}
    for name, data in indices.items():
        (directory / name).write_bytes(data)
    release = directory / "Release"
    release.write_text(release_file(label, indices), encoding="utf-8")
    key.sign(release)


class SigningKey:
    """The lab's own key for signing repositories, kept under `directory` as ``signing-key.asc`` (mode 0600).

    Each use has a GNUPGHOME of its own, and ends the agent it started.
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / "signing-key.asc"
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in directory.glob(f"{_Gnupg.PREFIX}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if not self._file.exists():
            self._generate()
        with _Gnupg(self._file.parent) as gnupg:
            gnupg("--import", str(self._file))
            listing = gnupg("--with-colons", "--list-secret-keys").decode()
            self.fingerprint = next(
                line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:")
            )
            self.public = gnupg("--export", self.fingerprint)
            self.public_armoured = gnupg("--armor", "--export", self.fingerprint)

    def sign(self, release: Path) -> None:
        """Write InRelease and Release.gpg beside a Release file."""
        with _Gnupg(self._file.parent) as gnupg:
            gnupg("--import", str(self._file))
            for option, name in (("--clear-sign", "InRelease"), ("--detach-sign", "Release.gpg")):
                output = str(release.with_name(name))
                gnupg("--yes", "--digest-algo", "SHA512", "--armor", "--output", output, option, str(release))

    def _generate(self) -> None:
        """Make the key. Ed25519: quick, and accepted by gpgv (Debian 12) as by sqv (Debian 13)."""
        with _Gnupg(self._file.parent) as gnupg:
            gnupg("--quick-generate-key", "minimax-metal lab, vendor repository", "ed25519", "sign", "never")
            secret = gnupg("--armor", "--export-secret-keys")
        temporary = self._file.with_suffix(".new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secret)
        temporary.replace(self._file)


class _Gnupg:
    """gpg in a home of its own, removed afterwards."""

    PREFIX = "gpg-"

    def __init__(self, directory: Path) -> None:
        # An agent's socket allows some 100 characters for its path; where that is too little, /tmp will do.
        self._parent = directory if len(str(directory)) < 70 else None

    def __enter__(self) -> "_Gnupg":
        self._home = tempfile.mkdtemp(prefix=self.PREFIX, dir=self._parent)
        return self

    def __call__(self, *arguments: str) -> bytes:
        """Run gpg; return its standard output. Raises RuntimeError with what gpg said."""
        command = ["gpg", "--batch", "--quiet", "--no-tty", "--pinentry-mode", "loopback", "--passphrase", ""]
        done = subprocess.run([*command, *arguments], env=self._environment, capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"gpg {arguments[0]} failed: {done.stderr.decode().strip()}")
        return done.stdout

    def __exit__(self, *_: object) -> None:
        subprocess.run(["gpgconf", "--kill", "all"], env=self._environment, capture_output=True, check=False)
        shutil.rmtree(self._home, ignore_errors=True)

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "GNUPGHOME": self._home, "LC_ALL": "C.UTF-8"}


def _build(package: Package, output: Path) -> None:
    # Beside the package, so that whoever removes an unfinished repository removes this as well.
    with tempfile.TemporaryDirectory(prefix="deb-", dir=output.parent) as temporary:
        root = Path(temporary)
        root.chmod(0o755)
        control = root / "DEBIAN"
        control.mkdir(mode=0o755)
        (control / "control").write_text(package.control(), encoding="utf-8")
        if package.conffiles:
            (control / "conffiles").write_text(
                "".join(f"{name}\n" for name in package.conffiles), encoding="utf-8"
            )
        for name, text in package.scripts.items():
            script = control / name
            script.write_text(text, encoding="utf-8")
            script.chmod(0o755)
        for name, file in package.files.items():
            path = root / name.lstrip("/")
            for parent in reversed(path.relative_to(root).parents):
                directory = root / parent
                directory.mkdir(exist_ok=True)
                directory.chmod(0o755)
            if file.link is not None:
                path.symlink_to(file.link)
                os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)
            else:
                path.write_bytes(file.content)
                path.chmod(file.mode)
        partial = output.with_suffix(".part")
        subprocess.run(
            ["dpkg-deb", "--build", "--root-owner-group", "-Znone", str(root), str(partial)],
            env={**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        partial.replace(output)

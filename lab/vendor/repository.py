"""The lab's copy of NVIDIA's package repository: a tree that any file server can serve.

    compute/cuda/repos/debian12/x86_64/{Packages,Packages.gz,Release,Release.gpg,InRelease,<KEY>.pub,*.deb}
    compute/cuda/repos/debian13/x86_64/...

The layout is NVIDIA's (`deb [signed-by=...] <url>/debian12/x86_64/ /`). The key is the lab's own, one for all
platforms, while NVIDIA signs debian12 and debian13 with different ones.
"""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from lab.vendor.debian import SigningKey, build_packages, write_indices
from lab.vendor.packages import AGES, repository_packages

URL_PATH = "compute/cuda/repos"


@dataclass(frozen=True)
class Repository:
    """A built repository: `url_path` leads from the server's root to the directory of the platforms."""

    url_path: str
    key_fingerprint: str


def build(destination: Path, keys: Path, modules: bool = False, age: str = "first") -> Repository:
    """Build the repository under `destination`, signed by the lab's key under `keys` (made when there is
    none). With `modules` the driver brings modules for DKMS to build, for hosts with a kernel of their own.
    `age` is first or later: later, old branches of the driver are gone from the index, and newer ones there.

    Takes some seconds, and next to nothing when it is there already and nothing it is made of has changed.
    The packages are the same bytes each time. A repository that is being served is replaced as a whole.

    Raises:
        RuntimeError: gpg refused; the message holds what it said.
        FileNotFoundError: dpkg-deb or gpg is not installed.
    """
    key = SigningKey(keys)
    repository = Repository(URL_PATH, key.fingerprint)
    contents = {
        platform.slug: repository_packages(platform, key.public, key.fingerprint[-8:], modules)
        for platform in AGES[age]
    }
    parts = [
        key.fingerprint,
        *(f"{slug} {package.digest()}" for slug in contents for package in contents[slug]),
    ]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    stamp = destination / ".built"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == digest:
        return repository

    new, old = (
        destination.with_name(f".{destination.name}.new"),
        destination.with_name(f".{destination.name}.old"),
    )
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    # A package that several platforms hold is built once, and linked.
    pool = new / "pool"
    built = {package.digest(): package for listed in contents.values() for package in listed}
    build_packages({pool / f"{digest}.deb": package for digest, package in built.items()})
    for slug, listed in contents.items():
        directory = new / URL_PATH / slug / "x86_64"
        directory.mkdir(parents=True)
        for package in listed:
            os.link(pool / f"{package.digest()}.deb", directory / package.file_name)
        write_indices(listed, directory, "NVIDIA CUDA", key)
        # NVIDIA writes the name of debian12's key in lower case (3bf863cc.pub), that of debian13's in upper
        # case.
        for name in {key.fingerprint[-8:].lower(), key.fingerprint[-8:].upper()}:
            (directory / f"{name}.pub").write_bytes(key.public_armoured)
    shutil.rmtree(pool)
    (new / ".built").write_text(digest, encoding="utf-8")
    if destination.exists():
        destination.rename(old)
    new.rename(destination)
    shutil.rmtree(old, ignore_errors=True)
    return repository

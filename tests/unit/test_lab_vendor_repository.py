"""The lab's copy of NVIDIA's package repository, read by dpkg, gpg and apt."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lab.vendor import packages
from lab.vendor.debian import SigningKey, build_packages
from lab.vendor.repository import Repository, build

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("dpkg-deb", "gpg", "apt-get"))), reason="needs dpkg-deb, gpg and apt-get"
)


def run(*command: str, **more: str) -> str:
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C.UTF-8", **more}
    ).stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vendor")


@pytest.fixture(scope="module")
def repository(place: Path) -> Repository:
    return build(place / "served", place / "keys")


@pytest.fixture
def directory(place: Path, repository: Repository) -> Path:
    return place / "served" / repository.url_path / "debian12/x86_64"


class Apt:
    """apt with its own directories, so that nothing of this machine's apt is read or written."""

    def __init__(self, root: Path, source: Path, key: Path) -> None:
        for name in (
            "state/lists/partial",
            "cache/archives/partial",
            "etc/preferences.d",
            "etc/sources.list.d",
        ):
            (root / name).mkdir(parents=True)
        (root / "status").touch()
        (root / "etc/sources.list").write_text(f"deb [signed-by={key}] file:{source} /\n")
        self.preferences = root / "etc/preferences.d"
        self._options = [
            f"-oDir::Etc={root}/etc",
            f"-oDir::State={root}/state",
            f"-oDir::State::status={root}/status",
            f"-oDir::Cache={root}/cache",
            "-oAPT::Sandbox::User=root",
            "-oAPT::Architecture=amd64",
            "-oAcquire::Languages=none",
            "-oDir::Etc::parts=/dev/null",
        ]

    def __call__(self, *words: str) -> str:
        return run(words[0], *self._options, *words[1:])

    def candidate(self, package: str) -> str:
        policy = self("apt-cache", "policy", package)
        return next(line.split()[1] for line in policy.splitlines() if "Candidate:" in line)


@pytest.fixture
def apt(tmp_path: Path, directory: Path, repository: Repository) -> Apt:
    found = Apt(tmp_path / "apt", directory, directory / f"{repository.key_fingerprint[-8:].lower()}.pub")
    found("apt-get", "update")
    return found


def pin(apt: Apt, directory: Path, package: str, scratch: Path) -> None:
    run("dpkg-deb", "-x", str(next(directory.glob(f"{package}_*.deb"))), str(scratch))
    for file in (scratch / "etc/apt/preferences.d").iterdir():
        shutil.copy(file, apt.preferences)


def test_apt_verifies_the_signature(apt: Apt) -> None:
    assert apt.candidate("nvidia-driver-cuda") != "(none)"


def test_apt_refuses_another_key(tmp_path: Path, directory: Path) -> None:
    key = tmp_path / "other.asc"
    key.write_bytes(SigningKey(tmp_path / "keys").public_armoured)
    with pytest.raises(subprocess.CalledProcessError) as refused:
        Apt(tmp_path / "apt", directory, key)("apt-get", "update")
    assert "NO_PUBKEY" in refused.value.stderr or "not signed" in refused.value.stderr


def test_without_a_pin_the_newest_branch_is_taken(apt: Apt) -> None:
    assert apt.candidate("nvidia-driver-cuda") == "610.57.04-1"
    assert apt.candidate("nvidia-open") == "610.57.04-1"


def test_a_branch_pin_takes_the_newest_release_of_the_branch(
    apt: Apt, directory: Path, tmp_path: Path
) -> None:
    pin(apt, directory, "nvidia-driver-pinning-580", tmp_path / "pin")
    for package in ("nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-persistenced", "cuda-drivers"):
        assert apt.candidate(package) == "580.159.04-1", package
    assert apt.candidate("nvidia-fabricmanager") == "610.57.04-1", "the pin leaves the fabric manager alone"


def test_a_release_pin_takes_that_release(apt: Apt, directory: Path, tmp_path: Path) -> None:
    pin(apt, directory, "nvidia-driver-pinning-580.126.20", tmp_path / "pin")
    assert apt.candidate("nvidia-driver-cuda") == "580.126.20-1"


def test_one_pinning_package_replaces_another(apt: Apt) -> None:
    shown = apt("apt-cache", "show", "nvidia-driver-pinning-590")
    for field in ("Provides", "Conflicts", "Replaces"):
        assert f"{field}: nvidia-driver-pinning\n" in shown


def test_debian13_has_neither_branch_580_nor_cuda_13_0(place: Path, repository: Repository) -> None:
    # As NVIDIA's own: github.com/NVIDIA/cuda-repo-management, issues 38 and 40.
    index = (place / "served" / repository.url_path / "debian13/x86_64/Packages").read_text()
    assert "Version: 580" not in index
    assert "cuda-toolkit-13-0\n" not in index
    assert "Package: nvidia-driver-pinning-590\n" in index
    assert "Package: cuda-toolkit-13-1\n" in index


def test_the_later_index_has_lost_the_branches_that_are_over(tmp_path: Path, place: Path) -> None:
    later = build(tmp_path / "served", place / "keys", age="later")
    for slug in ("debian12", "debian13"):
        index = (tmp_path / "served" / later.url_path / slug / "x86_64/Packages").read_text()
        for branch in ("580", "590", "610"):
            assert f"Version: {branch}." not in index
            assert f"nvidia-driver-pinning-{branch}\n" not in index
        found = re.findall(r"^Package: (\S+)\n(?:.+\n)*?Version: (\S+)", index, re.MULTILINE)
        assert ("nvidia-driver-cuda", "620.70.06-1") in found
        # 620 has open kernel modules only; 595 is the last of these with both.
        proprietary = [version for name, version in found if name in {"nvidia-kernel-dkms", "cuda-drivers"}]
        assert proprietary == ["595.91.07-1", "595.91.07-1"]


def test_every_dependency_on_nvidias_own_packages_can_be_met(directory: Path) -> None:
    index = (directory / "Packages").read_text()
    names = {line.split()[1] for line in index.splitlines() if line.startswith("Package:")}
    depends = [line for line in index.splitlines() if line.startswith("Depends:")]
    wanted = {part.split()[0] for line in depends for part in line.removeprefix("Depends:").split(",")}
    assert wanted - names == {"adduser", "dkms", "init-system-helpers", "python3"}


def test_dpkg_reads_the_packages(directory: Path) -> None:
    deb = directory / "nvidia-driver-cuda_580.159.04-1_amd64.deb"
    control = run("dpkg-deb", "--info", str(deb))
    assert "Conflicts: nvidia-smi\n" in control
    assert "libnvidia-ml1 (= 580.159.04-1)" in control
    contents = run("dpkg-deb", "--contents", str(deb))
    assert "-rwxr-xr-x root/root" in contents
    assert "./usr/bin/nvidia-smi\n" in contents
    fabric = run("dpkg-deb", "--field", str(directory / "nvidia-fabricmanager_580.159.04-1_amd64.deb"))
    assert "Provides: nvidia-fabricmanager-580 (= 580.159.04-1)\n" in fabric
    assert "Source: fabricmanager\n" in fabric


def test_only_the_driver_metapackages_have_lower_bounds_only(directory: Path) -> None:
    # cuda-drivers-580 580.105.08-1: "nvidia-driver (>= 580.65.06), ..." (NVIDIA's forum, topic 353805).
    meta = run("dpkg-deb", "--field", str(directory / "nvidia-open_580.159.04-1_amd64.deb"), "Depends")
    assert "nvidia-kernel-open-dkms (>= 580.159.04)" in meta
    assert "(=" not in meta


def test_the_key_is_served_and_in_the_keyring(
    directory: Path, repository: Repository, tmp_path: Path
) -> None:
    short = repository.key_fingerprint[-8:]
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    for name in (short.lower(), short.upper()):
        key = directory / f"{name}.pub"
        assert key.read_text().startswith("-----BEGIN PGP PUBLIC KEY BLOCK-----")
        listing = run("gpg", "--homedir", str(home), "--with-colons", "--show-keys", str(key))
        assert f"fpr:::::::::{repository.key_fingerprint}:" in listing
    run("dpkg-deb", "-x", str(directory / "cuda-keyring_1.1-1_all.deb"), str(tmp_path / "keyring"))
    keyring = tmp_path / "keyring/usr/share/keyrings/cuda-archive-keyring.gpg"
    listing = run("gpg", "--homedir", str(home), "--with-colons", "--show-keys", str(keyring))
    assert f"fpr:::::::::{repository.key_fingerprint}:" in listing


def test_the_secret_key_is_only_ours(place: Path, repository: Repository) -> None:
    secret = place / "keys/signing-key.asc"
    assert secret.stat().st_mode & 0o077 == 0
    assert not list((place / "served").rglob("signing-key*"))


def test_a_second_build_changes_nothing(place: Path, repository: Repository) -> None:
    before = {path: path.stat().st_mtime_ns for path in (place / "served").rglob("*")}
    assert build(place / "served", place / "keys") == repository
    assert before == {path: path.stat().st_mtime_ns for path in (place / "served").rglob("*")}


def test_packages_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    platform = packages.PLATFORMS[0]
    chosen = [
        package
        for package in packages.repository_packages(platform, b"key", "00000000")
        if package.name in ("nvidia-kernel-open-dkms", "nvidia-persistenced", "cuda-nvcc-13-0")
    ]
    for place in ("one", "two"):
        build_packages({tmp_path / place / package.file_name: package for package in chosen})
    for package in chosen:
        first, second = (tmp_path / place / package.file_name for place in ("one", "two"))
        assert first.read_bytes() == second.read_bytes(), package.name


def test_a_key_is_made_once(tmp_path: Path) -> None:
    assert SigningKey(tmp_path / "keys").fingerprint == SigningKey(tmp_path / "keys").fingerprint
    assert SigningKey(tmp_path / "keys").fingerprint != SigningKey(tmp_path / "others").fingerprint

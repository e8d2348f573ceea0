"""What apt accepts from NVIDIA's repository: one key, the vendor's own packages; with gpg and apt."""

from __future__ import annotations

import gzip
import os
import pwd
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from lab.vendor.debian import Package, SigningKey, build_packages, packages_index, write_indices
from minimax_metal.catalog import packaged_catalog
from minimax_metal.common.errors import UserError
from minimax_metal.controller.bundle import debian
from minimax_metal.controller.bundle.debian import only_key
from minimax_metal.plan.driver.sources import (
    NAMES,
    TARGETS,
    has_key,
    is_key,
    preferences,
    primary_fingerprints,
    settings_problem,
    source_pins,
)
from tests.support.templates import render
from tests.unit.test_no_builds import Quiet
from tests.unit.test_weights_unprivileged import user_of

ROLE = Path(__file__).parents[2] / "roles/nvidia_driver"
tools = pytest.mark.skipif(
    not all(map(shutil.which, ("dpkg-deb", "gpg", "apt-get"))), reason="needs dpkg-deb, gpg and apt-get"
)
NVIDIA, OTHER = "EB693B3035CD5710E231E123A4B469963BF863CC", "1" * 40
URL = "https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64"


def listing(*keys: tuple[str, str]) -> str:
    lines = []
    for kind, fingerprint in keys:
        lines += [
            f"{kind}:-:4096:1:{fingerprint[-16:]}:1::::::scSC::::::23::0:",
            f"fpr:::::::::{fingerprint}:",
        ]
        lines += ["uid:-::::1::::someone::::::::::0:"] if kind == "pub" else []
    return "\n".join(lines)


def test_the_pinned_key_is_the_primary_one_and_alone() -> None:
    one = listing(("pub", NVIDIA))
    assert has_key(one, NVIDIA)
    assert is_key(one, "EB69 3B30 35CD 5710 E231  E123 A4B4 6996 3BF8 63CC")
    both = listing(("pub", NVIDIA), ("pub", OTHER))
    assert has_key(both, NVIDIA)
    assert not is_key(both, NVIDIA)
    # Somebody's key that has NVIDIA's as its subkey.
    adopted = listing(("pub", OTHER), ("sub", NVIDIA))
    assert primary_fingerprints(adopted) == [OTHER]
    assert not has_key(adopted, NVIDIA)
    for short in (NVIDIA[-16:], NVIDIA[-8:], "", " "):
        assert not has_key(one, short)
        assert not is_key(one, short)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[SigningKey, SigningKey]:
    place = tmp_path_factory.mktemp("keys")
    return SigningKey(place / "vendor"), SigningKey(place / "attacker")


@tools
@pytest.mark.parametrize("armoured", [True, False])
def test_of_a_file_with_two_keys_the_pinned_one_is_taken(
    keys: tuple[SigningKey, SigningKey], armoured: bool
) -> None:
    vendor, attacker = keys
    parts = [one.public_armoured if armoured else one.public for one in (attacker, vendor)]
    joined = (b"\n" if armoured else b"").join(parts)
    taken = only_key(joined, vendor.fingerprint, "http://m/key")
    shown = subprocess.run(
        ["gpg", "--no-keyring", "--with-colons", "--show-keys"], input=taken, capture_output=True, check=True
    ).stdout.decode()
    assert primary_fingerprints(shown) == [vendor.fingerprint]
    with pytest.raises(UserError, match=f"fingerprint {attacker.fingerprint}"):
        only_key(attacker.public, vendor.fingerprint, "http://m/key")
    with pytest.raises(UserError, match="fingerprint none"):
        only_key(b"<html>404</html>", vendor.fingerprint, "http://m/key")


def test_the_role_gives_apt_the_key_that_was_taken_out() -> None:
    tasks = yaml.safe_load((ROLE / "tasks/repository.yml").read_text())[1]["block"]
    listed = yaml.safe_load((ROLE / "meta/owned.yml").read_text())["files"]
    entries = [one for one in listed if one["path"] == "{{ __nvidia_driver_key }}"]
    # Before it was taken out, owner and mode can be compared and nothing else.
    assert [set(one) & {"copy", "content", "template", "kept"} for one in entries] == [{"kept"}, {"content"}]
    assert entries[1]["part"] == "key"
    assert entries[1]["content"] == "{{ __nvidia_driver_key_alone.stdout }}\n"
    judged = [
        str(task["ansible.builtin.assert"]["that"]) for task in tasks if "ansible.builtin.assert" in task
    ]
    assert any("metal_is_key(__nvidia_driver_fingerprint)" in that for that in judged)
    names = [task["name"] for task in tasks]
    assert names.index("Refuse any other key than the published one") < names.index(
        "Give apt the key of the repository"
    )


# -- which packages ------------------------------------------------------------------------------------------

DEBIAN = "http://mirror.example.org/debian/|Debian|Debian"
OURS = f"{URL}/|NVIDIA|NVIDIA CUDA"


def test_a_server_of_its_own_is_told_apart_by_name_and_by_lists() -> None:
    found = source_pins([DEBIAN, OURS, OURS], URL)
    assert found["problem"] is None
    assert [(one["pin"], one["priority"]) for one in found["pins"]] == [
        ('origin "developer.download.nvidia.com"', 500),
        ("release o=NVIDIA,l=NVIDIA CUDA", 500),
        ('origin "developer.download.nvidia.com"', -1),
        ("release o=NVIDIA,l=NVIDIA CUDA", -1),
    ]
    assert [one["packages"] for one in found["pins"]][2:] == ["*", "*"]


def test_a_shared_server_is_told_apart_by_lists_only() -> None:
    cache = "http://10.0.0.5:8642"
    lines = [
        f"{cache}/apt/http/mirror.example.org/debian/|Debian|Debian",
        f"{cache}/nvidia/d/|NVIDIA|NVIDIA CUDA",
    ]
    pins = source_pins(lines, f"{cache}/nvidia/d")["pins"]
    assert {one["pin"] for one in pins} == {"release o=NVIDIA,l=NVIDIA CUDA"}


@pytest.mark.parametrize(("origin", "label"), [("Debian", "Debian"), ("", "")])
def test_a_shared_server_whose_lists_say_they_are_the_distributions_is_refused(
    origin: str, label: str
) -> None:
    lines = [f"http://m/debian/|{origin}|{label}", f"http://m/nvidia/|{origin}|{label}"]
    found = source_pins(lines, "http://m/nvidia")
    assert found["pins"] == []
    assert "expected lists that say NVIDIA" in found["problem"]


def test_words_of_a_release_file_write_no_entry_of_their_own() -> None:
    found = source_pins([DEBIAN, f'{URL}/|NVIDIA\nPackage: *|"x'], URL)
    assert all("\n" not in one["pin"] and '"x' not in one["pin"] for one in found["pins"])
    assert source_pins([DEBIAN], URL) == {"pins": [], "problem": None}


def test_the_plans_packages_are_the_vendors_and_a_distributions_are_not() -> None:
    from fnmatch import fnmatchcase

    def vendors(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in NAMES)

    catalog = packaged_catalog()
    for platform in catalog.platforms.values():
        text = str(platform)
        for word in text.replace("'", " ").replace('"', " ").split():
            if "nvidia" in word and word.isascii() and word.replace("-", "").isalnum():
                assert vendors(word), word
    for name in ("libcublas-13-0", "libcurand-dev-13-0", "cuda-nvcc-13-0", "nvlsm", "libnvsdm", "libcuda1"):
        assert vendors(name), name
    for name in ("bash", "openssl", "libcurl4", "libcups2", "libnvme1", "libc6", "linux-image-amd64", "sudo"):
        assert not vendors(name), name


def package(name: str, version: str) -> Package:
    return Package(name=name, version=version, source=name, description="a test's")


@pytest.fixture
def served(tmp_path: Path, keys: tuple[SigningKey, SigningKey]) -> Iterator[tuple[Path, str]]:
    """Two repositories on one port: the vendor's with a package too many, and a distribution's."""
    root = tmp_path / "served"
    for place, label, listed in (
        ("nvidia", "NVIDIA CUDA", [package("nvidia-smi", "580.2-1"), package("nvidia-smi", "580.1-1"),
                                   package("bash", "99-1")]),
        ("debian", "Debian", [package("bash", "5-1"), package("sudo", "1-1")]),
    ):  # fmt: skip
        directory = root / place
        directory.mkdir(parents=True)
        build_packages({directory / one.file_name: one for one in listed})
        write_indices(listed, directory, label, keys[0])
        assert gzip.decompress((directory / "Packages.gz").read_bytes()) == packages_index(listed, directory)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield root, f"{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@tools
@pytest.mark.parametrize("vendor_host", ["localhost", "127.0.0.1"])
def test_apt_takes_the_vendors_packages_and_nothing_else(
    served: tuple[Path, str], tmp_path: Path, keys: tuple[SigningKey, SigningKey], vendor_host: str
) -> None:
    _, port = served
    key = tmp_path / "key.asc"
    key.write_bytes(keys[0].public_armoured)
    vendor = f"http://{vendor_host}:{port}/nvidia"
    for name in ("state/lists/partial", "cache/archives/partial", "etc/preferences.d"):
        (tmp_path / "apt" / name).mkdir(parents=True)
    (tmp_path / "apt/status").touch()
    (tmp_path / "apt/etc/sources.list").write_text(
        f"deb [signed-by={key}] {vendor}/ /\ndeb [signed-by={key}] http://127.0.0.1:{port}/debian/ /\n"
    )
    options = [
        f"-oDir::Etc={tmp_path}/apt/etc", f"-oDir::State={tmp_path}/apt/state",
        f"-oDir::State::status={tmp_path}/apt/status", f"-oDir::Cache={tmp_path}/apt/cache",
        "-oAPT::Sandbox::User=root", "-oAPT::Architecture=amd64", "-oAcquire::Languages=none",
        "-oDir::Etc::parts=/dev/null", "-oAcquire::http::Proxy=DIRECT",
    ]  # fmt: skip

    def apt(*words: str) -> str:
        return subprocess.run(
            [words[0], *options, *words[1:]],
            check=True, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C.UTF-8"},
        ).stdout  # fmt: skip

    def candidate(name: str) -> str:
        return next(
            line.split()[1] for line in apt("apt-cache", "policy", name).splitlines() if "Candidate:" in line
        )

    apt("apt-get", "update")
    assert candidate("bash") == "99-1", "without the pins the vendor's would be taken"
    targets = apt("apt-get", "indextargets", "--format", TARGETS, "Created-By: Packages").splitlines()
    found = source_pins(targets, vendor)
    assert found["problem"] is None
    text = preferences(found["pins"])
    (tmp_path / "apt/etc/preferences.d/zz-minimax-metal-nvidia-source.pref").write_text(text)
    assert candidate("bash") == "5-1"
    assert candidate("sudo") == "1-1"
    assert candidate("nvidia-smi") == "580.2-1"
    # The driver's own pins come first and count.
    (tmp_path / "apt/etc/preferences.d/minimax-metal-nvidia.pref").write_text(
        "Package: *nvidia*\nPin: version 580.1-*\nPin-Priority: 1001\n"
    )
    assert candidate("nvidia-smi") == "580.1-1"
    assert candidate("bash") == "5-1"
    assert "580.1-1 1001" in " ".join(apt("apt-cache", "policy", "nvidia-smi").split())


@tools
@pytest.mark.skipif(os.geteuid() != 0, reason="there are no rights to give up")
def test_an_export_of_roots_asks_archives_as_apts_own_user(
    served: tuple[Path, str],
    tmp_path: Path,
    keys: tuple[SigningKey, SigningKey],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    users: list[int] = []

    class Noting(Quiet):
        def do_GET(self) -> None:  # noqa: N802 - the library's name
            users.append(user_of(self.client_address[1], self.server.server_address[1]))  # type: ignore[index, arg-type]
            super().do_GET()

    for directory in (tmp_path, *tmp_path.parents):
        if directory != Path("/tmp"):  # noqa: S108
            directory.chmod(directory.stat().st_mode | 0o055)
    (tmp_path / "apt.conf").write_text('Acquire::http::Proxy "DIRECT";\n')
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    key = tmp_path / "key.asc"
    key.write_bytes(keys[0].public_armoured)
    key.chmod(0o644)
    place = tmp_path / "scratch"
    place.mkdir(mode=0o700)
    debian._prepare(place)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Noting, directory=str(served[0]))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/nvidia"
        debian._Apt(place, "amd64").update([debian.Repository(url, "nvidia", (), key)], ("main",))
        server.shutdown()
        thread.join()
    assert set(users) == {pwd.getpwnam("_apt").pw_uid}


def test_the_role_asks_apt_in_the_same_form() -> None:
    assert f'"{TARGETS}"' in (ROLE.parents[1] / "plugins/modules/metal_driver_facts.py").read_text()
    listed = yaml.safe_load((ROLE / "meta/owned.yml").read_text())["files"]
    [pins] = [one["path"] for one in listed if one.get("template") == "nvidia-source.pref.j2"]
    assert pins.rpartition("/")[2] > "nvidia-driver-pinning"


HOSTILE = [
    "http://m/\nTypes: deb",
    'http://m/"; x',
    "http://m/ x",
    "http://u:p@m/x",
    "file:///x",
    "",
    "http://m/{x}",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_setting_writes_a_line_of_its_own_into_apts_files(text: str) -> None:
    assert settings_problem(URL, "", "3bf863cc.pub") is None
    assert settings_problem(URL, "http://user:p%40ss@proxy.example.net:3128", "3bf863cc.pub") is None
    for given in (
        (text, "", "k.pub"),
        (URL, text, "k.pub") if "u:p@" not in text and text else (text, "", "k"),
        (URL, "", text),
    ):
        problem = settings_problem(*given)
        assert problem is not None
        assert "\n" not in problem
    for key in (".", "..", "-r", ".hidden"):
        assert settings_problem(URL, "", key) is not None
    for control in ("\x00", "\x1b[2J", "\u202e", "\x85"):
        assert settings_problem(f"{URL}/{control}", "", "k.pub") is not None
        assert settings_problem(URL, f"http://u:{control}@proxy:3128", "k.pub") is not None


def test_the_roles_template_writes_the_same_preferences(tmp_path: Path) -> None:
    pins = source_pins([DEBIAN, OURS], URL)["pins"]
    text = render(tmp_path / "pref", "nvidia-source.pref.j2", {}, __nvidia_driver_source_pins={"pins": pins})
    stanzas = [
        "\n".join(line for line in stanza.splitlines() if not line.startswith("Explanation:"))
        for stanza in text.strip().split("\n\n")
    ]
    assert stanzas == preferences(pins).strip().split("\n\n")
    assert len(stanzas) == 4

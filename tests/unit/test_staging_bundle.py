"""Bundles: complete or absent, verified, continued, copied, served; and their contents."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from minimax_metal.cli import main
from minimax_metal.common.errors import UserError
from minimax_metal.controller.adapter import plan_host
from minimax_metal.controller.bundle import debian, download, export, programs, pythons, wheels
from minimax_metal.controller.bundle.wanted import EXTRA_PACKAGES, ROLE_PACKAGES, Weights, Wheels, find_wanted
from minimax_metal.controller.bundle_store import store
from minimax_metal.controller.verbs import bundle as commands
from tests.support.hub import model as hub_model
from tests.support.hub import running as hub_running
from tests.support.origin import Origin, running
from tests.unit.test_plan_contract import DEBIAN_13, raw

REPOSITORY = Path(__file__).parents[2]
UNSIGNED = "--accept-unsigned"
JAMMY = 'ID=ubuntu\nVERSION_ID="22.04"\nVERSION_CODENAME=jammy\n'


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def origin() -> Iterator[Origin]:
    with running(Origin()) as found:
        yield found


@pytest.fixture
def bundle(tmp_path: Path) -> store.Bundle:
    directory = tmp_path / "bundle"
    store.begin(directory)
    directory.chmod(0o755)
    files = [store.place(directory, f"pypi/files/{n}", bytes([n]) * (n + 1)) for n in range(5)]
    return store.finish(directory, {"wheels": []}, files)


# -- the directory -------------------------------------------------------------------------------------------


def test_a_bundle_is_one_only_when_it_is_whole(tmp_path: Path) -> None:
    directory = tmp_path / "b"
    with pytest.raises(UserError, match="found no bundle at"):
        store.read(directory)
    store.begin(directory)
    file = store.place(directory, "apt/x", b"content")
    with pytest.raises(UserError, match="found an unfinished bundle"):
        store.read(directory)
    (directory / "apt" / "left-over").write_bytes(b"of an earlier export")
    store.finish(directory, {}, [file])
    assert store.read(directory).files == (file,)
    assert sorted(p.name for p in directory.rglob("*")) == ["apt", "manifest.json", "x"]
    store.begin(directory)
    with pytest.raises(UserError, match="unfinished"):
        store.read(directory)


def test_nothing_of_somebody_elses_is_taken_for_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"found holiday\.jpg"):
        store.begin(tmp_path)
    assert (tmp_path / "holiday.jpg").exists()


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "apt/../../x", ".partial/x", "manifest.json"])
def test_a_manifest_that_leads_outside_is_refused(bundle: store.Bundle, path: str) -> None:
    manifest = bundle.directory / store.MANIFEST
    document = json.loads(manifest.read_text())
    document["files"][0]["path"] = path
    manifest.write_text(json.dumps(document))
    with pytest.raises(UserError, match="inside the bundle"):
        store.read(bundle.directory)


def test_verify_names_damage_and_import_refuses_it(
    bundle: store.Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bundle", "verify", str(bundle.directory), UNSIGNED]) == 0
    (bundle.directory / "pypi/files/2").write_bytes(b"xyz")
    (bundle.directory / "pypi/files/3").unlink()
    assert main(["bundle", "verify", str(bundle.directory), UNSIGNED]) == 1
    said = capsys.readouterr().err
    assert "pypi/files/2: found another hash" in said
    assert "pypi/files/3: found missing" in said
    assert main(["bundle", "import", str(bundle.directory), "--to", str(tmp_path / "copy"), UNSIGNED]) == 2
    with pytest.raises(UserError, match="unfinished"):
        store.read(tmp_path / "copy")
    assert main(["bundle", "verify", str(bundle.directory), "--remove", UNSIGNED]) == 1
    assert not (bundle.directory / "pypi/files/2").exists()
    assert main(["bundle", "serve", str(bundle.directory), "--allow", "127.0.0.0/8", UNSIGNED]) == 2


def test_an_interrupted_import_goes_on(bundle: store.Bundle, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    store.begin(target)
    (target / "pypi/files").mkdir(parents=True)
    shutil.copy(bundle.directory / "pypi/files/1", target / "pypi/files/1")
    (target / "pypi/files/2").write_bytes(b"???")
    kept = (target / "pypi/files/1").stat().st_mtime_ns
    said: list[str] = []
    copy = store.copy(bundle, target, said.append)
    assert said[0].startswith("4 of 5 files to copy")
    assert (target / "pypi/files/1").stat().st_mtime_ns == kept
    assert list(store.damaged(copy)) == []
    assert copy.created == bundle.created


def test_a_copy_into_itself_is_refused(bundle: store.Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "import", str(bundle.directory), "--to", str(bundle.directory / "copy")]) == 2
    assert "expected a separate directory" in capsys.readouterr().err


# -- fetching ------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: real(min(seconds, 0.01)))


def item(origin: Origin, content: bytes, wrong: bool = False) -> download.Item:
    origin.files["/f"] = content
    return download.Item(f"{origin.url}/f", "pypi/files/f", len(content), sha(b"other" if wrong else content))


def test_a_cut_download_goes_on_at_the_byte(origin: Origin, tmp_path: Path) -> None:
    store.begin(tmp_path)
    content = bytes(range(256)) * 4096
    wanted = item(origin, content)
    origin.cut_after = 300_000
    counted: list[int] = []
    download.fetch(wanted, tmp_path, counted.append)
    assert (tmp_path / "pypi/files/f").read_bytes() == content
    assert sum(counted) == len(content)
    assert [one[1] for one in origin.asked] == ["", "bytes=300000-"]
    download.fetch(wanted, tmp_path)
    assert len(origin.asked) == 2


def test_a_busy_server_is_waited_for_and_a_refusal_is_final(origin: Origin, tmp_path: Path) -> None:
    store.begin(tmp_path)
    wanted = item(origin, b"content")
    origin.refuse = 3
    download.fetch(wanted, tmp_path)
    assert len(origin.asked) == 4
    missing = download.Item(f"{origin.url}/nothing", "pypi/files/n", 1, sha(b"x"))
    with pytest.raises(UserError, match="found status 404 for"):
        download.fetch(missing, tmp_path)
    assert len(origin.asked) == 5


def test_one_content_under_many_names_comes_in_side_by_side(origin: Origin, tmp_path: Path) -> None:
    store.begin(tmp_path)
    first = item(origin, b"the same in every pocket")
    items = [download.Item(first.url, f"apt/debian/{n}", first.size, first.sha256) for n in range(40)]
    files = download.fetch_all(items, tmp_path, lambda _: None)
    assert len(files) == 40
    assert all((tmp_path / one.path).read_bytes() == b"the same in every pocket" for one in items)


def test_other_bytes_than_the_lock_names_never_get_the_name(origin: Origin, tmp_path: Path) -> None:
    store.begin(tmp_path)
    with pytest.raises(UserError, match="7 bytes with a different hash"):
        download.fetch(item(origin, b"content", wrong=True), tmp_path)
    assert not (tmp_path / "pypi/files/f").exists()
    assert len(origin.asked) == download.ATTEMPTS


# -- what goes into one --------------------------------------------------------------------------------------


def planned(release: str | None = None, gpu: str = "H20", count: int = 4, **variables: Any) -> Any:
    facts = raw(gpu, count) if release is None else raw(gpu, count, release)
    return plan_host("gpu01", {"metal_model": "MiniMax-M2.5", **variables}, facts)


def test_a_fleet_wants_each_thing_once() -> None:
    wanted = find_wanted(
        [planned(), planned(), planned(DEBIAN_13, "H200", 8, metal_fabric_manager=True), planned(JAMMY)]
    )
    assert [one.platform for one in wanted.packages] == ["debian12", "debian13", "ubuntu2204"]
    assert wanted.pythons == (("3.12", "x86_64"),)
    assert Wheels("uv", "3.10", "x86_64") in wanted.wheels
    assert Wheels("engine/sglang-0.5.23-py3.13.txt", "3.13", "x86_64") in wanted.wheels
    assert len(wanted.weights) == 1
    trixie = wanted.packages[1]
    assert "nvidia-fabricmanager" in trixie.driver
    assert trixie.branch == "595"
    assert "linux-headers-amd64" in trixie.names
    assert not set(trixie.driver) & set(trixie.names)


def test_a_host_without_a_plan_is_named() -> None:
    with pytest.raises(UserError, match="gpu01: unreachable"):
        find_wanted([plan_host("gpu01", {"metal_model": "MiniMax-M2.5"}, None)])


def test_every_package_that_a_role_installs_is_wanted() -> None:
    text = "\n".join(
        path.read_text() for place in ("roles", "playbooks") for path in (REPOSITORY / place).rglob("*.yml")
    )
    named: set[str] = set()
    for names in re.findall(r"ansible\.builtin\.apt:\n\s+name: ([^\n]+)", text):
        if not names.startswith('"{{'):
            found = yaml.safe_load(names)
            named |= set([found] if isinstance(found, str) else found)
    for path in REPOSITORY.glob("roles/*/meta/owned.yml"):
        listed = yaml.safe_load(path.read_text()).get("packages") or []
        entries = (
            []
            if isinstance(listed, str)
            else [one if isinstance(one, str) else one["name"] for one in listed]
        )
        named |= {name for name in entries if "{{" not in name}
    assert "systemd-timesyncd" in named
    defaults = yaml.safe_load((REPOSITORY / "roles/host_tools/defaults/main.yml").read_text())
    assert named | set(defaults["host_tools_packages"]) <= set(ROLE_PACKAGES)
    extra = re.findall(r"'(nginx-\w+)' if metal_plan\.platform\.slug == '(\w+)'", text)
    assert all(package in EXTRA_PACKAGES[slug] for package, slug in extra)


HASHES = {"good": "a" * 64, "newer": "b" * 64, "arm": "c" * 64, "unknown": "d" * 64}


def lock_entry(*names: tuple[str, str]) -> dict[str, Any]:
    return {
        "name": "Some.Package",
        "version": "1.0",
        "wheels": [
            {"url": f"https://i.example.org/{name}", "size": 5, "hashes": {"sha256": HASHES[key]}}
            for key, name in names
        ],
    }


def test_the_best_wheel_that_the_lock_knows_is_taken() -> None:
    order = {tag: n for n, tag in enumerate(wheels.tags(Wheels("host-tools", "3.12", "x86_64")))}
    entry = lock_entry(
        ("good", "some_package-1.0-cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"),
        ("newer", "some_package-1.0-cp312-cp312-manylinux_2_39_x86_64.whl"),
        ("arm", "some_package-1.0-cp312-cp312-manylinux_2_17_aarch64.whl"),
        ("unknown", "some_package-1.0-cp312-cp312-manylinux_2_28_x86_64.whl"),
    )
    known = {HASHES["good"], HASHES["newer"], HASHES["arm"]}
    chosen = wheels.choose(entry, known, order)
    assert chosen.sha256 == HASHES["good"]
    assert chosen.project == "some-package"
    assert chosen.path == f"pypi/files/aa/{HASHES['good']}/{chosen.filename}"
    with pytest.raises(UserError, match=r"no wheel of Some\.Package 1\.0"):
        wheels.choose(entry, {HASHES["arm"]}, order)


def test_pages_of_the_index_lead_to_the_files_with_their_hashes() -> None:
    name = "some_package-1.0+cu13-py3-none-any.whl"
    wheel = wheels.Wheel("some-package", name, "https://x/y", 5, HASHES["good"])
    pages = wheels.pages([wheel, wheel])
    page = pages["pypi/simple/some-package/index.html"].decode()
    (link,) = re.findall(r'href="([^"]+)"', page)
    target, _, digest = link.partition("#sha256=")
    assert digest == HASHES["good"]
    assert (Path("/pypi/simple/some-package") / target).as_posix().count("..") == 2
    resolved = Path("/pypi/simple/some-package", target).resolve()
    assert resolved.as_posix() == f"/{wheel.path}"


RELEASE = """\
Origin: Debian
Acquire-By-Hash: yes
MD5Sum:
 d41d8cd98f00b204e9800998ecf8427e 10 main/binary-amd64/Packages
SHA256:
 {a} 10 main/binary-amd64/Packages
 {b} 5 main/binary-amd64/Packages.gz
 {c} 4 main/binary-amd64/Packages.xz
 {d} 4 main/binary-arm64/Packages.xz
 {d} 3 main/i18n/Translation-en.bz2
 {d} 3 main/i18n/Translation-de.bz2
 {d} 3 contrib/source/Sources.xz
 {d} 3 main/Contents-amd64.gz
"""


def test_lists_are_taken_in_the_form_that_apt_prefers() -> None:
    text = RELEASE.format(a="a" * 64, b="b" * 64, c="c" * 64, d="d" * 64)
    entries, by_hash = debian.listed(text)
    assert by_hash
    assert entries["main/binary-amd64/Packages.xz"] == (4, "c" * 64)
    assert debian.chosen(entries, "amd64", flat=False) == [
        *("contrib/source/Sources.xz", "main/binary-amd64/Packages.xz", "main/i18n/Translation-en.bz2")
    ]
    flat, by_hash = debian.listed(
        "SHA256:\n " + "a" * 64 + " 9 ./Packages\n " + "b" * 64 + " 9 Packages.gz\n"
    )
    assert not by_hash
    assert debian.chosen(flat, "amd64", flat=True) == ["Packages.gz", "Packages"]


def test_a_python_is_verified_by_the_hashes_of_its_release(origin: Origin, tmp_path: Path) -> None:
    done = subprocess.run(
        [wheels.uv_program(), "python", "list", "--only-downloads", "--show-urls", "--output-format",
         "json", "cpython-3.12-linux-x86_64-gnu"], check=True, capture_output=True, text=True,
    )  # fmt: skip
    tag, name = json.loads(done.stdout)[0]["url"].rsplit("/", 2)[1:]
    bare = name.replace("%2B", "+")
    origin.files[f"/py/{tag}/{name}"] = b"python"
    origin.files[f"/py/{tag}/SHA256SUMS"] = f"{sha(b'other')}  x\n{sha(b'python')}  {bare}\n".encode()
    found = pythons.find("3.12", "x86_64", f"{origin.url}/py")
    store.begin(tmp_path)
    assert download.fetch(found, tmp_path).sha256 == sha(b"python")
    assert (tmp_path / "python" / tag / bare).read_bytes() == b"python"
    # The mirror's own list of hashes fits its file; uv knows better.
    with pytest.raises(UserError, match="uv can't install Python"):
        pythons.check("3.12", "x86_64", tmp_path)
    with tarfile.open(tmp_path / "python" / tag / bare, "w:gz") as tar:
        entry = tarfile.TarInfo("python/bin/python3")
        tar.addfile(entry, io.BytesIO(b""))
    with pytest.raises(UserError, match="whose hash is not the one uv knows"):
        pythons.check("3.12", "x86_64", tmp_path)


def test_an_export_that_fails_leaves_the_bundle_that_is_there(
    bundle: store.Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bundle", "export", str(bundle.directory),
               "--model", "MiniMax-M2.5", "--gpu", "H20", "--count", "4",
               "--without", "wheels", "--without", "weights",
               "--set", "metal_vendor_repository_url=http://127.0.0.1:9/repos"]  # fmt: skip
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "expected the key of NVIDIA's repository" in said
    assert ("running as root, so answers from mirrors are parsed with root's rights" in said) is (
        os.geteuid() == 0
    )
    assert store.read(bundle.directory).files == bundle.files


def test_weights_are_listed_by_their_own_manifest(tmp_path: Path) -> None:
    target = tmp_path / "weights/Org/Name/abc"
    (target / ".minimax-metal").mkdir(parents=True)
    (target / "a.safetensors").write_bytes(b"weights")
    entry = {"path": "a.safetensors", "size": 7, "sha256": sha(b"weights"), "stated": True}
    manifest = {"schema": 1, "name": "N", "revision": "abc", "source": {}, "bytes": 7, "files": [entry]}
    (target / ".minimax-metal/manifest.json").write_text(json.dumps(manifest))
    listed = export.weights_files(tmp_path, Weights("Org/Name/abc", "N", "abc", 7))
    assert [file.path for file in listed] == [
        *("weights/Org/Name/abc/a.safetensors", "weights/Org/Name/abc/.minimax-metal/manifest.json")
    ]
    store.begin(tmp_path)
    assert list(store.damaged(store.finish(tmp_path, {}, listed))) == []


# -- serving -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "host:80", "--allow", "::/0"], "ADDRESS:PORT"),
        (["--listen", "0.0.0.0:99999", "--allow", "::/0"], "ADDRESS:PORT"),
        (["--allow", "10.0.0.0/99"], "found --allow 10.0.0.0/99"),
        ([], "found no --allow, expected the networks"),
    ],
)
def test_a_wrong_word_is_one_line(
    bundle: store.Bundle, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["bundle", "serve", str(bundle.directory), *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_weights_are_pulled_as_somebody_states_them_and_not_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = hub_model(shards=2, size=50_000)
    with hub_running(tmp_path / "hub", files) as hub:
        settings: dict[str, Any] = {"metal_model_revision": hub.commit, "metal_weights_source": "hf-mirror"}
        plan = planned(**settings, metal_hf_mirror_endpoint=hub.url)
        target = tmp_path / "bundle/weights" / hub.commit
        target.parent.mkdir(parents=True)
        commands._pull(plan, target)
        said = capsys.readouterr().out
        assert "resolved by controller" in said
        manifest = json.loads((target / ".minimax-metal/manifest.json").read_text())
        assert {one["path"]: one["sha256"] for one in manifest["files"]} == {
            path: sha(content) for path, content in files.items()
        }
        assert manifest["proof"]["origin"] == hub.url
        # Nobody there: nothing is taken in unstated.
        silent = planned(**settings, metal_hf_mirror_endpoint="http://127.0.0.1:9")
        with pytest.raises(UserError, match="found no source that publishes the hashes"):
            commands._pull(silent, tmp_path / "other")
        assert not (tmp_path / "other").exists()


def test_a_program_that_a_mirror_keeps_waiting_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "SECONDS", 0.3)
    with pytest.raises(UserError, match=r"sleep still running after .* check the mirrors"):
        programs.run(["sleep", "60"])
    monkeypatch.setattr(programs, "SECONDS", 60.0)
    monkeypatch.setattr(programs, "BYTES", 1 << 20)
    with pytest.raises(UserError, match="more than 1 MB of output from head"):
        programs.run(["head", "-c", str(2 << 20), "/dev/zero"])

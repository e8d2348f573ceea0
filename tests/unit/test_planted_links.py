"""Links, hard links and pipes at every path that root touches in directories of services.

Each of root's operations below such a directory runs in a separate process, with one thing planted by the
service's user. It may fail. It must not hang, or change or reveal anything outside.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from minimax_metal.common.errors import UserError
from minimax_metal.host.accept.machine import Local
from minimax_metal.host.engine import kernels
from minimax_metal.host.releases.record import Records, weights_of
from minimax_metal.host.weights import commands
from minimax_metal.host.weights.manifest import FOLDER
from minimax_metal.plan.model import Plan
from tests.support.plugins import load_plugin

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root changes owners")

ENGINE = pwd.getpwnam("games")
PULL = pwd.getpwnam("nobody")
SECRET = "root:$6$of-roots-own:20000::::::"
SECONDS = 10
SHARD = b"weights" * 100


@dataclass
class Host:
    """A host with directories of root's, and two services' directories."""

    root: Path

    @property
    def victim(self) -> Path:
        return self.root / "etc"

    @property
    def cache(self) -> Path:
        return self.root / "var" / "sglang" / "key"

    @property
    def state(self) -> Path:
        return self.root / "var" / "lib-sglang"

    @property
    def leaf(self) -> Path:
        return self.root / "srv" / "models" / "MiniMaxAI" / "MiniMax-M2.5"

    @property
    def models(self) -> Path:
        return self.root / "srv" / "models"

    @property
    def request(self) -> Path:
        return self.root / "requests" / "m.json"

    def run(self, *words: str) -> None:
        commands.main(list(words))

    def outside(self) -> dict[str, tuple[object, ...]]:
        """All of root's files with their content, which must not change."""
        found: dict[str, tuple[object, ...]] = {}
        for path in (self.victim, *sorted(self.victim.rglob("*"))):
            status = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            found[str(path)] = (status.st_uid, status.st_gid, status.st_mode, content)
        return found


def put(path: Path, content: bytes | str, owner: pwd.struct_passwd) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for one in (path, path.parent):
        os.chown(one, owner.pw_uid, owner.pw_gid)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    for directory in (tmp_path, *list(tmp_path.parents)[:2]):
        # Only wider than it is: one of them is /tmp where somebody names pytest's base directory.
        directory.chmod(directory.stat().st_mode | 0o055)
    host = Host(tmp_path)
    host.victim.mkdir()
    (host.victim / "shadow").write_text(SECRET)
    (host.victim / "shadow").chmod(0o600)
    (host.victim / "directory").mkdir()
    (host.victim / "directory" / "manifest.json").write_text(json.dumps({"of": SECRET}))
    (host.victim / "directory" / "manifest.json").chmod(0o600)
    for name in ("deep_gemm/a/kernel.cubin", "precompiled-0123456789ab"):
        put(host.cache / name, b"kernel", ENGINE)
    put(host.state / "incidents" / "m" / "1.json", "{}", ENGINE)
    entry = {"path": "model.safetensors", "size": len(SHARD), "sha256": hashlib.sha256(SHARD).hexdigest()}
    manifest = {"name": "m", "revision": "r", "source": {}, "files": [entry | {"stated": True}]}
    for name, content in (
        ("old/model.safetensors", SHARD),
        (f"old/{FOLDER}/manifest.json", json.dumps(manifest)),
        (".old.lock", ""),
        (".old.state.json", "{}"),
    ):
        put(host.leaf / name, content, PULL)
    for path, owner in ((host.cache.parent, ENGINE), (host.state, ENGINE), (host.leaf, PULL)):
        for one in (path, *path.rglob("*")):
            os.chown(one, owner.pw_uid, owner.pw_gid)
    (host.root / "adopted").mkdir()
    (host.root / "adopted" / "model.safetensors").write_bytes(SHARD)
    host.request.parent.mkdir()
    (host.request.parent / "manifest").write_text(json.dumps(manifest))
    host.request.write_text(
        json.dumps(
            {
                "path": str(host.leaf / "new"),
                "sources": [{"kind": "directory", "path": str(host.root / "adopted")}],
                "adopt": [str(host.root / "adopted")],
                "manifest": str(host.request.parent / "manifest"),
            }
        )
    )
    (host.root / "archives").mkdir()
    kernels.pack(host.cache, host.root / "archives" / "kernels.tar.gz")
    return host


def file_link(place: Path, host: Host) -> None:
    place.symlink_to(host.victim / "shadow")


def directory_link(place: Path, host: Host) -> None:
    place.symlink_to(host.victim / "directory")


def hard_link(place: Path, host: Host) -> None:
    place.hardlink_to(host.victim / "shadow")


def pipe(place: Path, host: Host) -> None:
    os.mkfifo(place)
    os.chown(place, host.leaf.stat().st_uid, -1)


PLANTS = (file_link, directory_link, hard_link, pipe)


def unpack(host: Host) -> None:
    archive = host.root / "archives" / "kernels.tar.gz"
    kernels.main(["unpack", str(archive), str(host.cache), "--owner", ENGINE.pw_name])


def pack(host: Host) -> None:
    kernels.main(["pack", str(host.cache), str(host.root / "archives" / "again.tar.gz")])


def copy(host: Host) -> None:
    kernels.main(["copy", str(host.cache), str(host.root / "var" / "other"), "--owner", PULL.pw_name])


def absent(host: Host) -> None:
    module = load_plugin("modules/metal_absent")
    for path in (host.cache, host.state / "incidents", host.leaf / "old", host.leaf):
        module.remove(str(path), False)


def bundle(host: Host) -> None:
    machine = Local()
    for pattern in (f"{host.state}/incidents/m/*.json", f"{host.leaf}/old/*"):
        for path in machine.list(pattern):
            print(machine.read(path))
    machine.read(str(host.state / "incidents" / "m" / "1.json"))


def record(host: Host) -> None:
    plan = {"schema": 1, "host": "h", "model": {"path": str(host.leaf / "old")}}
    print(weights_of(Plan.of_record(plan)))
    Records(host.root / "releases").record(plan)


CACHE = ("var/sglang/key", "var/sglang/key/deep_gemm", "var/sglang/key/deep_gemm/a",
         "var/sglang/key/deep_gemm/a/kernel.cubin", "var/sglang/key/precompiled-0123456789ab",
         "var/sglang/key/deep_gemm/a/kernel.cubin.part")  # fmt: skip
NAME = "srv/models/MiniMaxAI/MiniMax-M2.5"
OLD = tuple(
    f"{NAME}/{name}"
    for name in ("old", "old/model.safetensors", f"old/{FOLDER}", f"old/{FOLDER}/manifest.json", ".old.lock",
                 ".old.state.json", ".old.removed")
)  # fmt: skip
NEW = tuple(
    f"{NAME}/{name}"
    for name in ("new", ".new.lock", ".new.state.json", ".new.state.json.new",
                 "new.partial", f"new.partial/{FOLDER}", f"new.partial/{FOLDER}/verified.jsonl",
                 "new.partial/model.safetensors", "new.partial/.model.safetensors.adopting",
                 "new.partial/.model.safetensors.adopting.probe")
)  # fmt: skip
INCIDENTS = ("var/lib-sglang/incidents", "var/lib-sglang/incidents/m", "var/lib-sglang/incidents/m/1.json",
             "var/lib-sglang/incidents/m/2.json")  # fmt: skip

Work = Callable[[Host], object]
WORK: dict[str, tuple[Work, tuple[str, ...]]] = {
    "kernels count": (lambda host: kernels.main(["count", str(host.cache)]), CACHE),
    "kernels pack": (pack, CACHE),
    "kernels unpack": (unpack, CACHE),
    "kernels copy": (copy, CACHE),
    "weights adopt": (lambda host: host.run("adopt", "--request", str(host.request)), (*NEW, *OLD)),
    "weights check": (lambda host: host.run("check", "--request", str(host.request)), NEW),
    "weights verify": (lambda host: host.run("verify", str(host.leaf / "old")), OLD),
    "weights list": (lambda host: host.run("list", "--root", str(host.models)), OLD),
    "weights remove": (
        lambda host: host.run("remove", str(host.leaf / "old"), "--root", str(host.models)),
        OLD,
    ),
    "weights prune": (lambda host: host.run("prune", "--root", str(host.models)), OLD),
    "weights own": (
        lambda host: host.run(
            "own",
            str(host.leaf),
            "--root",
            str(host.models),
            "--user",
            ENGINE.pw_name,
            "--before",
            PULL.pw_name,
        ),
        OLD,
    ),
    "record": (record, OLD),
    "accept's bundle": (bundle, (*INCIDENTS, *OLD)),
    "removal": (absent, (*CACHE, *OLD, *INCIDENTS)),
}


def cases() -> Iterator[tuple[str, str]]:
    for name, (_, places) in WORK.items():
        for place in places:
            yield name, place


def in_time(work: Work, host: Host) -> tuple[int, str]:
    """Run an operation in a separate process; return its exit and its output."""
    said = host.root / "said"
    child = os.fork()
    if child == 0:
        with said.open("w", encoding="utf-8") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            sys.stdout = sys.stderr = output
            code = 0
            try:
                with contextlib.suppress(UserError, OSError, SystemExit):
                    work(host)
            except BaseException as error:
                print(repr(error))
                code = 70
            output.flush()
            os._exit(code)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), said.read_text(encoding="utf-8", errors="replace")
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1, said.read_text(encoding="utf-8", errors="replace")


def set_aside(place: Path, owner_of: Path) -> None:
    """Make room for the planted thing, as its owner would."""
    place.parent.mkdir(parents=True, exist_ok=True)
    status = owner_of.stat()
    for parent in (place.parent, *place.parent.parents):
        if parent == owner_of or owner_of not in parent.parents:
            break
        os.chown(parent, status.st_uid, status.st_gid)
    if os.path.lexists(place):
        place.rename(place.with_name(f"{place.name}.aside"))


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize(("name", "place"), list(cases()))
def test_nothing_of_roots_falls(
    host: Host, name: str, place: str, plant: Callable[[Path, Host], None]
) -> None:
    work, _ = WORK[name]
    target = host.root / place
    set_aside(target, host.leaf if place.startswith("srv") else host.root / "/".join(place.split("/")[:2]))
    plant(target, host)
    before = host.outside()
    status, said = in_time(work, host)
    assert status >= 0, f"{name} hangs on a {plant.__name__} at {place}"
    assert status != 70, said
    assert SECRET not in said
    after = host.outside()
    assert {path: state for path, state in after.items() if before.get(path) != state} == {}
    assert before.keys() == after.keys()
    for archive in (host.root / "archives").iterdir():
        import gzip

        assert SECRET.encode() not in gzip.decompress(archive.read_bytes())
    # Nor did anything of root's get another name where a service reaches it.
    assert stat.S_IMODE((host.victim / "shadow").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", WORK)
def test_the_work_gets_done_where_nothing_is_planted(host: Host, name: str) -> None:
    """An operation that always fails would prove nothing above."""
    work, _ = WORK[name]
    status, said = in_time(work, host)
    assert status == 0, said
    expected = {
        "kernels count": lambda: said.strip() == "2",
        "kernels pack": lambda: said.strip() == "packed 2 files",
        "kernels unpack": lambda: said.strip() == "no kernel was missing",
        "kernels copy": lambda: (
            (host.root / "var/other/deep_gemm/a/kernel.cubin").stat().st_uid == PULL.pw_uid
        ),
        "weights adopt": lambda: (host.leaf / "new.partial/model.safetensors").read_bytes() == SHARD,
        "weights check": lambda: "not there" in said,
        "weights verify": lambda: "all match the manifest" in said,
        "weights list": lambda: "1 model directories" in said,
        "weights remove": lambda: not (host.leaf / "old").exists(),
        "weights prune": lambda: not (host.leaf / "old").exists(),
        "weights own": lambda: (host.leaf / "old").stat().st_uid == ENGINE.pw_uid,
        "record": lambda: "sha256" in said and (host.root / "releases" / "current").exists(),
        "accept's bundle": lambda: "{}" in said,
        "removal": lambda: not host.cache.exists() and not host.leaf.exists(),
    }
    assert expected[name](), said

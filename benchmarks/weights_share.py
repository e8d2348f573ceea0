"""Sharing a pull among hosts against one host alone, on links of a given speed, both in the same run.

    python benchmarks/weights_share.py [--only NAME ...] [--hosts 8] [--uplink-mbit 40] [--plot FILE.svg]

Each host is a network namespace with its own address, nginx and pull, on a bridge; the hub is one more. The
hub's link is the uplink that all share; each host's link is its LAN. Namespaces, links and processes are made
here and taken away at the end, also after an error. Needs root, nginx and iproute2; disks are a tmpfs.
Pieces are smaller than the default of 64 MiB in the same proportion as the model is smaller.

shared      hosts with sharing ÷ one host alone, and what the origin was read, on a shared uplink (--plot: who
            had how much when)
killed      the same while one host's pull and nginx are killed at 40 % and come back at 60 %
corrupt     the same while one host sends other bytes than it announces
own         every host has its own slow link to the hub: hosts with sharing ÷ one host alone
many        64 hosts of which 8 read the origin, 126 shards
lan         what one host takes from one other over nginx ÷ curl of one file between the same two
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.drawing.share_plot import Sample, plot
from lab.hosts import shaping
from lab.hub import Store
from minimax_metal.host.weights.share.peers import signature
from tests.support.fleet import Member, write_request

ROOT = Path(__file__).resolve().parents[1]

REPOSITORY = "MiniMaxAI/MiniMax-M2.5"
NETWORK = "198.19"
BRIDGE = "mmshare"
HUB_PORT = 8080
PORT = 18320


def ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=not check)


@dataclass
class Place:
    """A namespace on the bridge; number 0 is the hub."""

    number: int

    @property
    def space(self) -> str:
        return f"{BRIDGE}-{self.number}"

    @property
    def address(self) -> str:
        return f"{NETWORK}.{self.number // 200}.{self.number % 200 + 1}"

    @property
    def outer(self) -> str:
        return f"mmsh{self.number}"

    @property
    def prefix(self) -> list[str]:
        return ["ip", "netns", "exec", self.space]

    def make(self) -> None:
        ip("netns", "add", self.space)
        ip("link", "add", self.outer, "type", "veth", "peer", "name", "eth0", "netns", self.space)
        ip("link", "set", self.outer, "master", BRIDGE, "up")
        ip("-n", self.space, "addr", "add", f"{self.address}/16", "dev", "eth0")
        ip("-n", self.space, "link", "set", "eth0", "up")
        ip("-n", self.space, "link", "set", "lo", "up")

    def shape(self, mbit: int) -> None:
        shaping.limit(self.outer, mbit)
        shaping.limit("eth0", mbit, ["-n", self.space])


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Let the machine keep so many neighbours.

    Linux has one table of them (1,024 by default) for all network namespaces together: 64 hosts that know one
    another need 4,096, and a host without room for an address can't reach it. Real hosts have a table each.
    """
    table = Path("/proc/sys/net/ipv4/neigh/default")
    before = {name: (table / name).read_text() for name in ("gc_thresh3", "gc_thresh2")}
    wanted = 2 * (count + 1) ** 2
    try:
        for name in before:
            if int(before[name]) < wanted:
                (table / name).write_text(f"{wanted}\n")
        yield
    finally:
        for name, value in reversed(before.items()):
            (table / name).write_text(value)


@contextlib.contextmanager
def network(count: int) -> Iterator[list[Place]]:
    """Make the bridge, the hub's place and the hosts'."""
    places = [Place(number) for number in range(count + 1)]
    clear(places)
    try:
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("link", "set", BRIDGE, "up")
        for place in places:
            place.make()
        yield places
    finally:
        clear(places)


def clear(places: Sequence[Place]) -> None:
    for place in places:
        ip("netns", "delete", place.space, check=False)
        ip("link", "delete", place.outer, check=False)
    ip("link", "delete", BRIDGE, check=False)


def publish(folder: Path, shards: int, size: int) -> int:
    """Publish a model of random bytes; return its size in bytes."""
    source = folder / "published"
    source.mkdir(parents=True)
    noise = random.Random(1)  # noqa: S311  only has to be incompressible
    for number in range(shards):
        with (source / f"model-{number:05}-of-{shards:05}.safetensors").open("wb") as file:
            left = size
            while left:
                left -= file.write(noise.randbytes(min(left, 1_000_000)))
    (source / "config.json").write_text("{}\n")
    Store(folder / "hub").publish("huggingface", REPOSITORY, source)
    return sum(path.stat().st_size for path in source.iterdir())


@dataclass
class Bench:
    """One model, its hub and the hosts' places."""

    folder: Path
    places: list[Place]
    size: int
    piece: int
    poll: float
    files: dict[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        return self.folder / "hub.log"

    @contextlib.contextmanager
    def hub(self) -> Iterator[None]:
        place = self.places[0]
        with self.log.open("w") as log:
            process = subprocess.Popen(
                [
                    *place.prefix,
                    *(sys.executable, "-m", "lab.hub", "--root", str(self.folder / "hub")),
                    *("--host", place.address, "--port", str(HUB_PORT), "--access-log", str(self.log)),
                ],
                cwd=ROOT,
                stderr=subprocess.DEVNULL,
                stdout=log,
            )
        try:
            wait_for(lambda: answers(place.prefix, place.address, HUB_PORT), 60)
            yield
        finally:
            process.terminate()
            process.wait()

    def origin(self) -> int:
        """Bytes of the model's files that the hub has sent since its start."""
        total = 0
        for line in self.log.read_text().splitlines():
            if line.startswith("{"):
                entry = json.loads(line)
                total += entry["bytes"] if "-cdn/" in entry["path"] else 0
        return total

    def first_byte(self) -> float:
        """Return when the hub was first asked for a part of the model since its start, as a time of day."""
        lines = [
            line for line in self.log.read_text().splitlines() if line.startswith("{") and "-cdn/" in line
        ]
        return min(datetime.fromisoformat(json.loads(line)["time"]).timestamp() for line in lines)

    def members(self, count: int, folder: Path) -> list[Member]:
        """Return hosts with their requests, with nothing of theirs running."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        secret = folder / "secret"
        secret.write_text(hashlib.sha256(b"bench").hexdigest())
        hub = {
            "kind": "huggingface",
            "endpoint": f"http://{self.places[0].address}:{HUB_PORT}",
            "repository": REPOSITORY,
            "revision": None,
        }
        where = {f"host{place.number:02}": (place.address, PORT) for place in self.places[1 : count + 1]}
        found = []
        for place in self.places[1 : count + 1]:
            name = f"host{place.number:02}"
            member = Member(name, folder / name, place.prefix)
            more = {"secret_file": str(secret), "piece_bytes": self.piece, "poll": self.poll}
            write_request(member, [hub], where, **more)
            found.append(member)
        return found

    def run(
        self,
        count: int,
        meanwhile: Callable[[Meanwhile], None] = lambda _: None,
        corrupt: int | None = None,
    ) -> tuple[float, float, list[Sample]]:
        """Let hosts pull; return seconds, bytes from the origin ÷ size, and progress over time.

        The seconds are from the first request for a part of the model to the last host's end: all hosts start
        their programs on the cores of this one machine, which must not be measured.

        ``corrupt``: a host that serves zeros instead of everything.
        """
        members = self.members(count, self.folder / "hosts")
        samples: list[Sample] = []
        with self.hub(), contextlib.ExitStack() as stack:
            for number, member in enumerate(members):
                stack.callback(member.end)
                if count > 1:
                    member.serve(self.zeros if number == corrupt else None)
            begun, today = time.monotonic(), time.time()
            for member in members:
                member.start("--stall", "20")
            watch = Meanwhile(members, self.size, begun)
            thread = threading.Thread(target=meanwhile, args=(watch,), daemon=True)
            thread.start()
            ends: dict[str, float] = {}
            while len(ends) < len(members):
                now = time.monotonic() - begun
                if now > 900:
                    raise SystemExit("not there after 900 s: " + members[0].output[-800:])
                for member in members:
                    status = None if member.pull is None else member.pull.poll()
                    if member.name in ends or status is None or member.name in watch.down:
                        continue
                    if status != 0:
                        raise SystemExit(f"{member.name}: exit status {status}: {member.output[-800:]}")
                    ends[member.name] = now
                if count <= 16:
                    samples += [Sample(member.name, now, watch.have(member)) for member in members]
                time.sleep(0.1 if count <= 16 else 0.5)
            start = self.first_byte() - today
            seconds = max(ends.values()) - start
            samples = [Sample(one.host, one.seconds - start, one.have) for one in samples]
            samples = [one for one in samples if one.seconds >= 0]
            thread.join(timeout=10)
            origin = self.origin() / self.size
        for member in members:
            if digest(member.request.path) != self.files:
                raise SystemExit(f"{member.name}: bytes differ from the published ones")
        shutil.rmtree(self.folder / "hosts")
        return seconds, origin, samples

    def zeros(self, configuration: str) -> str:
        """Return the configuration of a host that has files of zeros instead of the model's."""
        folder = self.folder / "zeros"
        for path in (self.folder / "published").iterdir():
            folder.mkdir(exist_ok=True)
            with (folder / path.name).open("wb") as file:
                file.truncate(path.stat().st_size)
        return re.sub(r'try_files "[^"]*/\$2" [^;]*;', f'try_files "{folder}/$2" =404;', configuration)


@dataclass
class Meanwhile:
    """What a benchmark may observe and do while hosts pull."""

    members: list[Member]
    size: int
    begun: float
    down: set[str] = field(default_factory=set)

    def have(self, member: Member) -> int:
        """Return a host's bytes, complete or partial, as blocks on its disk."""
        total = 0
        request = member.file.parent / "srv"
        for folder, _, names in os.walk(request):
            for name in names:
                with contextlib.suppress(OSError):
                    total += (Path(folder) / name).stat().st_blocks * 512
        return min(total, self.size)

    def wait_for_share(self, share: float) -> None:
        """Return when the fleet has a share of all it needs."""
        wait_for(lambda: sum(map(self.have, self.members)) >= share * self.size * len(self.members), 600)


def killed(watch: Meanwhile) -> None:
    """Stop one host at 40 % and start it again at 60 %."""
    member = watch.members[2]
    watch.wait_for_share(0.4)
    watch.down.add(member.name)
    member.end()
    watch.wait_for_share(0.6)
    member.serve()
    member.start("--stall", "20")
    watch.down.discard(member.name)


def digest(path: Path) -> dict[str, str]:
    found = {}
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb") as content:
            found[file.name] = hashlib.file_digest(content, "sha256").hexdigest()
    return found


def answers(prefix: Sequence[str], address: str, port: int) -> bool:
    command = [*prefix, "curl", "-s", "-o", "/dev/null", "-m", "2", f"http://{address}:{port}/"]
    return subprocess.run(command, check=False).returncode == 0


def wait_for(ready: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise SystemExit("timed out")
        time.sleep(0.1)


def shape_shared(places: Sequence[Place], uplink: int, lan: int) -> None:
    """One uplink for all at the hub, and a LAN for each host."""
    places[0].shape(uplink)
    for place in places[1:]:
        place.shape(lan)


def shape_own(places: Sequence[Place], each: int, lan: int) -> None:
    """A separate line to the hub for each host, and a LAN."""
    for place in places[1:]:
        place.shape(lan)
    shaping.limit("eth0", None, ["-n", places[0].space])
    shaping.limit(places[0].outer, None)
    addresses = [place.address for place in places[1:]]
    shaping.limit_each("eth0", each, addresses, ["-n", places[0].space])


def lan(bench: Bench, mbit: int | None, rounds: int) -> tuple[float, float]:
    """Return bytes per second that one host takes from another, and that curl does, medians in turn."""
    first, second = bench.places[1:3]
    for place in bench.places[:3]:
        shaping.limit(place.outer, None)
        shaping.limit("eth0", None, ["-n", place.space])
    ours, theirs = [], []
    with bench.hub(), contextlib.ExitStack() as stack:
        giver, taker = bench.members(2, bench.folder / "hosts")
        stack.callback(giver.end)
        stack.callback(taker.end)
        giver.start()
        if giver.pull is None or giver.pull.wait() != 0:
            raise SystemExit(giver.output)
        giver.serve()
        taker.serve()
        if mbit is not None:
            first.shape(mbit)
            second.shape(mbit)
        raw = json.loads(taker.file.read_text())
        raw["sources"] = [{"kind": "directory", "path": "/nonexistent"}]
        taker.file.write_text(json.dumps(raw))
        name = max(giver.request.path.glob("*.safetensors"), key=lambda path: path.stat().st_size).name
        for _ in range(rounds):
            shutil.rmtree(taker.request.path, ignore_errors=True)
            watch = Meanwhile([taker], bench.size, time.monotonic())
            taker.start()
            points = []
            while taker.pull is not None and taker.pull.poll() is None:
                points.append((time.monotonic(), watch.have(taker)))
                time.sleep(0.02)
            ours.append(slope(points, bench.size))
            path = f"/files/{'0' * 32}/{name}"
            expires = int(time.time()) + 300
            share = taker.request.share
            if share is None:
                raise SystemExit("the request shares nothing")
            headers = {
                "X-Share-Expires": str(expires),
                "X-Share-Signature": signature(share.secrets()[0], expires, path, second.address),
            }
            command = [*second.prefix, "curl", "-sS", "--fail", "-o", str(taker.folder / "curl.out")]
            command += [word for name_of, value in headers.items() for word in ("-H", f"{name_of}: {value}")]
            command += ["-w", "%{speed_download}", f"http://{first.address}:{PORT}{path}"]
            theirs.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    shutil.rmtree(bench.folder / "hosts")
    return statistics.median(ours), statistics.median(theirs)


def slope(points: Sequence[tuple[float, int]], size: int) -> float:
    """Return bytes per second between a tenth and nine tenths: without the program's start and end."""
    middle = [point for point in points if 0.1 * size <= point[1] <= 0.9 * size]
    if len(middle) < 2:
        raise SystemExit("too fast to measure; give --lan-mb a larger value")
    return (middle[-1][1] - middle[0][1]) / (middle[-1][0] - middle[0][0])


def line(text: str, ratio: float, detail: str) -> None:
    print(f"{text:<66} {ratio:6.3f}   {detail}", flush=True)


@contextlib.contextmanager
def workbench(count: int, shards: int, size: int, piece: int, poll: float) -> Iterator[Bench]:
    """Make a model, the network and a place for all files on a tmpfs."""
    with tempfile.TemporaryDirectory(prefix="metal-share-", dir="/dev/shm") as name:
        folder = Path(name)
        total = publish(folder, shards, size)
        with neighbours(count), network(count) as places:
            bench = Bench(folder, places, total, piece, poll)
            bench.files = digest(folder / "published")
            yield bench


def small_fleet(options: argparse.Namespace, wanted: set[str]) -> None:
    """Measure a fleet whose members share an uplink, or have separate lines."""
    lan_mbit = options.lan_factor * options.uplink_mbit
    with workbench(options.hosts, options.shards, options.shard_mb * 1_000_000, 1_000_000, 0.1) as bench:
        print(
            f"{options.hosts} hosts, {options.shards} shards of {options.shard_mb} MB, uplink "
            f"{options.uplink_mbit} Mbit/s for all, LAN {lan_mbit} Mbit/s each, pieces of 1 MB"
        )
        shape_shared(bench.places, options.uplink_mbit, lan_mbit)
        if wanted & {"shared", "killed", "corrupt"}:
            alone, _, _ = bench.run(1)
            rate = bench.size * 8 / alone / 1e6
            line("1 host alone: rate ÷ the line's", rate / options.uplink_mbit, f"{alone:.2f} s")
        if "shared" in wanted:
            runs = [bench.run(options.hosts) for _ in range(options.rounds)]
            seconds, origin, samples = sorted(runs, key=lambda run: run[0])[len(runs) // 2]
            every = ", ".join(f"{run[0]:.2f}" for run in runs)
            line(f"{options.hosts} hosts ÷ 1 host (floor 1.06)", seconds / alone, f"{every} s")
            line("bytes from the origin ÷ size (floor 1.02)", max(run[1] for run in runs), "the worst run")
            if options.plot:
                options.plot.write_text(plot(samples, bench.size, alone, seconds), encoding="utf-8")
                print(f"plot: {options.plot}")
        if "killed" in wanted:
            seconds, origin, _ = bench.run(options.hosts, killed)
            line(
                "one killed at 40 %, back at 60 % ÷ 1 host (floor 1.12)", seconds / alone, f"{seconds:.2f} s"
            )
            line("… bytes from the origin ÷ size", origin, "")
        if "corrupt" in wanted:
            seconds, origin, _ = bench.run(options.hosts, corrupt=2)
            line("one host hands out zeros ÷ 1 host (floor 1.12)", seconds / alone, f"{seconds:.2f} s")
            line("… bytes from the origin ÷ size", origin, "")
        if "own" in wanted:
            each = max(1, options.uplink_mbit // 4)
            shape_own(bench.places, each, lan_mbit)
            alone, _, _ = bench.run(1)
            seconds, origin, _ = bench.run(options.hosts)
            detail = f"{seconds:.2f} s against {alone:.2f} s, {each} Mbit/s each"
            line("own line to the origin: all ÷ 1 host (floor 0.15)", seconds / alone, detail)
            line("… bytes from the origin ÷ size", origin, "")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = ("shared", "killed", "corrupt", "own", "many", "lan")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--hosts", type=int, default=8)
    parser.add_argument("--shards", type=int, default=12)
    parser.add_argument("--shard-mb", type=int, default=16)
    parser.add_argument("--uplink-mbit", type=int, default=40)
    parser.add_argument("--lan-factor", type=int, default=8, help="a host's LAN ÷ the uplink")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds of 'shared' and 'lan'; the median counts"
    )
    parser.add_argument("--many", type=int, default=64)
    parser.add_argument("--many-kb", type=int, default=640, help="of each of the 126 shards")
    parser.add_argument(
        "--many-mbit", type=int, default=4, help="uplink for 'many', slow enough for one machine's cores"
    )
    parser.add_argument("--lan-mb", type=int, default=1000)
    parser.add_argument("--plot", type=Path, help="write each host's progress in the middle run of 'shared'")
    options = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("needs root, for network namespaces")
    # A stop runs the clean-up like any other end.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))
    wanted = set(options.only)
    if wanted & {"shared", "killed", "corrupt", "own"}:
        small_fleet(options, wanted)
    if "many" in wanted:
        with workbench(options.many, 126, options.many_kb * 1000, options.many_kb * 1000, 1.0) as bench:
            shape_shared(bench.places, options.many_mbit, 8 * options.many_mbit)
            alone, _, _ = bench.run(1)
            seconds, origin, _ = bench.run(options.many)
            detail = f"{seconds:.1f} s against {alone:.1f} s, uplink {options.many_mbit} Mbit/s"
            line(f"{options.many} hosts, 8 readers, 126 shards ÷ 1 host (≤ 1.15)", seconds / alone, detail)
            line("… bytes from the origin ÷ size", origin, "")
    if "lan" in wanted:
        with workbench(2, 4, options.lan_mb * 250_000, 64 << 20, 0.1) as bench:
            for mbit, text in ((2000, "2 Gbit/s"), (None, "not shaped")):
                ours, theirs = lan(bench, mbit, options.rounds)
                detail = f"{ours / 1e6:.0f} MB/s against {theirs / 1e6:.0f} MB/s"
                line(f"LAN {text}: pull from one host ÷ curl (floor 0.8)", ours / theirs, detail)
    print(f"load average:  {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The pull and the verification of weights compared with the usual tools, both in the same run.

python benchmarks/weights_speed.py [--shards 12] [--shard-mb 64] [--line-mbit 200] [--rounds 3]

Everything is served by the lab's hub. Over loopback: our whole pull (start of Python, listing, hashing, flush
to the disk) against `hf download` and `modelscope download` of the same model, which neither hash nor flush.
Over a shaped line (a network namespace and tbf, made here; needs root): our rate against one curl of the same
size. `metal weights verify` against `sha256sum` on the same files, in parallel on all cores. Ratios above 1
are in our favour for rates, below 1 for times.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
sys.path.insert(0, str(ROOT))

REPOSITORY = "MiniMaxAI/MiniMax-M2.5"
SPACE, OUTER, INNER = f"mmbench{os.getpid()}", f"mmb{os.getpid()}o", f"mmb{os.getpid()}i"
NETWORK = "198.19.250"


def publish(folder: Path, shards: int, size: int) -> int:
    """Publish a model of random bytes on both sites; return its size in bytes."""
    from lab.hub import Store

    source = folder / "published"
    source.mkdir()
    noise = random.Random(1)  # noqa: S311  only has to be incompressible
    for number in range(shards):
        with (source / f"model-{number:05}-of-{shards:05}.safetensors").open("wb") as file:
            for _ in range(size // 1_000_000):
                file.write(noise.randbytes(1_000_000))
    (source / "config.json").write_text("{}\n")
    for site in ("huggingface", "modelscope"):
        Store(folder / "hub").publish(site, REPOSITORY, source)
    return sum(path.stat().st_size for path in source.iterdir())


@contextmanager
def hub(folder: Path, address: str) -> Iterator[str]:
    """Run the lab's hub on an address."""
    with socket.create_server((address, 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "lab.hub", "--root", str(folder / "hub"), "--host", address]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--access-log", "/dev/null"], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                socket.create_connection((address, port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://{address}:{port}"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def shaped(mbit: int) -> Iterator[list[str]]:
    """Make a namespace behind a line of ``mbit``; yield the prefix of commands that run in it."""

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    ip("netns", "add", SPACE)
    try:
        ip("link", "add", OUTER, "type", "veth", "peer", "name", INNER, "netns", SPACE)
        ip("addr", "add", f"{NETWORK}.1/30", "dev", OUTER)
        ip("link", "set", OUTER, "up")
        for words in (["addr", "add", f"{NETWORK}.2/30", "dev", INNER], ["link", "set", INNER, "up"]):
            ip("netns", "exec", SPACE, "ip", *words)
        subprocess.run(
            [
                *("tc", "qdisc", "add", "dev", OUTER, "root", "tbf"),
                *("rate", f"{mbit}mbit", "burst", "128kb", "latency", "50ms"),
            ],
            check=True,
        )
        yield ["ip", "netns", "exec", SPACE]
    finally:
        ip("netns", "delete", SPACE)


def timed(command: list[str], environment: dict[str, str]) -> float:
    """Run a command that must succeed; return its seconds."""
    begun = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command[:6])} …: exit status {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return seconds


def pull(folder: Path, url: str, kind: str, prefix: list[str]) -> float:
    """Run our pull into an empty directory; return its seconds."""
    target = folder / "ours"
    shutil.rmtree(target, ignore_errors=True)
    request = folder / "request.json"
    source = {"kind": kind, "endpoint": url, "repository": REPOSITORY, "revision": None}
    request.write_text(json.dumps({"path": str(target / "model" / "r"), "sources": [source]}))
    metal = [sys.executable, "-m", "minimax_metal.cli", "weights", "pull", "--request", str(request)]
    return timed([*prefix, *metal, "--spare", "0"], clean())


def clean(**more: str) -> dict[str, str]:
    """Return the environment without variables that would redirect a client."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "MODELSCOPE_")) and not name.lower().endswith("_proxy")
    }
    return {**kept, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", **more}


def client(folder: Path, url: str, name: str) -> float:
    """Run a hub's own client into an empty directory; return its seconds."""
    target = folder / "theirs"
    shutil.rmtree(target, ignore_errors=True)
    home = {"HF_HOME": str(target / "home"), "MODELSCOPE_CACHE": str(target / "home")}
    if name == "hf":
        command = [str(BIN / "hf"), "download", REPOSITORY, "--local-dir", str(target / "model")]
        return timed(command, clean(HF_ENDPOINT=url, **home))
    command = [
        str(BIN / "modelscope"),
        "download",
        "--model",
        REPOSITORY,
        "--local_dir",
        str(target / "model"),
    ]
    return timed(command, clean(MODELSCOPE_ENDPOINT=url, **home))


def compare(rounds: int, ours: Callable[[], float], theirs: Callable[[], float]) -> tuple[float, float]:
    """Run both in turn; return the median seconds of each: other load affects both."""
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    return statistics.median(one for one, _ in pairs), statistics.median(two for _, two in pairs)


def line(text: str, ratio: float, detail: str) -> None:
    print(f"{text:<58} {ratio:6.3f}   {detail}", flush=True)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shards", type=int, default=12)
    parser.add_argument("--shard-mb", type=int, default=64)
    parser.add_argument("--line-mbit", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="metal-bench-") as name:
        folder = Path(name)
        size = publish(folder, options.shards, options.shard_mb * 1_000_000)
        print(f"{options.shards} shards of {options.shard_mb} MB, medians of {options.rounds} rounds in turn")
        with hub(folder, "127.0.0.1") as url:
            for label, kind, tool in (
                ("hf download", "huggingface", "hf"),
                ("modelscope download", "modelscope", "modelscope"),
            ):
                ours, theirs = compare(
                    options.rounds,
                    lambda kind=kind: pull(folder, url, kind, []),  # type: ignore[misc]  # bound now
                    lambda tool=tool: client(folder, url, tool),  # type: ignore[misc]
                )
                detail = f"{ours:.2f} s against {theirs:.2f} s"
                line(f"loopback: our time ÷ {label} (floor 1.00)", ours / theirs, detail)
        files = sorted((folder / "ours" / "model" / "r").glob("*.safetensors"))
        cores = len(os.sched_getaffinity(0))
        metal = [sys.executable, "-m", "minimax_metal.cli", "weights", "verify", str(files[0].parent)]
        names = "\0".join(map(str, files))

        def sums() -> float:
            begun = time.perf_counter()
            subprocess.run(
                ["xargs", "-0", "-n1", f"-P{cores}", "sha256sum"],
                input=names, text=True, check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            return time.perf_counter() - begun

        ours, theirs = compare(options.rounds, lambda: timed(metal, clean()), sums)
        detail = f"{size / ours / 1e6:.0f} MB/s against {size / theirs / 1e6:.0f} MB/s, {cores} at once"
        line("verify: our rate ÷ parallel sha256sum (floor 0.95)", theirs / ours, detail)
        shutil.rmtree(folder / "theirs", ignore_errors=True)
        if os.geteuid() != 0:
            print("shaped line: needs root for a network namespace; left out")
            return 0
        with shaped(options.line_mbit) as prefix, hub(folder, f"{NETWORK}.1") as url:
            whole = folder / "hub" / "objects" / "whole"
            # The same number of bytes in one file, outside the published model: the line's rate for one
            # connection.
            from lab.hub import Store

            with whole.open("wb") as joined:
                for path in files:
                    with path.open("rb") as part:
                        shutil.copyfileobj(part, joined, 1 << 20)
            single = folder / "single"
            single.mkdir()
            whole.rename(single / "whole.safetensors")
            commit = Store(folder / "hub").publish("huggingface", "Bench/Whole", single).commit
            address = f"{url}/Bench/Whole/resolve/{commit}/whole.safetensors"
            curl = [
                *prefix,
                "curl",
                "--silent",
                "--show-error",
                "--fail",
                "--location",
                "-o",
                "/dev/null",
                address,
            ]
            ours, theirs = compare(
                max(1, options.rounds - 2),
                lambda: pull(folder, url, "huggingface", prefix),
                lambda: timed(curl, clean()),
            )
            detail = f"{size / ours * 8 / 1e6:.1f} Mbit/s against {size / theirs * 8 / 1e6:.1f}"
            line(f"line of {options.line_mbit} Mbit/s: our rate ÷ curl (floor 0.95)", theirs / ours, detail)
    load = os.getloadavg()[0]
    print(f"load average:  {load:.1f} on {os.cpu_count()} cores")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A running model hub of the lab, with its published files, failure rules and transfer log."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from lab.hub import Store
from tests.support.models import ARCHITECTURE, safetensors

REPOSITORY = "MiniMaxAI/MiniMax-M2.5"
PROJECT = Path(__file__).parents[2]
INDEX = "model.safetensors.index.json"


def model(shards: int = 6, size: int = 3_000_000, seed: int = 7) -> dict[str, bytes]:
    """Return the files of a model of random bytes: ``shards`` of about ``size`` bytes, and small ones."""
    noise = random.Random(seed)  # noqa: S311  test data
    names = [f"model-{number:05}-of-{shards:05}.safetensors" for number in range(shards)]
    files = {
        name: safetensors({name: noise.randbytes(size + noise.randrange(size // 10 + 1))}) for name in names
    }
    return files | {
        "config.json": json.dumps({"architectures": [ARCHITECTURE]}).encode(),
        "tokenizer_config.json": b"{}\n",
        "README.md": b"# A model\n",
        "empty.txt": b"",
        "tokenizer.json": b'{"version": "1.0"}',
        "figures/benchmark.svg": b"<svg/>",
        INDEX: json.dumps({"weight_map": {name: name for name in names}}).encode(),
    }


@dataclass
class Hub:
    """A hub that serves ``files`` as :data:`REPOSITORY` on both sites."""

    url: str
    store: Store
    files: Mapping[str, bytes]
    commit: str
    log: Path
    faults: Path

    def fail(self, *rules: dict[str, Any]) -> None:
        """Replace all rules with these."""
        scratch = self.faults.with_name("faults.new")
        scratch.write_text(json.dumps(rules))
        scratch.replace(self.faults)

    def source(self, kind: str = "huggingface", **more: Any) -> dict[str, Any]:
        """Return this hub as a source of a request."""
        found = {"kind": kind, "endpoint": self.url, "repository": REPOSITORY, "revision": self.commit}
        return {**found, **more}

    def lines(self, skip: int = 0) -> list[dict[str, Any]]:
        """Return the access log, without its first ``skip`` lines."""
        return [json.loads(line) for line in self.log.read_text().splitlines()[skip:]]

    def bodies(self, skip: int = 0) -> dict[str, list[tuple[int, int, str | None]]]:
        """Return per file of the model: (first byte, bytes handed to the socket, fault) of every answer."""
        by_hash = {hashlib.sha256(content).hexdigest(): path for path, content in self.files.items()}
        found: dict[str, list[tuple[int, int, str | None]]] = defaultdict(list)
        for line in self.lines(skip):
            if line["method"] != "GET" or line["status"] not in {200, 206}:
                continue
            where, path = line["path"], None
            if where.startswith("/huggingface-cdn/"):
                path = by_hash[where.split("/")[2]]
            elif "/resolve/" in where:
                path = where.split("/resolve/")[1].partition("/")[2]
            elif where.endswith("/repo"):
                path = parse_qs(line["query"])["FilePath"][0]
            if path is None:
                continue
            part = re.match(r"bytes (\d+)-", line["part"] or "")
            first = int(part[1]) if part else 0
            found[path].append((first, line["bytes"], line["fault"]))
        return found


@contextmanager
def running(folder: Path, files: Mapping[str, bytes], dialect: str | None = None) -> Iterator[Hub]:
    """Run a hub that publishes ``files``, with its working files below ``folder``."""
    source = folder / "published"
    for path, content in files.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(content)
    store = Store(folder / "hub")
    commits = {store.publish(site, REPOSITORY, source).commit for site in ("huggingface", "modelscope")}
    log, faults, out = folder / "access.log", folder / "faults.json", folder / "hub.out"
    log.touch()
    with out.open("w") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "lab.hub", "--root", str(store.root), "--port", "0"),
                *("--access-log", str(log), "--faults", str(faults)),
                *(() if dialect is None else ("--dialect", dialect)),
            ],
            cwd=PROJECT,
            stdout=output,
            stderr=output,
            env={name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"},
        )
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", out.read_text())):
            assert process.poll() is None, out.read_text()
            assert time.monotonic() < deadline, f"the hub did not come up: {out.read_text()}"
            time.sleep(0.05)
        yield Hub(found.group(), store, files, commits.pop(), log, faults)
    finally:
        process.terminate()
        process.wait(timeout=30)

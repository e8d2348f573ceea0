"""Bytes a fleet's cache read from its origins ÷ size of what its hosts got: `python benchmarks/staging.py`.

Reads the log of a cache that hosts were provisioned through, on standard input or from a host:

    ssh cache01 journalctl -u minimax-metal-artefacts -o cat | python benchmarks/staging.py -

Without a log it brings up the lab of lab/labs/staging.yml, sets up two hosts through the cache (with part of
the engine's lock, see tests/support/staging.py), counts, and takes the lab down. Bytes from origins are with
HTTP headers; "without a cache" is what the same hosts would have read from origins, each for itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from minimax_metal.common import traffic
from tests.support.site import Lab
from tests.support.staging import PlayedCopy, copy_with_short_locks

TAGS = "package_sources,artefact_cache,host_tools,nvidia_driver,cuda_toolkit,sglang_runtime"


def from_lab() -> list[str]:
    lab = Lab("staging-bench", "inventories/lab-staging")
    lab.lab("up", "--file", "lab/labs/staging.yml")
    try:
        with tempfile.TemporaryDirectory() as temporary:
            played = PlayedCopy(lab, copy_with_short_locks(Path(temporary)))
            run = played.play("--limit", "cache01,gpu01,gpu02", "--tags", TAGS)
            if run.returncode:
                raise SystemExit(run.output[-4000:])
        log = lab.ssh("cache01", "journalctl -u minimax-metal-artefacts -o cat --no-pager")
        return log.splitlines()
    finally:
        lab.lab("down")


def main() -> None:
    lines = sys.stdin.read().splitlines() if sys.argv[1:] == ["-"] else from_lab()
    found = traffic.read(lines)
    rows = {}
    for name, endings in (("wheels", (".whl",)), ("packages", (".deb",)), ("both", (".whl", ".deb"))):
        number, origin, size = traffic.ratio(found, *endings)
        apart = sum(file.size * len(file.clients) for path, file in found.items() if path.endswith(endings))
        if not number:
            raise SystemExit(f"no {name} in the log: was anything provisioned through this cache?")
        rows[name] = {"files": number, "bytes": size, "origin": round(origin / size, 4)}
        print(
            f"{name:9} {number:5} files {size / 1e6:9.1f} MB   origin ÷ size {origin / size:.4f}   "
            f"without a cache {apart / size:.2f}"
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{error}: {error.stderr}") from None

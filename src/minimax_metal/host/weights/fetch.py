"""One attempt to download all files from one source into a staging directory, as a separate process.

``python -m minimax_metal.host.weights.fetch`` reads a job (one line of JSON) from standard input and writes
events, a line of JSON each, to standard output. A process, because the parent can end one that hangs and lose
only the blocks in flight. It ends when its standard input is closed: no download outlives its pull.

Events: ``listed`` (revision, files, bytes, needed: bytes still to be fetched), ``progress`` (have: bytes of
the model here, fetched: received bytes, peers: those of them from other hosts of the fleet, hashed: bytes
read again), ``waiting`` (seconds, reason), ``note`` (text), ``verified`` (path, size), ``damaged`` (path,
reason: fetched again), ``retry`` (path, reason), ``failed`` (reason, permanent, space), ``done`` (the
manifest is written in the staging directory).
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TextIO

from minimax_metal.common.errors import UserError
from minimax_metal.host.weights.attempt import Attempt
from minimax_metal.host.weights.bound import Bound
from minimax_metal.host.weights.errors import one_line
from minimax_metal.host.weights.examine import Expected
from minimax_metal.host.weights.manifest import FOLDER
from minimax_metal.host.weights.proof import Proof
from minimax_metal.host.weights.request import Source
from minimax_metal.host.weights.share.swarm import SharedAttempt
from minimax_metal.host.weights.share_settings import Share
from minimax_metal.host.weights.sources import open_source


def end_with(parent: TextIO) -> None:
    """End this process as soon as its standard input is closed: the pull that started it has ended."""
    while parent.read(4096):
        time.sleep(0)
    os._exit(1)


def main() -> int:
    """Run one job from standard input; return 0 if everything is verified, else 1."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with, args=(sys.stdin,), name="parent", daemon=True).start()
    # Events use the real standard output; anything that a library prints goes to standard error.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    staging = Path(job["staging"])
    (staging / FOLDER).mkdir(parents=True, exist_ok=True)
    source = Source.parse(job["source"])
    wanted = job.get("expected") or {}
    expected = Expected(tuple(wanted.get("architectures") or ()), wanted.get("bytes"), wanted.get("name"))
    accept_unproved = bool(job.get("accept_unproved"))
    try:
        proof = None if job.get("proof") is None else Proof.parse(job["proof"])
        origin = Bound(
            # Hashes prove more than the files' contents.
            open_source(
                source, float(job.get("stall", 60.0)), expected, accept_unproved or proof is not None
            ),
            source,
            proof,
            accept_unhashed=bool(job.get("accept_unhashed")),
        )
    except UserError as error:
        events.write(
            json.dumps({"event": "failed", "reason": one_line(error), "permanent": True, "space": False})
            + "\n"
        )
        events.flush()
        return 1
    knobs: dict[str, Any] = {
        "workers": int(job.get("workers", 8)),
        "pause": float(job.get("pause", 1.0)),
        "patience": float(job.get("patience", 900.0)),
        "rate": float(job.get("rate", 0.0)),
        "expected": expected,
        "accept_unproved": accept_unproved,
    }
    share = Share.parse(job.get("share"))
    attempt = Attempt(origin, staging, events, **knobs)
    origin.note = lambda text: attempt.say("note", text=text)
    if share is not None:
        try:
            attempt = shared(origin, staging, events, share, float(job.get("stall", 60.0)), knobs)
        except UserError as error:
            attempt.say("note", text=f"{error}; not shared with the other hosts")
    return 0 if attempt.run(job["name"], source.as_dict()) else 1


def shared(
    origin: Bound, staging: Path, events: TextIO, share: Share, stall: float, knobs: Mapping[str, Any]
) -> Attempt:
    """Return an attempt shared with other hosts.

    Raises:
        UserError: the fleet's secret is missing.
    """
    return SharedAttempt(origin, staging, events, share=share, secrets=share.secrets(), stall=stall, **knobs)


if __name__ == "__main__":
    # Threads may hang in a read after a failure: the result is known, so don't wait for them.
    STATUS: Final = main()
    sys.stderr.flush()
    os._exit(STATUS)

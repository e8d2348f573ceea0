"""``python -m lab.hub``: serve the published models."""

from __future__ import annotations

import argparse
import socket
import sys
from pathlib import Path

import uvicorn

from lab.hub.application import create
from lab.hub.dialects import DIALECTS


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lab.hub", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder of the published models")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, help="0 takes any free port")
    parser.add_argument("--access-log", type=Path, help="file for one line of JSON per request; else stdout")
    parser.add_argument(
        "--faults", type=Path, help="file of rules for failing answers; see lab/hub/faults.py"
    )
    parser.add_argument("--dialect", choices=DIALECTS, help="dialect of a repository manager or mirror")
    options = parser.parse_args(argv)
    if not options.root.is_dir():
        print(f"found no folder {options.root}; publish models into it first", file=sys.stderr)
        return 2
    log = options.access_log.open("a", encoding="utf-8") if options.access_log else sys.stdout
    try:
        listener = socket.create_server((options.host, options.port), backlog=512)
    except OSError as error:
        where = f"{options.host}:{options.port}"
        print(f"cannot listen on {where}: {error.strerror}; take another address or port", file=sys.stderr)
        return 2
    host, port = listener.getsockname()[:2]
    print(f"model hub on http://{host}:{port}, serving {options.root}", file=sys.stderr, flush=True)
    configuration = uvicorn.Config(
        create(options.root, log, faults=options.faults, dialect=options.dialect),
        access_log=False,
        log_level="warning",
        server_header=False,
        # A silent client must not keep the lab from going down.
        timeout_graceful_shutdown=2,
    )
    uvicorn.Server(configuration).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())

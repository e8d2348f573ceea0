"""One preparation of a lab in a separate process, so that several run in parallel and each can be ended.

``python -m lab.hosts.prepare RESULT KIND ARGUMENT…``; the result is a JSON object in the file ``RESULT``,
with ``error`` if it failed for a reason the user can fix.
"""

from __future__ import annotations

import json
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from lab.hosts.errors import LabError
from lab.hosts.paths import cache_root, lab_paths
from lab.hosts.processes import write_whole
from minimax_metal.common.errors import UserError

Result = dict[str, str]


def root(system: str) -> Result:
    """Create the root of a system, unless the cache has it."""
    from lab.hosts import roots

    wanted = roots.recipe(system)
    made = roots.build(wanted)
    return {"did": "built" if made else "from the cache", "directory": str(wanted.directory)}


def repository(name: str) -> Result:
    """Build the vendor's package repository."""
    from lab.vendor.repository import build

    paths = lab_paths(name)
    built = build(paths.vendor, paths.vendor_keys)
    return {"did": "ready", "url_path": built.url_path, "key_fingerprint": built.key_fingerprint}


def models(name: str, *wanted: str) -> Result:
    """Publish the tiny models, trained if the cache has none."""
    from lab.models import publish

    paths = lab_paths(name)
    try:
        publish(list(wanted), paths.hub, paths.catalog_overlay)
    except KeyError as error:
        raise LabError(f"model {error}: the lab has no tiny model of that name (lab/models)") from None
    return {"did": "published"}


def wheel() -> Result:
    """Build the engine's CPU plug-in."""
    from lab.engine.wheel import build_wheel

    return {"did": "built", "path": str(build_wheel(cache_root() / "wheels"))}


def simulated(name: str) -> Result:
    """Build the simulated engine, and a catalogue overlay that gives its release a lock of three packages."""
    import yaml

    from lab.engine.wheel import SIMULATED, build_wheel

    path = build_wheel(cache_root() / "wheels" / "simulated", SIMULATED)
    release = path.name.split("-")[1]
    lock = str(SIMULATED / "requirements.txt")
    overlay = lab_paths(name).engine_overlay
    locks = dict.fromkeys(("3.11", "3.12", "3.13"), lock)
    write_whole(overlay, yaml.safe_dump({"engines": {release: {"locks": locks}}}))
    return {"did": "built", "path": str(path)}


KINDS: Final[dict[str, Callable[..., Result]]] = {
    "root": root,
    "repository": repository,
    "models": models,
    "wheel": wheel,
    "simulated": simulated,
}


def main(argv: Sequence[str]) -> int:
    """Do one preparation and write its result."""
    # Its parent ends this by SIGTERM: end its own children too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    result, kind, *arguments = argv
    try:
        outcome, status = KINDS[kind](*arguments), 0
    except UserError as error:
        outcome, status = {"error": str(error)}, 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        traceback.print_exc()  # to the preparation's log
        outcome, status = {"error": f"{type(error).__name__}: {error}", "unexpected": "yes"}, 1
    write_whole(Path(result), json.dumps(outcome) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

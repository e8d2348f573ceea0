"""The Pythons that uv brings where a distribution's is too old."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from urllib.parse import unquote

from minimax_metal.common.documents import read_json
from minimax_metal.common.errors import UserError
from minimax_metal.controller.bundle import programs
from minimax_metal.controller.bundle.download import Item, get
from minimax_metal.controller.bundle.wheels import uv_program


def find(python: str, architecture: str, mirror: str) -> Item:
    """Return what uv would fetch for a minor version, from a mirror, with the hash that its release states.

    Raises:
        UserError: uv knows no such Python, or the mirror lacks the release's hashes.
    """
    request = _request(python, architecture)
    command = [
        uv_program(),
        "python",
        "list",
        "--only-downloads",
        "--show-urls",
        "--output-format",
        "json",
        request,
    ]
    done = programs.run(command)
    try:
        url = str(read_json(done.out)[0]["url"])
    except (ValueError, LookupError, TypeError):
        raise UserError(
            f"found no download of Python {python} in uv's list, expected one; update uv"
        ) from None
    match = re.search(r"/releases/download/([^/]+)/([^/]+)$", url)
    if match is None:
        raise UserError(
            f"found {url} in uv's list, expected …/releases/download/TAG/FILE; update minimax-metal"
        )
    tag, name = match[1], unquote(match[2])
    if "/" in name or tag in {".", ".."}:
        raise UserError(f"found {url} in uv's list, expected the name of a file; update uv")
    sums = get(f"{mirror}/{tag}/SHA256SUMS", f"the hashes of release {tag}").decode(errors="replace")
    lines = [line.split() for line in sums.splitlines()]
    hashes = {words[1]: words[0] for words in lines if len(words) == 2}
    if name not in hashes:
        raise UserError(
            f"found no {name} in SHA256SUMS of {tag} at {mirror}, expected its hash; use another mirror"
        )
    return Item(f"{mirror}/{tag}/{match[2]}", f"python/{tag}/{name}", -1, hashes[name])


def check(python: str, architecture: str, directory: Path) -> None:
    """Have uv take a Python out of the bundle, as a host would: by the hash inside uv, not by the mirror's.

    Raises:
        UserError: it is another file than uv knows.
    """
    with tempfile.TemporaryDirectory(prefix="metal-bundle-") as scratch:
        command = [
            uv_program(), "python", "install", "--no-config", "--no-bin", "--install-dir", scratch,
            "--mirror", (directory / "python").resolve().as_uri(), _request(python, architecture),
        ]  # fmt: skip
        done = programs.run(command)
    if "Hash mismatch" in done.err:
        raise UserError(
            f"found a Python {python} at the mirror with another hash than uv knows, expected uv's own; "
            f"delete {directory / 'python'} and set metal_python_mirror to another mirror"
        )
    if done.status:
        said = " ".join(done.err.split())[-300:]
        raise UserError(
            f"found that uv can't take Python {python} out of {directory / 'python'} ({said}), expected a "
            "host to be able to; delete that directory and run it again"
        )


def _request(python: str, architecture: str) -> str:
    return f"cpython-{python}-linux-{architecture}-gnu"

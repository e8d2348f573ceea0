"""Pythons that uv installs where the distribution's is too old."""

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
    """Return what uv would download for a minor version, from a mirror, with the hash that its release
    publishes.

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
    """Let uv install a Python from the bundle, as a host would: verified by uv's own hash, not the mirror's.

    Raises:
        UserError: the file does not match uv's hash.
    """
    with tempfile.TemporaryDirectory(prefix="metal-bundle-") as scratch:
        command = [
            uv_program(), "python", "install", "--no-config", "--no-bin", "--install-dir", scratch,
            "--mirror", (directory / "python").resolve().as_uri(), _request(python, architecture),
        ]  # fmt: skip
        done = programs.run(command)
    if "Hash mismatch" in done.err:
        raise UserError(
            f"found a Python {python} at the mirror whose hash is not the one uv knows, expected "
            f"uv's own build; delete {directory / 'python'} and set metal_python_mirror to another "
            "mirror"
        )
    if done.status:
        said = " ".join(done.err.split())[-300:]
        raise UserError(
            f"found that uv can't install Python {python} from {directory / 'python'} ({said}), "
            "expected it to install as on a host; delete that directory and run the command again"
        )


def _request(python: str, architecture: str) -> str:
    return f"cpython-{python}-linux-{architecture}-gnu"

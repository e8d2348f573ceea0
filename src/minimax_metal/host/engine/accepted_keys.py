"""``metal keys accepted``: whether this host's engine accepts exactly the keys in its file.

Exit status: 0 it does; 1 it does not; 2 wrong usage, or no file of keys.
"""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.errors import UserError
from minimax_metal.host.engine.health import ask
from minimax_metal.host.engine_plugin.minimax_metal_engine.identity import MANAGERS, PATH, Identity
from minimax_metal.host.engine_plugin.minimax_metal_engine.keys import FILE, Accepted, parse

ASK_SECONDS: Final = 20.0
"""An engine that reads new keys stretches each of them first, which takes 0.1 s of processor time."""


def main(argv: Sequence[str]) -> int:
    """Ask an engine for its proofs, and compare them with the keys in its file."""
    parser = argparse.ArgumentParser(prog="metal keys accepted", allow_abbrev=False)
    parser.add_argument("--url", required=True, help="URL at the host's own address")
    parser.add_argument("--identity", required=True, help="address that the engine proves its identity for")
    parser.add_argument("--directory", type=Path, required=True, help="directory of its keys")
    arguments = parser.parse_args(list(argv)[1:])  # the first argument is the word accepted
    try:
        keys = parse((arguments.directory / FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{arguments.directory / FILE}: {error}; run playbooks/serve.yml") from None
    found = engine_takes(arguments.url, arguments.identity, keys)
    print(found or "accepts exactly the keys in its file")
    return 1 if found else 0


def engine_takes(url: str, address: str, keys: Accepted) -> str:
    """Return why an engine does not accept exactly these keys; empty if it does."""
    from urllib.parse import urljoin

    nonce = secrets.token_hex(32)
    status, text = ask(f"{urljoin(url, PATH)}?nonce={nonce}", ASK_SECONDS)
    if status != "200":
        return f"found {status} at {PATH}, expected the guard's answer"
    try:
        raw = read_json(text)
        clients, managers = raw["proofs"], raw["managers"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "found a guard that reads keys only at start, expected one that reloads them"
    wanted = [Identity(key, address).proof(nonce) for key in keys.user]
    wanted_managers = [Identity(key, address + MANAGERS).proof(nonce) for key in keys.admin]
    if clients == wanted and managers == wanted_managers:
        return ""
    return "found an engine that accepts other keys than those in its file, expected exactly these"

"""``metal keys``: rotate the keys of a fleet while it serves, and show the stage of a rotation.

metal keys rotate [--key NAME ...] [--finish | --take-back] -i INVENTORY [any option of ansible-playbook]
    metal keys rotate --key share [--finish] -i INVENTORY
    metal keys status --secrets DIRECTORY

The playbook uses three more: ``step`` and ``arrived`` store the state on the controller, ``accepted`` asks an
engine on its own host whether it accepts exactly the keys in its file. No key is in any argument or output.
Exit status: that of ``metal site``; ``accepted``: 0 it does, 1 it does not; 2 wrong usage, or refused.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from minimax_metal.common.errors import UserError
from minimax_metal.controller.keys import rotation
from minimax_metal.host.weights.share.renewal import DROP, RENEW

SHARE: Final = "share"
"""The sharing secret, of which hosts themselves accept two (host/weights/share/renewal.py)."""
ASK_SECONDS: Final = 20.0
"""An engine that reads new keys stretches each of them first, which takes 0.1 s of processor time."""


def rotate(argv: Sequence[str]) -> int:
    """Run playbooks/rotate.yml; for the sharing secret, playbooks/rotate_share.yml."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    way = own.add_mutually_exclusive_group()
    way.add_argument("--finish", action="store_true")
    way.add_argument("--take-back", action="store_true")
    own.add_argument("--key", action="append", choices=(*rotation.NAMES, SHARE))
    if "-h" in argv or "--help" in argv:
        print(HELP)
        return 0
    known, rest = own.parse_known_args(list(argv))
    verb = rotation.FINISH if known.finish else rotation.TAKE_BACK if known.take_back else rotation.START
    if SHARE in (known.key or ()):
        return _rotate_share(verb, known.key, rest)
    given: dict[str, object] = {"metal_keys_do": verb}
    if known.key:
        given["metal_keys_names"] = list(dict.fromkeys(known.key))
    return _play(
        "rotate", "Rotate the fleet's keys; the old and the new one are both valid meanwhile", given, rest
    )


def _play(playbook: str, does: str, given: Mapping[str, object], rest: Sequence[str]) -> int:
    from minimax_metal.controller.verbs.run import Verb, run_verb

    path = f"playbooks/{playbook}.yml"
    verb = Verb(name="keys", playbook=path, description=f"{does}: {path}.", expected=(), stops_itself=False)
    return run_verb(verb, [*rest, "-e", json.dumps(given)])


def _rotate_share(verb: str, names: Sequence[str], rest: Sequence[str]) -> int:
    if set(names) != {SHARE}:
        raise UserError(
            "found --key share beside other keys, expected it alone: only hosts use it, clients "
            "don't; run metal keys rotate once for each"
        )
    if verb == rotation.TAKE_BACK:
        raise UserError(
            "found --take-back for share, expected none: nobody has to be given the new secret; "
            "renew it again instead"
        )
    do = DROP if verb == rotation.FINISH else RENEW
    return _play("rotate_share", "Renew the sharing secret", {"metal_share_secret_do": do}, rest)


HELP: Final = f"""\
usage: metal keys rotate [--key NAME ...] [--finish | --take-back] -i INVENTORY [any option of
ansible-playbook]

Without --finish: every engine and gateway accepts the old and the new key, and the new one becomes the
fleet's key. Give clients the new key, then:
  --finish     revoke the old key
  --take-back  go back to the old key, from any stage of a rotation
  --key NAME   {", ".join(rotation.NAMES)}; by default all of them (repeatable)
  --key share  the secret by which hosts share a pull: renewed at once, the previous one stays valid for a
               day; with --finish the previous one is revoked now

Run the same command again to continue an interrupted run. metal keys status shows the stage.
"""


def status(argv: Sequence[str]) -> int:
    """Print the stage of a key rotation."""
    arguments = _parser("status").parse_args(argv)
    state = rotation.read(arguments.secrets)
    if state is None:
        print("no key rotation is in progress")
        return 0
    place = rotation.PLACES[state.at]
    if state.at != state.to:
        place = f"between {place!r} and {rotation.PLACES[state.to]!r}: the run did not finish; run it again"
    print(f"{', '.join(sorted(state.keys))}: {place}, since {state.began}")
    return 0


def step(argv: Sequence[str]) -> int:
    """Decide and store the next stage; print it as JSON."""
    parser = _parser("step")
    parser.add_argument("--do", choices=rotation.VERBS, required=True)
    parser.add_argument("--key", action="append", default=[])
    parser.add_argument("--further", action="store_true", help="not the first step of a run")
    arguments = parser.parse_args(argv)
    names = tuple(arguments.key) or rotation.NAMES
    print(json.dumps(rotation.step(arguments.secrets, arguments.do, names, further=arguments.further)))
    return 0


def arrived(argv: Sequence[str]) -> int:
    """Note that all hosts have reached the stage; print its name."""
    print(rotation.arrived(_parser("arrived").parse_args(argv).secrets))
    return 0


def _parser(verb: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"metal keys {verb}", allow_abbrev=False)
    parser.add_argument(
        "--secrets",
        type=Path,
        required=True,
        metavar="DIRECTORY",
        help="the fleet's secrets directory (on the controller)",
    )
    return parser


VERBS: Final[dict[str, Callable[[Sequence[str]], int]]] = {
    "rotate": rotate,
    "status": status,
    "step": step,
    "arrived": arrived,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    words = list(argv or ())
    if not words or words[0] in {"-h", "--help"}:
        print(__doc__)
        return 0 if words else 2
    if words[0] not in VERBS:
        raise UserError(f"found {words[0]!r}, expected rotate or status")
    return VERBS[words[0]](words[1:])

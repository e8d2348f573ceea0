"""Options of ``metal rollout`` and its siblings: our own and ansible-playbook's.

Ansible's options are passed on unchanged. A few are also inspected: inventories and extra variables (for
masking secrets), and the passwords that Ansible will ask for.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LISTING = ("--list-hosts", "--list-tasks", "--list-tags", "--syntax-check", "--version")
"""Options with which ansible-playbook runs nothing: it is called directly."""


@dataclass(frozen=True)
class Words:
    """The options on the command line."""

    own: argparse.Namespace
    ansible: tuple[str, ...]
    """Passed on, word by word."""
    inventories: tuple[Path, ...]
    extra_variables: tuple[str, ...]
    limit: str | None
    tags: tuple[str, ...]
    """Tags to run and, with a leading ``-``, to skip; empty: all."""
    check: bool
    lists: bool
    passwords: tuple[tuple[str, str], ...]
    """Passwords that Ansible will ask for: our prompt, and the pattern of its question."""


def own_parser(verb: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Return the parser of our own options; no name clashes with Ansible's."""
    parser = argparse.ArgumentParser(
        prog=f"metal {verb}",
        usage=f"metal {verb} [--view VIEW] [--runs DIRECTORY] [any option of ansible-playbook]",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--view",
        choices=("auto", "live", "plain", "ansible"),
        default="auto",
        help="live on a terminal, plain lines elsewhere, or Ansible's own output (auto)",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        metavar="DIRECTORY",
        help="directory of runs ($XDG_STATE_HOME/minimax-metal/runs)",
    )
    return parser


def _ansible_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-i", "--inventory", "--inventory-file", action="append", default=[])
    parser.add_argument("-e", "--extra-vars", action="append", default=[])
    parser.add_argument("-l", "--limit")
    parser.add_argument("-t", "--tags", action="append", default=[])
    parser.add_argument("--skip-tags", action="append", default=[])
    parser.add_argument("-C", "--check", action="store_true")
    parser.add_argument("-k", "--ask-pass", action="store_true")
    parser.add_argument("-K", "--ask-become-pass", action="store_true")
    parser.add_argument("-J", "--ask-vault-password", "--ask-vault-pass", action="store_true")
    parser.add_argument("--vault-id", action="append", default=[])
    for option in LISTING:
        parser.add_argument(option, action="store_true")
    return parser


def read_words(parser: argparse.ArgumentParser, words: Sequence[str]) -> Words:
    """Split the arguments into ours and Ansible's."""
    own, ansible = parser.parse_known_args(list(words))
    seen, _ = _ansible_parser().parse_known_args(ansible)
    prompts: list[tuple[str, str]] = []
    if seen.ask_pass:
        prompts.append(("SSH password: ", r"SSH password:\s*$"))
    if seen.ask_become_pass:
        prompts.append(("BECOME password: ", r"BECOME password.*:\s*$"))
    if seen.ask_vault_password:
        prompts.append(("Vault password: ", r"Vault password:\s*$"))
    for name in (one.removesuffix("@prompt") for one in seen.vault_id if one.endswith("@prompt")):
        prompts.append((f"Vault password ({name}): ", rf"Vault password \({name}\):\s*$"))
    return Words(
        own=own,
        ansible=tuple(ansible),
        inventories=tuple(Path(one) for one in seen.inventory if "," not in one),
        extra_variables=tuple(seen.extra_vars),
        limit=seen.limit,
        tags=tuple(
            sorted(
                {
                    sign + tag.strip()
                    for sign, given in (("", seen.tags), ("-", seen.skip_tags))
                    for one in given
                    for tag in one.split(",")
                }
            )
        ),
        check=seen.check,
        lists=any(getattr(seen, option.strip("-").replace("-", "_")) for option in LISTING),
        passwords=tuple(prompts),
    )

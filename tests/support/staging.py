"""A copy of this project with a short lock of the engine, for runs in which every byte is counted.

The full lock is 4.3 GB per host. A part of the same lock stands in for it, with its hashes: the engine's own
wheel, some small ones, and one large enough to come in many parts. It tests how wheels arrive, not that the
engine would start from them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.site import REPOSITORY, Lab, Run, changed_tasks, recap

PARTS = (
    "ansible.cfg", "site.yml", "playbooks", "roles", "templates", "plugins", "requirements", "src",
    "inventories", "pyproject.toml", "README.md", "LICENSE",
)  # fmt: skip
PACKAGES = (
    "sglang",
    "numpy",
    "scipy",
    "transformers",
    "nvidia-nccl-cu13",
    "packaging",
    "xgrammar",
    "aiohttp",
)


def entries(lock: str) -> dict[str, str]:
    """The packages of a lock: name to its lines."""
    found: dict[str, str] = {}
    for block in re.split(r"^(?=[A-Za-z0-9])", lock, flags=re.MULTILINE):
        if match := re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)(\[[^\]]*\])?==", block):
            found[match[1]] = block
    return found


def copy_with_short_locks(directory: Path, packages: tuple[str, ...] = PACKAGES) -> Path:
    """Copy the project, with locks of the engine that hold only some packages; return its directory."""
    for name in PARTS:
        source = REPOSITORY / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, directory / name, symlinks=True, ignore=ignore, dirs_exist_ok=True)
        else:
            shutil.copy(source, directory / name)
    collection = directory / ".ansible/collections/ansible_collections/minimax"
    collection.mkdir(parents=True, exist_ok=True)
    (collection / "metal").symlink_to("../../../..")
    for lock in (directory / "src/minimax_metal/catalog/locks").glob("*.txt"):
        kept = entries(lock.read_text())
        lock.write_text("".join(kept[name] for name in packages if name in kept))
    return directory


@dataclass(frozen=True)
class PlayedCopy:
    """A lab, and the copy of the project whose playbooks and program run on it."""

    lab: Lab
    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which the copy's package takes precedence over the project's own."""
        return {
            **os.environ,
            "PYTHONPATH": str(self.directory / "src"),
            "ANSIBLE_CONFIG": str(self.directory / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
        }

    @property
    def inventories(self) -> list[str]:
        """The two inventories, as options."""
        return ["-i", self.lab.inventory, "-i", str(self.lab.state / "inventory" / "hosts.yml")]

    def play(self, *arguments: str) -> Run:
        """Run ``site.yml`` of the copy."""
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        done = subprocess.run(
            [program, "site.yml", *self.inventories, *arguments],
            cwd=self.directory,
            check=False,
            text=True,
            capture_output=True,
            env=self.environment,
        )
        return Run(done.returncode, done.stdout + done.stderr, changed_tasks(done.stdout), recap(done.stdout))

    def metal(self, *arguments: str) -> str:
        """Run ``metal`` of the copy; it must succeed."""
        done = subprocess.run(
            [sys.executable, "-m", "minimax_metal.cli", *arguments],
            cwd=self.directory,
            check=False,
            text=True,
            capture_output=True,
            env=self.environment,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

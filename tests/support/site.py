"""Run site.yml on lab hosts from a test, and read which tasks changed what."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Run:
    """One run of a playbook: exit status, all its output, and the tasks that reported a change."""

    returncode: int
    output: str
    changed: dict[str, list[str]]
    recap: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Lab:
    """The hosts of one lab."""

    name: str
    inventory: str = "inventories/lab"
    fresh: bool = False
    """Whether the test booted it: its hosts are bare."""

    @property
    def state(self) -> Path:
        """Directory that holds the lab's state."""
        return Path(os.environ.get("METAL_LAB_ROOT", "/var/lib/minimax-metal-lab")) / self.name

    @property
    def api_key(self) -> str:
        """The key of the lab's endpoints, as the run created it on the controller."""
        return (self.state / "secrets" / "api_key").read_text(encoding="ascii").strip()

    def lab(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Call the lab's command line; it must succeed."""
        return subprocess.run(
            [sys.executable, "-m", "lab", "--name", self.name, *arguments],
            cwd=REPOSITORY,
            check=True,
            text=True,
            capture_output=True,
        )

    def ssh(self, host: str, command: str, check: bool = True) -> str:
        """Run a shell command on a host and return what it printed."""
        done = subprocess.run(
            ["ssh", "-F", str(self.state / "ssh_config"), host, command],
            check=False,
            text=True,
            capture_output=True,
        )
        if check and done.returncode:
            raise AssertionError(f"{host}: {command}: {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def play(self, playbook: str, *arguments: str, environment: dict[str, str] | None = None) -> Run:
        """Run a playbook of the repository on the lab's inventory."""
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("ansible-playbook")),
                playbook,
                *("--inventory", self.inventory),
                *("--inventory", str(self.state / "inventory" / "hosts.yml")),
                *arguments,
            ],
            cwd=REPOSITORY,
            check=False,
            text=True,
            capture_output=True,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
                "ANSIBLE_NOCOLOR": "1",
                **(environment or {}),
            },
        )
        return Run(done.returncode, done.stdout + done.stderr, changed_tasks(done.stdout), recap(done.stdout))

    def written(self, host: str) -> dict[str, str]:
        """Return every file that the host has written over its root, with mode, size and time.

        The host's root is an overlay: its writes land in the upper directory. Left out are the files that a
        running system writes by itself, also at logins, and Ansible's own transfer directory.
        """
        upper = self.state / "hosts" / host / "upper"
        own = (
            "run/",
            "tmp/",
            "var/tmp/",
            "var/log/",
            "root/.ansible/",
            "var/lib/systemd/",
            "etc/resolv.conf",
            "root/.cache/",
            # apt's digest of its lists and of what is installed: any reader of root's makes it anew when one
            # of them is newer, Ansible's apt module in check mode too.
            "var/cache/apt/pkgcache.bin",
            "var/cache/apt/srcpkgcache.bin",
        )
        return {name: mark for name, mark in _marks(upper) if not name.startswith(own)}


@contextmanager
def booted(name: str, description: str, inventory: str = Lab.inventory) -> Iterator[Lab]:
    """Boot ``lab/labs/DESCRIPTION.yml`` under a name and remove it again, even if it fails to boot.

    With ``METAL_LAB_NAME`` that running lab is used, and left as it is.
    """
    if running := os.environ.get("METAL_LAB_NAME"):
        yield Lab(running, inventory)
        return
    lab = Lab(name, inventory, fresh=True)
    lab.lab("down")  # what an interrupted run may have left
    try:
        lab.lab("up", "--file", f"lab/labs/{description}.yml")
        yield lab
    finally:
        lab.lab("down")


def _marks(directory: Path) -> Iterator[tuple[str, str]]:
    for parent, directories, files in os.walk(directory):
        for name in [*files, *(name for name in directories if Path(parent, name).is_symlink())]:
            path = Path(parent, name)
            state = path.lstat()
            yield str(path.relative_to(directory)), f"{state.st_mode:o} {state.st_size} {state.st_mtime_ns}"


def changed_tasks(output: str) -> dict[str, list[str]]:
    """Return the names of the tasks and handlers that reported a change, by host, without the role's name."""
    changed: dict[str, list[str]] = {}
    task = ""
    for line in ANSI.sub("", output).splitlines():
        if match := re.match(r"(?:TASK|RUNNING HANDLER) \[(?:[\w.]+ : )?(.*)\] \*+", line):
            task = match.group(1)
        elif (match := re.match(r"changed: \[([^\]]+)\]", line)) and (
            task not in changed.setdefault(host := match.group(1).split(" -> ")[0], [])
        ):
            changed[host].append(task)
    return changed


def recap(output: str) -> dict[str, dict[str, int]]:
    """Return the counts of the play recap, by host."""
    counts = {}
    for line in ANSI.sub("", output).splitlines():
        if match := re.match(r"(\S+)\s+: (ok=\d+ .*)", line):
            counts[match.group(1)] = {
                key: int(value) for key, value in (pair.split("=") for pair in match.group(2).split())
            }
    return counts

"""Root file systems of the hosts: the contents of a bare server image, and nothing that roles install.

A root is a directory in the cache, named after a digest of its recipe, that hosts use as the lower layer of
their overlay. It is built beside its final path and renamed when complete, so an incomplete one is never
used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.hosts import apt, environment, mounts
from lab.hosts.errors import LabError
from lab.hosts.machine import locked
from lab.hosts.paths import cache_root

SYSTEMS: Final = {"debian-12": "bookworm", "debian-13": "trixie"}
PACKAGES: Final = (
    # Common contents of Debian's own server images, as far as a container needs them.
    "ca-certificates",
    "dbus",
    "iproute2",
    "kmod",
    "openssh-server",
    "procps",
    "python3",
    "python3-apt",
    "sudo",
    "systemd",
    "systemd-sysv",
    "tzdata",
    "udev",
)
HOOKS: Final = (
    # Host keys come from the lab, one set per host; the ones made here would be shared by all.
    'rm -f "$1"/etc/ssh/ssh_host_*',
    'chroot "$1" update-ca-certificates',
    # Nothing changes a host's package lists behind a tester's back.
    'chroot "$1" systemctl --quiet disable apt-daily.timer apt-daily-upgrade.timer',
)
RECIPE_VERSION: Final = 1


@dataclass(frozen=True)
class Recipe:
    """Everything that a root depends on."""

    system: str
    suite: str
    sources: str
    settings: tuple[str, ...]
    certificates: tuple[tuple[str, str], ...]

    @property
    def key(self) -> str:
        """The root's name in the cache."""
        text = json.dumps(
            [RECIPE_VERSION, PACKAGES, HOOKS, self.suite, self.sources, self.settings, self.certificates]
        )
        return f"{self.system}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def directory(self) -> Path:
        """Where the finished root is, or will be."""
        return cache_root() / "roots" / self.key


def recipe(system: str) -> Recipe:
    """Return the recipe of a system on this machine.

    Raises:
        LabError: an unknown system, or a machine without Debian sources.
    """
    if system not in SYSTEMS:
        raise LabError(f"system {system!r}: expected one of {', '.join(SYSTEMS)}")
    suite = SYSTEMS[system]
    return Recipe(
        system=system,
        suite=suite,
        sources=apt.debian_sources(apt.read_sources(), apt.machine_release(), suite),
        settings=tuple(apt.machine_settings()),
        certificates=tuple(environment.ca_certificates().items()),
    )


def build(wanted: Recipe) -> bool:
    """Create the root unless it exists; True if it was created now.

    Two labs that need the same root take turns, and the second finds it done.

    Raises:
        LabError: mmdebstrap failed; its log is named.
    """
    if wanted.directory.is_dir():
        return False
    roots = wanted.directory.parent
    roots.mkdir(parents=True, exist_ok=True)
    with locked(f"root-{wanted.key}"):
        if wanted.directory.is_dir():
            return False
        draft = roots / f".making-{wanted.key}"
        if draft.exists():  # left by an earlier, interrupted run
            mounts.unmount_below(draft)
            shutil.rmtree(draft)
        with tempfile.TemporaryDirectory(prefix="minimax-metal-root-") as scratch:
            _mmdebstrap(wanted, draft, Path(scratch), roots / f"{wanted.key}.log")
        for left in (draft / "etc/apt/sources.list.d").glob("*"):
            left.unlink()
        (draft / "etc/apt/sources.list").unlink(missing_ok=True)
        (draft / "etc/apt/sources.list.d/debian.sources").write_text(wanted.sources)
        draft.chmod(0o755)
        draft.rename(wanted.directory)
    return True


def _mmdebstrap(wanted: Recipe, draft: Path, scratch: Path, log: Path) -> None:
    sources = scratch / "debian.sources"
    sources.write_text(wanted.sources)
    certificates = scratch / "certificates"
    certificates.mkdir()
    for name, text in wanted.certificates:
        (certificates / name).write_text(text)
    argv = ["mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    argv += [f"--aptopt={line}" for line in wanted.settings]
    # Installed before update-ca-certificates runs; sources fetched by https use the machine's own bundle.
    argv.append(f"--customize-hook=sync-in {certificates} /usr/local/share/ca-certificates")
    argv += [f"--customize-hook={hook}" for hook in HOOKS]
    argv += [wanted.suite, str(draft), str(sources)]
    # In its own namespaces: however it ends, no mount and no process is left.
    contained = ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--", *argv]
    with log.open("w") as output:
        process = subprocess.Popen(
            contained,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait()
        except BaseException:
            process.send_signal(signal.SIGKILL)
            process.wait()
            raise
    if status:
        lines = [line for line in log.read_text().splitlines() if line.startswith("E:")] or [
            "no reason given"
        ]
        raise LabError(f"mmdebstrap could not make {wanted.system}: {lines[0]} (log: {log})")

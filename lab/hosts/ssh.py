"""Keys: one that opens every host of a lab, and a host key for each host.

The lab creates the host keys itself and writes known_hosts from them, so host-key checking never has to trust
a port scan.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from lab.hosts.network import Node
from lab.hosts.paths import LabPaths
from lab.hosts.processes import run, write_whole

HOST_KEY = "ssh_host_ed25519_key"


def host_key(paths: LabPaths, name: str) -> Path:
    """Return the private host key of a host, kept by the lab beside its public half."""
    return paths.ssh / "hosts" / name


def make_key(path: Path, comment: str) -> None:
    """Create a key pair unless it completely exists."""
    public = path.with_name(f"{path.name}.pub")
    if path.is_file() and public.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    public.unlink(missing_ok=True)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)])


def public_key(path: Path) -> str:
    """Return the public half of a key, type and key only."""
    return " ".join(path.with_name(f"{path.name}.pub").read_text().split()[:2])


def prepare(paths: LabPaths, lab: str, nodes: dict[str, Node]) -> None:
    """Make the lab's keys, known_hosts and ssh_config."""
    paths.ssh.mkdir(parents=True, exist_ok=True, mode=0o700)
    make_key(paths.ssh_key, f"lab {lab}")
    known = []
    config = [f"# ssh -F {paths.ssh_config} HOST"]
    for name, node in nodes.items():
        make_key(host_key(paths, name), name)
        known.append(f"{name},{node.address} {public_key(host_key(paths, name))}")
        config += [f"Host {name}", f"  HostName {node.address}"]
    config += ["Host *", "  User root", *(f"  {key} {value}" for key, value in options(paths).items())]
    write_whole(paths.known_hosts, "\n".join(known) + "\n")
    write_whole(paths.ssh_config, "\n".join(config) + "\n")


def options(paths: LabPaths) -> dict[str, str]:
    """Return the client options that reach exactly this lab host."""
    return {
        "IdentityFile": str(paths.ssh_key),
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": str(paths.known_hosts),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
    }


def command(paths: LabPaths, host: str, *remote: str, batch: bool = False) -> list[str]:
    """Return the ssh command line for a host."""
    argv = ["ssh", "-F", str(paths.ssh_config)]
    if batch:
        argv += ["-o", "BatchMode=yes", "-o", "ConnectTimeout=2", "-o", "LogLevel=ERROR"]
    return [*argv, host, *remote]


def answers(paths: LabPaths, host: str, *remote: str, seconds: float = 20.0) -> bool:
    """Tell whether a command succeeds on a host."""
    try:
        done = subprocess.run(
            command(paths, host, *remote, batch=True),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0

#!/usr/bin/python3 -IB
"""nv-fabricmanager stand-in: "configures" the NVSwitches, and refuses where the real one does.

It ends with status 1 when its version is not the driver's, and when the host has no NVSwitch. Messages:
published journals of the real program (see lab/vendor/README.md); the one for a driver that is not loaded is
ours. After it has started once, nvidia-smi -q shows Fabric State Completed until the next boot.

Python 3.9, standard library only.
"""

from __future__ import annotations

import os
import re
import sys
import syslog
from pathlib import Path

# Where its package puts what it shares with the others; NVIDIA_STANDIN_ROOT moves the root directory (tests).
sys.path.insert(0, os.environ.get("NVIDIA_STANDIN_ROOT", "") + "/usr/share/nvidia-standin/fabricmanager")

from standin_daemon import daemonise

ROOT = Path(os.environ.get("NVIDIA_STANDIN_ROOT", "/"))
SHARE = ROOT / "usr/share/nvidia-standin/fabricmanager"
PID_FILE = ROOT / "run/nvidia-fabricmanager/nv-fabricmanager.pid"


def say(text: str) -> None:
    """Log a message as the real one does, to syslog; to standard output when the root directory is moved."""
    if str(ROOT) == "/":
        syslog.openlog("nv-fabricmanager", syslog.LOG_PID, syslog.LOG_DAEMON)
        syslog.syslog(text)
    else:
        print(text, flush=True)


def own_version() -> str:
    """Return this fabric manager's version."""
    return (SHARE / "version").read_text().strip()


def nvswitches() -> list[str]:
    """Return the PCI addresses of the host's NVSwitches."""
    found = []
    for path in sorted((ROOT / "sys/bus/pci/devices").glob("*")):
        if (path / "vendor").read_text().strip() == "0x10de" and (path / "class").read_text().startswith(
            "0x0680"
        ):
            found.append(path.name)
    return found


def refusal() -> str | None:
    """Return why the fabric manager cannot run here, or None."""
    try:
        text = (ROOT / "proc/driver/nvidia/version").read_text()
    except OSError:
        return "fabric manager failed to open the NVIDIA driver: the kernel module is not loaded"
    found = re.search(r"Kernel Module(?: for \S+)?\s+(\d+\.[\d.]*\d)", text)
    driver = found.group(1) if found else "unknown"
    if driver != own_version():
        return (
            f"fabric manager NVIDIA GPU driver interface version {own_version()} don't match with driver"
            f" version {driver}. Please update with matching NVIDIA driver package."
        )
    if not nvswitches():
        return (
            "request to query NVSwitch device information from NVSwitch driver failed with error:"
            "WARNING Nothing to do [NV_WARN_NOTHING_TO_DO]"
        )
    return None


def start() -> bool:
    """Configure the switches; return whether that worked."""
    reason = refusal()
    if reason:
        say(reason)
        return False
    state = ROOT / "run/nvidia-standin"
    state.mkdir(parents=True, exist_ok=True)
    (state / "fabric-configured").write_text("\n".join(nvswitches()) + "\n")
    say("Connected to 1 node.")
    say(
        "Successfully configured all the available NVSwitches to route GPU NVLink traffic. NVLink"
        " Peer-to-Peer support will be enabled once the GPUs are successfully registered with the NVLink"
        " fabric."
    )
    return True


def main(arguments: list[str]) -> int:
    """Run the daemon (-c CONFIG) or print the version (-v); return the exit status."""
    if arguments[:1] in (["-v"], ["--version"]):
        print(f"Fabric Manager version is : {own_version()}")
        return 0
    return daemonise(PID_FILE, start)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

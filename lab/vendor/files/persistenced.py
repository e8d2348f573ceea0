#!/usr/bin/python3 -IB
"""nvidia-persistenced stand-in: keeps persistence mode on while it runs, and refuses without a matching
driver.

Messages: nvidia-persistenced.c of NVIDIA's repository of that name, and published journals. Persistence mode
is only shown (nvidia-smi); there is no GPU state to keep.

Python 3.9, standard library only.
"""

from __future__ import annotations

import argparse
import os
import sys
import syslog
from pathlib import Path

# Where its package puts what it shares with the others; NVIDIA_STANDIN_ROOT moves the root directory (tests).
sys.path.insert(0, os.environ.get("NVIDIA_STANDIN_ROOT", "") + "/usr/share/nvidia-standin/persistenced")

from standin_daemon import daemonise

ROOT = Path(os.environ.get("NVIDIA_STANDIN_ROOT", "/"))
SHARE = ROOT / "usr/share/nvidia-standin/persistenced"


def driver_answers() -> bool:
    """Say whether a kernel module of this daemon's version is loaded."""
    version = (SHARE / "version").read_text().strip()
    try:
        return f"  {version}  " in (ROOT / "proc/driver/nvidia/version").read_text()
    except OSError:
        return False


def start() -> bool:
    """Register the devices; return whether that worked."""
    syslog.openlog("nvidia-persistenced", syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(f"Started ({os.getpid()})")
    if not driver_answers():
        syslog.syslog(
            syslog.LOG_ERR,
            "Failed to query NVIDIA devices. Please ensure that the NVIDIA device files (/dev/nvidia*)"
            f" exist, and that user {os.getuid()} has read and write permissions for those files.",
        )
        syslog.syslog(f"Shutdown ({os.getpid()})")
        return False
    for directory in sorted((ROOT / "proc/driver/nvidia/gpus").glob("*")):
        syslog.syslog(f"device {directory.name} - registered")
    syslog.syslog("Local RPC services initialized")
    return True


def main() -> int:
    """Run the daemon; return the exit status."""
    parser = argparse.ArgumentParser(prog="nvidia-persistenced")
    parser.add_argument("-u", "--user")
    parser.add_argument("-V", "--verbose", action="store_true")
    parser.add_argument("--persistence-mode", action="store_true")
    parser.add_argument("--uvm-persistence-mode", action="store_true")
    parser.parse_args()
    status = daemonise(ROOT / "run/nvidia-persistenced/nvidia-persistenced.pid", start)
    if status:
        print("nvidia-persistenced failed to initialize. Check syslog for more details.", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())

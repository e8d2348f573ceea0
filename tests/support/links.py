"""A lab host's link that is cut at some moment of a rollout, and the host's own files about that rollout."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

from tests.support.site import Lab

TABLE = "minimax_metal_cut_ssh"


def upper(lab: Lab, host: str, path: str) -> Path:
    """A file written by a lab host, on this machine: readable whatever the state of its link."""
    return lab.state / "hosts" / host / "upper" / path


def journal(lab: Lab, host: str) -> dict[str, Any]:
    """A host's rollout journal; empty without one."""
    try:
        found = json.loads(upper(lab, host, "var/lib/minimax-metal/rollout.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class Link:
    """A host's link, cut as soon as its journal has a stage of a run that begins after this.

    ``ssh`` is only the controller's way to it: clients continue. ``cable`` is all of it.
    """

    def __init__(self, lab: Lab, host: str, kind: str, stage: str) -> None:
        if kind not in {"ssh", "cable"}:
            raise ValueError(f"no such link: {kind}")
        self.lab, self.host, self.kind, self.stage = lab, host, kind, stage
        self.address = lab.ssh(host, "hostname -I").split()[0]
        self.before = journal(lab, host).get("run")
        self.over = threading.Event()
        self.was_cut = False
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.over.wait(0.2):
            now = journal(self.lab, self.host)
            if now.get("run") != self.before and now.get("stage") == self.stage:
                self._set(cut=True)
                self.was_cut = True
                return

    def _set(self, cut: bool) -> None:
        if self.kind == "cable":
            self.lab.lab("cut" if cut else "restore", self.host)
            return
        rules = f"table ip {TABLE} {{}}\ndelete table ip {TABLE}\n"
        if cut:
            rules += f"""
                table ip {TABLE} {{
                  chain out {{
                    type filter hook output priority filter; policy accept;
                    ip daddr {self.address} tcp dport 22 drop
                  }}
                }}
            """
        subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)

    def mend(self) -> None:
        """Restore the link, whatever happened to it."""
        self.over.set()
        self.thread.join(30)
        self._set(cut=False)

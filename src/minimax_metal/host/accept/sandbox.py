"""Run a program in the same sandbox as an instance's unit: user, limits, environment, system calls, devices.

A temporary unit is made from the text of the instance's (with its drop-ins, as ``systemctl cat`` prints
them): all of ``[Service]`` except what starts, watches and restarts the engine. systemd is then asked whether
both units have the same properties, so a difference is reported, not assumed away.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.files import write_atomic
from minimax_metal.common.systemd import quote
from minimax_metal.host.accept.machine import Machine, properties

UNITS: Final = Path("/run/systemd/system")
"""Directory of units until the next boot."""
OUTPUT: Final = Path("/run/metal-accept")
PROGRAMS: Final = Path(__file__).with_name("programs")
ENGINE_ONLY: Final = re.compile(
    r"(?:Exec\w+|Type|NotifyAccess|Restart\w*|Timeout\w+|RuntimeMaxSec|RuntimeDirectory\w*|WatchdogSec|KillMode|KillSignal"
    r"|PIDFile|LoadCredential\w*|SetCredential\w*|Standard\w+|SuccessExitStatus|RemainAfterExit|GuessMainPID|Sockets"
    r"|FileDescriptorStoreMax|OOMPolicy|SyslogIdentifier)\s*="
)
"""Directives that start the engine, watch it, pass keys or direct its output. `RuntimeDirectory` too: the
engine's own would be removed with this unit.
"""
SAME: Final = (
    "User", "Group", "SupplementaryGroups", "Environment", "EnvironmentFiles", "WorkingDirectory",
    "UMask", "LimitNOFILE", "LimitMEMLOCK", "LimitAS", "LimitCORE", "LimitNPROC", "TasksMax", "Slice",
    "CPUAffinity", "NUMAPolicy", "NUMAMask", "Nice", "DevicePolicy", "DeviceAllow", "MemoryMax",
    "NoNewPrivileges", "CapabilityBoundingSet", "AmbientCapabilities", "SecureBits", "ProtectSystem",
    "ProtectHome", "ProtectProc", "ProcSubset", "ProtectHostname", "ProtectClock",
    "ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups",
    "PrivateTmp", "PrivateDevices", "PrivateNetwork", "PrivateUsers", "PrivateMounts", "PrivateIPC",
    "RestrictAddressFamilies", "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID",
    "RestrictFileSystems", "LockPersonality", "MemoryDenyWriteExecute", "RemoveIPC", "MountFlags",
    "SystemCallFilter", "SystemCallArchitectures", "SystemCallErrorNumber", "ReadWritePaths",
    "ReadOnlyPaths", "InaccessiblePaths", "ExecPaths", "NoExecPaths", "BindPaths", "BindReadOnlyPaths",
    "TemporaryFileSystem", "RootDirectory", "RootImage", "StateDirectory", "CacheDirectory",
    "IPAddressAllow", "IPAddressDeny", "KeyringMode", "Personality", "AppArmorProfile",
    "SELinuxContext", "LogNamespace", "DynamicUser",
)  # fmt: skip
"""Properties that make up a sandbox (systemd.exec(5), systemd.resource-control(5))."""


@dataclass(frozen=True, slots=True)
class Ran:
    """The result of a program in the sandbox."""

    answer: Mapping[str, Any]
    """The last JSON object it printed; empty if it printed none."""
    how: str
    """How it ended, ``exited with 0`` on success."""
    output: str
    differences: tuple[str, ...] = ()
    """Properties in which its unit differs from the instance's."""

    @property
    def ok(self) -> bool:
        """Whether it reports success, from a sandbox equal to the engine's."""
        return self.answer.get("ok") is True and not self.differences

    @property
    def words(self) -> str:
        """Why it failed, on one line."""
        if self.differences:
            return f"a sandbox that differs from the engine's: {', '.join(self.differences)}"
        if self.answer.get("error"):
            return str(self.answer["error"])
        last = [line.strip() for line in self.output.splitlines() if line.strip()][-1:]
        return f"the program {self.how}" + (f": {last[0][:200]}" if last else "")


def service_lines(text: str) -> Iterator[str]:
    """Return the lines of ``[Service]`` in unit files, with continued lines joined, without comments."""
    section = ""
    for line in re.sub(r"\\\n[ \t]*", " ", text).splitlines():
        stripped = line.strip()
        if not stripped or stripped[0] in "#;":
            continue
        if stripped.startswith("["):
            section = stripped
        elif section == "[Service]":
            yield stripped


def resolve(line: str, unit: str) -> str:
    """Return a line with specifiers for the unit's own name replaced: the other unit has another name."""
    name = unit.removesuffix(".service")
    prefix, _, instance = name.partition("@")
    own = {
        "i": instance,
        "I": instance,
        "n": unit,
        "N": name,
        "p": prefix,
        "P": prefix,
        "j": prefix,
        "J": prefix,
    }
    return re.sub(r"%(.)", lambda found: own.get(found[1], found[0]), line)


def unit_text(text: str, unit: str, slice_: str, command: Sequence[str], place: Path, seconds: float) -> str:
    """Return a unit that runs ``command`` as the instance's unit runs its engine.

    ``text`` is ``systemctl cat`` of the instance, ``slice_`` its slice (instances of a template have their
    own); ``place`` is a directory for its output.
    """
    kept = [resolve(line, unit) for line in service_lines(text) if not ENGINE_ONLY.match(line)]
    return "\n".join(
        [
            "[Unit]",
            f"Description=A check of metal accept in the sandbox of {unit}",
            "[Service]",
            *kept,
            f"Slice={slice_}",
            "Type=oneshot",
            f"TimeoutStartSec={seconds:.0f}",
            "TimeoutStopSec=20",
            f"StandardOutput=truncate:{place}/out",
            f"StandardError=truncate:{place}/error",
            f"ExecStart={' '.join(map(quote, command))}",
            "",
        ]
    )


def differences(machine: Machine, unit: str, other: str) -> tuple[str, ...]:
    """Return sandbox properties in which two units differ, by systemd."""
    first, second = properties(machine, unit, SAME), properties(machine, other, SAME)
    return tuple(name for name in SAME if first.get(name) != second.get(name))


def last_object(text: str) -> dict[str, Any]:
    """Return the last line that is a JSON object; libraries print anything before it."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            with contextlib.suppress(ValueError):
                data = read_json(line)
                if isinstance(data, dict):
                    return data
    return {}


class Sandbox:
    """Runs programs of this package as an instance's engine would run, one at a time."""

    def __init__(
        self, machine: Machine, unit: str, python: str, units: Path = UNITS, output: Path = OUTPUT
    ) -> None:
        self.machine = machine
        self.unit = unit
        self.python = python
        self.units = units
        self.output = output

    def run(self, program: str, seconds: float, **parameters: Any) -> Ran:
        """Run ``programs/<program>.py`` with parameters and answer as JSON.

        Raises:
            OSError: the unit can't be written (not root).
        """
        text = self.machine.run("systemctl", "cat", "--", self.unit)
        if text.status:
            return Ran({}, f"was not run: no unit {self.unit}", text.words)
        name = f"metal-accept-{secrets.token_hex(4)}.service"
        place = self.output / name.removesuffix(".service")
        place.mkdir(parents=True, mode=0o700)
        file = self.units / name
        command = [self.python, str(PROGRAMS / f"{program}.py"), json.dumps(parameters)]
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            slice_ = properties(self.machine, self.unit, ["Slice"]).get("Slice") or "system.slice"
            unit = unit_text(text.out, self.unit, slice_, command, place, seconds)
            write_atomic(file, unit)
            self.machine.run("systemctl", "daemon-reload")
            differ = differences(self.machine, self.unit, name)
            self.machine.run("systemctl", "start", name, seconds=seconds + 60.0)
            # The unit has ended by now unless it failed; its outcome is in the journal.
            how = self._ended(name)
            out, error = (_text(place / stream) for stream in ("out", "error"))
            return Ran(last_object(out), how, f"{error}\n{out}".strip(), differ)
        finally:
            self.machine.run("systemctl", "stop", name)
            file.unlink(missing_ok=True)
            self.machine.run("systemctl", "reset-failed", name)
            self.machine.run("systemctl", "daemon-reload")
            shutil.rmtree(place, ignore_errors=True)

    def _ended(self, name: str) -> str:
        state = properties(self.machine, name, ("Result", "ExecMainCode", "ExecMainStatus"))
        result, status = state.get("Result", ""), state.get("ExecMainStatus", "?")
        if result == "timeout":
            return "did not end in time"
        if result in {"signal", "core-dump"}:
            return f"was killed by signal {status}"
        return f"exited with {status}"


def sweep(machine: Machine, units: Path = UNITS, output: Path = OUTPUT) -> None:
    """Remove leftovers of a killed run; no other may be running."""
    left = [file for file in units.glob("metal-accept-*.service") if re.search(r"-[0-9a-f]{8}$", file.stem)]
    for file in left:
        machine.run("systemctl", "stop", file.name)
        file.unlink(missing_ok=True)
    if left:
        machine.run("systemctl", "daemon-reload")
    shutil.rmtree(output, ignore_errors=True)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")[-(1 << 20) :]
    except OSError:
        return ""


def is_root() -> bool:
    """Return whether units can be created at all."""
    return os.geteuid() == 0

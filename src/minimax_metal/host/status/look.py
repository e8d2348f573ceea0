"""This host's status: its release, its instances and their load, its driver, its operator.

Standard library only, and without disturbing anything: the engine is never asked for a token; its own metrics
and the supervisor's systemd status show its state. ``metal status --here --json`` prints it on a host; a
controller asks every host for it in parallel.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urljoin

from minimax_metal import __version__
from minimax_metal.common import certificates, nftables
from minimax_metal.common.documents import digits, read_json
from minimax_metal.common.files import read_bounded
from minimax_metal.common.program import run as run_program
from minimax_metal.host.engine.health import ask, parse_figures
from minimax_metal.host.releases.record import DIRECTORY, Records
from minimax_metal.plan.model import Plan

SCHEMA: Final = 1
STATE: Final = Path("/var/lib/minimax-metal")
SYSTEMD_SECONDS: Final = 5.0
DOCUMENT_BYTES: Final = 4 << 20
"""Maximum size of one of our files: a release record has about 60 KB."""
FIGURES_SECONDS: Final = 1.5
"""Time limit: an engine that does not send its metrics within it counts as having none."""
PROPERTIES: Final = (
    "Id", "LoadState", "ActiveState", "SubState", "StatusText", "UnitFileState", "NRestarts",
    "ActiveEnterTimestampMonotonic",
)  # fmt: skip
FIREWALL_FILE: Final = Path("/etc/minimax-metal/firewall.nft")
FIREWALL_LOADED: Final = Path("/run/minimax-metal-firewall/loaded")
FIREWALL_SOCKET: Final = "/run/minimax-metal-firewall-seen.sock"
FIREWALL_SECONDS: Final = 5.0
APPLIED: Final = (
    "platform",
    "model",
    "gpus",
    "parallelism",
    "engine",
    "driver",
    "cuda",
    "services",
    "firewall",
    "tls",
)
"""Parts of a recorded plan that are sent for comparison with the inventory."""

Instance = dict[str, Any]


def units(text: str, uptime: float) -> list[Instance]:
    """Return the instances in the output of ``systemctl show``.

    Args:
        text: blocks of NAME=VALUE, separated by empty lines.
        uptime: seconds since boot, by the clock of systemd's time stamps.
    """
    found = []
    for block in text.split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        match = re.fullmatch(r"sglang@(.+)\.service", values.get("Id", ""))
        if match is None or values.get("LoadState") == "not-found":
            continue
        since = (digits(values.get("ActiveEnterTimestampMonotonic", "")) or 0) / 1e6
        status = values.get("StatusText", "")
        active = values.get("ActiveState", "")
        found.append(
            {
                "instance": match[1],
                "unit": values["Id"],
                "active": active,
                "status": status,
                "health": health_of(active, status),
                "enabled": values.get("UnitFileState") == "enabled",
                "restarts": digits(values.get("NRestarts", "")) or 0,
                "seconds": round(uptime - since, 1) if active == "active" and since else None,
            }
        )
    return found


def health_of(active: str, status: str) -> str:
    """Return one word for an instance: ready, starting, troubled, stopping, failed, stopped.

    From its supervisor if possible; otherwise from systemd.
    """
    word = status.partition(":")[0]
    if active == "active":
        return word if word in {"ready", "troubled", "starting", "stopping"} else "ready"
    words = {"activating": "starting", "reloading": "ready", "deactivating": "stopping", "failed": "failed"}
    return words.get(active, "stopped")


def _systemctl(*words: str) -> str:
    answer = run_program(["systemctl", *words], seconds=SYSTEMD_SECONDS)
    return answer.out if not answer.timed_out else ""


def _json(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = read_json(read_bounded(path, DOCUMENT_BYTES))
        return found if isinstance(found, dict) else None
    return None


def _exists(path: str) -> bool:
    """Return whether a recorded path exists; impossible ones don't."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def driver_version(text: str) -> str | None:
    """Return the version in ``/proc/driver/nvidia/version``; None if no driver is loaded."""
    found = re.search(r"NVRM version:.*?\s(\d+\.\d+(?:\.\d+)?)\s", text[:4096])  # the driver's file has 200
    return found[1] if found else None


def _text(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text(encoding="utf-8", errors="replace")
    return ""


def _memory_total() -> int:
    found = re.search(r"^MemTotal:\s+(\d+)", _text("/proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def load_of(url: str, timeout: float = FIGURES_SECONDS) -> dict[str, Any]:
    """Return running and waiting requests from the engine's metrics; both None if it reports none."""
    code, text = ask(urljoin(url, "/metrics"), timeout)
    figures = parse_figures(text) if code == "200" else None
    return {
        "answers": code.isdigit(),
        "running": figures.running if figures else None,
        "waiting": figures.queued if figures else None,
    }


def firewall_of(
    file: Path = FIREWALL_FILE, loaded: Path = FIREWALL_LOADED, socket_path: str = FIREWALL_SOCKET
) -> list[str]:
    """Return how the active table differs from the loaded one; [] if it doesn't.

    Only root may run nft: a unit answers on its own socket (role ``endpoint_firewall``).
    """
    try:
        checksum = hashlib.sha256(read_bounded(file, nftables.BYTES)).hexdigest()
        noted = read_bounded(loaded, nftables.BYTES).decode(errors="replace")
    except (OSError, ValueError):
        return ["no record that the table was loaded"]
    return nftables.state(noted, checksum, _heard(socket_path))


def _heard(path: str) -> str:
    """Return everything sent on a socket, bounded in size and time."""
    end = time.monotonic() + FIREWALL_SECONDS
    parts: list[bytes] = []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(FIREWALL_SECONDS)
            connection.connect(path)
            while sum(map(len, parts)) < nftables.BYTES:
                connection.settimeout(max(end - time.monotonic(), 0.01))
                if not (part := connection.recv(65_536)):
                    return b"".join(parts).decode(errors="replace")
                parts.append(part)
        return "an answer that does not end"
    except OSError as error:
        return f"{path}: {error.strerror or error}; run site.yml"


def certificates_of(plan: Plan) -> list[dict[str, Any]]:
    """Return the certificates of a recorded plan's services: path, end, and whether it exists.

    One that only root can read is skipped: this program does not run as root.
    """
    own = Path(plan.tls.directory) if plan.tls and plan.tls.directory else None
    paths = [service.credentials.get("tls.crt") for service in plan.services]
    found = []
    for path in dict.fromkeys(path for path in paths if path):
        try:
            end = certificates.end_of_file(Path(path))
        except FileNotFoundError:
            end = None
        except OSError:
            continue
        fleet = Path(path).parent == own
        found.append({"path": path, "ends": end.isoformat() if end else None, "fleet": fleet})
    return found


def look(
    state: Path = STATE,
    releases: Path = DIRECTORY,
    ask_systemd: Callable[..., str] = _systemctl,
    load: Callable[[str], Mapping[str, Any]] = load_of,
    firewall: Callable[[], list[str]] = firewall_of,
) -> dict[str, Any]:
    """Return everything that ``metal status`` shows about a host (see the module)."""
    current = Records(releases).current()
    record = _json(current.path) if current else None
    recorded = _mapping((record or {}).get("plan"))
    plan = Plan.of_record(recorded)
    instances = units(
        ask_systemd("show", "sglang@*.service", "--all", f"--property={','.join(PROPERTIES)}"),
        time.monotonic(),
    )
    services = {service.unit: service for service in plan.services}
    for instance in instances:
        service = services.get(instance["unit"])
        instance["recorded"] = service is not None
        instance["url"] = service.url if service else None
        if service and instance["active"] == "active":
            instance |= load(service.url)
            if not instance["answers"] and instance["health"] == "ready":
                instance["health"] = "silent"
    environment = plan.engine.environment if plan.engine else ""
    return {
        "schema": SCHEMA,
        "metal": __version__,
        "hostname": socket.gethostname(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "release": (
            {"number": record.get("number"), "digest": record.get("digest"), "time": record.get("time")}
            if record
            else None
        ),
        "applied": {key: recorded[key] for key in APPLIED if recorded.get(key) is not None},
        "environment_exists": bool(environment) and _exists(f"{environment}/bin/python"),
        "missing": sorted(set(services) - {instance["unit"] for instance in instances}),
        "instances": instances,
        "firewall_differences": firewall() if plan.firewall else [],
        "certificates": certificates_of(plan),
        "driver": driver_version(_text("/proc/driver/nvidia/version")),
        "cpu_count": os.cpu_count() or 1,
        "memory_total_bytes": _memory_total(),
        "load_average": round(os.getloadavg()[0], 2),
        "lock": _json(state / "lock.json"),
        "rollout": _json(state / "rollout.json"),
    }

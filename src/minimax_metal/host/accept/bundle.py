"""One archive to attach to a bug report: the results, and the host's own logs and states."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import secrets
import tarfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.files import sync_directory
from minimax_metal.common.privileges import trusted_directory
from minimax_metal.host.accept.context import Context
from minimax_metal.host.accept.fabric import MANAGER
from minimax_metal.host.accept.machine import Answer
from minimax_metal.host.accept.redaction import Redaction

JOURNAL_LINES: Final = 3000
"""Lines per instance: a start with its weights and graphs takes some hundreds."""
INCIDENTS: Final = 5
_JOURNAL: Final = ("journalctl", "--boot", "--no-pager", "--output=short-iso")
PROGRAMS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("nvidia-smi", ("nvidia-smi",)),
    ("nvidia-smi-topology", ("nvidia-smi", "topo", "-m")),
    ("nvidia-smi-nvlink-errors", ("nvidia-smi", "nvlink", "-e")),
    (
        "nvidia-smi-processes",
        ("nvidia-smi", "--query-compute-apps=gpu_uuid,pid,process_name,used_memory", "--format=csv"),
    ),
    ("lspci", ("lspci", "-nnvv", "-d", "10de:")),
    ("modules", ("lsmod",)),
    ("module-nvidia", ("modinfo", "nvidia")),
    ("dkms", ("dkms", "status")),
    ("uname", ("uname", "-a")),
    ("cpus", ("lscpu",)),
    ("memory", ("free", "--bytes")),
    ("disks", ("df", "--human-readable", "--local")),
    ("units", ("systemctl", "list-units", "--all", "--no-pager", "--plain", "nvidia*", "sglang*", "metal*")),
    ("failed-units", ("systemctl", "--failed", "--no-pager", "--plain")),
    ("packages", ("dpkg-query", "-W", "-f=${db:Status-Abbrev} ${Package} ${Version} ${Architecture}\n")),
    ("fabricmanager-journal", (*_JOURNAL, f"--unit={MANAGER}", "--lines=500")),
    ("persistenced-journal", (*_JOURNAL, "--unit=nvidia-persistenced.service", "--lines=200")),
    ("kernel", (*_JOURNAL, "--dmesg", "--lines=3000")),
)  # fmt: skip
FILES: Final = (
    "/etc/os-release",
    "/proc/cmdline",
    "/proc/driver/nvidia/version",
    "/proc/driver/nvidia/params",
    "/proc/driver/nvidia/registry",
    "/proc/driver/nvidia/gpus/*/information",
    "/proc/meminfo",
    "/proc/mounts",
    "/etc/modprobe.d/nvidia*.conf",
    "/var/log/fabricmanager.log",
    "/var/lib/minimax-metal/releases/current",
)


def collect(context: Context) -> Iterator[tuple[str, str]]:
    """Return names in the archive with their texts, not masked yet."""
    for service in context.services:
        name = f"instance-{service.instance}"
        yield f"{name}/unit.txt", _said(context.machine.run("systemctl", "cat", "--", service.unit))
        yield f"{name}/properties.txt", _said(context.machine.run("systemctl", "show", "--", service.unit))
        yield (
            f"{name}/journal.txt",
            _said(
                context.machine.run(
                    "journalctl", f"--unit={service.unit}", "--no-pager", "--output=short-iso",
                    f"--lines={JOURNAL_LINES}",
                )
            ),
        )  # fmt: skip
        reports = context.machine.list(f"/var/lib/sglang/incidents/{service.instance}/*.json")
        for path in reports[-INCIDENTS:]:
            yield f"{name}/incidents/{Path(path).name}", context.machine.read(path) or ""
    for name, command in PROGRAMS:
        yield f"host/{name}.txt", _said(context.machine.run(*command, seconds=120.0))
    for pattern in FILES:
        for path in context.machine.list(pattern) if "*" in pattern else [pattern]:
            text = context.machine.read(path)
            if text is not None:
                yield f"host/files{path}", text
    environment = context.plan.engine.environment
    yield (
        "engine/packages.txt",
        "\n".join(
            Path(path).name.removesuffix(".dist-info")
            for path in context.machine.list(f"{environment}/lib/python*/site-packages/*.dist-info")
        ),
    )
    # Last: by now the output of all checks is recorded.
    for name, answer in context.answers.items():
        yield f"asked/{name}.txt", _said(answer)


def _said(answer: Answer) -> str:
    parts = [answer.out, answer.error and f"\n--- errors\n{answer.error}"]
    if answer.status:
        parts.append(f"\n--- exit status {answer.status}\n")
    return "".join(part for part in parts if part)


def _masked(name: str, text: str, redaction: Redaction) -> str:
    """Return a text without sensitive parts; JSON stays JSON."""
    if name.endswith(".json"):
        with contextlib.suppress(ValueError):
            return json.dumps(redaction.value(read_json(text)), indent=2, ensure_ascii=False) + "\n"
    return redaction.text(text)


def write(path: Path, texts: Mapping[str, str], redaction: Redaction) -> None:
    """Write the archive; every text and every name is redacted, and only root can read it.

    Raises:
        OSError: it can't be written.
    """
    path = trusted_directory(path.parent, create=0o700) / path.name
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    now = int(time.time())
    try:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with (
            os.fdopen(handle, "wb") as raw,
            gzip.GzipFile(fileobj=raw, mode="wb", mtime=now) as stream,
            tarfile.open(fileobj=stream, mode="w") as archive,
        ):
            for name, text in texts.items():
                data = _masked(name, text, redaction).encode("utf-8", "replace")
                member = tarfile.TarInfo(f"metal-accept/{redaction.text(name)}")
                member.size, member.mtime, member.mode = len(data), now, 0o644
                archive.addfile(member, io.BytesIO(data))
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)
        sync_directory(path.parent)
    finally:
        part.unlink(missing_ok=True)

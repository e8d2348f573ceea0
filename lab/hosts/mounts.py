"""Overlay mounts, and mounts below a directory."""

from __future__ import annotations

import re
from pathlib import Path

from lab.hosts.errors import LabError
from lab.hosts.processes import run, succeeds


def mounts_below(directory: Path) -> list[Path]:
    """Return every mount point at or below ``directory``, deepest first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # The kernel writes blanks and backslashes in octal.
        point = Path(re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), line.split()[4]))
        if point == directory or directory in point.parents:
            found.append(point)
    found.reverse()  # later mounts lie over earlier ones on the same point, and sorting keeps that order
    found.sort(key=lambda point: -len(point.parts))
    return found


def is_mounted(directory: Path) -> bool:
    """Tell whether something is mounted exactly there."""
    return directory in mounts_below(directory)


def mount_overlay(lower: Path, upper: Path, work: Path, root: Path) -> None:
    """Mount an overlay.

    Raises:
        LabError: the kernel refuses; usual on a machine that is itself an overlay (a container image).
    """
    for directory in (upper, work, root):
        directory.mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    try:
        run(["mount", "-t", "overlay", "overlay", "-o", options, str(root)])
    except LabError as error:
        raise LabError(
            f"{error} (the state and cache directories must lie on a file system that can be an overlay's "
            "upper and lower layer, e.g. ext4: METAL_LAB_ROOT and XDG_CACHE_HOME move them)"
        ) from None


def unmount_below(directory: Path) -> None:
    """Unmount everything at or below ``directory``.

    Raises:
        LabError: something is still mounted there afterwards.
    """
    for point in mounts_below(directory):
        if not succeeds(["umount", str(point)]):
            # Busy: a process that still uses it keeps its private view, nobody else sees it any longer.
            run(["umount", "--lazy", str(point)], check=False)
    left = mounts_below(directory)
    if left:
        raise LabError(f"{left[0]} is still mounted: unmount it by hand and repeat")

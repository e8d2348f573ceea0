"""Causes of a failed installation in packages: files, headers, builds, dependencies. Pure."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Final

from minimax_metal.plan.driver.apt_words import end_of, package_of, plain, shortened
from minimax_metal.plan.driver.failure_case import AGAIN, Failure
from minimax_metal.plan.driver.kernel import (
    KERNEL,
    build_failure,
    headers_problem,
    kernel_problem,
    unbuilt_line,
)
from minimax_metal.plan.driver.sources import NAMES


def overwrite(failure: Failure) -> str | None:
    """Two packages own the same file: which two."""
    text = " ".join(failure.text.split())
    archive = re.search(r"error processing archive (\S+?\.deb)", text)
    owned = re.search(
        r"trying to overwrite (?:shared )?'([^']+)' ?, which is also in package (\S+)(?: ([\w.+:~-]+))?", text
    )
    shared = re.search(
        r"trying to overwrite shared '([^']+)' ?, which is different from other instances of package (\S+)",
        text,
    )
    if not owned and not shared:
        return None
    new = package_of(archive[1]) if archive else "a package"
    if shared and not owned:
        return (
            f"found {new} and another architecture of {shared[2]} at two versions (they differ in "
            f"{shared[1]}), expected one; remove the other architecture's packages (dpkg -l | grep ':i386') "
            f"on the host, then {AGAIN}"
        )
    assert owned is not None  # noqa: S101  one of the two
    other = f"{owned[2]} {owned[3] or ''}".strip()
    owners = list(dict.fromkeys(re.findall(r"which is also in package ([a-z0-9][\w.+:-]*)", text)))
    more = f" ({len(owners)} packages are in the way)" if len(owners) > 1 else ""
    return (
        f"found that {new} and {other} both own {owned[1]}{more}, expected packages of one source; "
        f"{owned[2]} belongs to another vendor's driver: on the host run apt-get purge "
        f"{' '.join(owners[:12]) or owned[2]} and whatever came with it, apt-get -f install, then "
        f"{AGAIN}"
    )


def mounted(failure: Failure) -> str | None:
    """A file of a package is mounted into the host from elsewhere."""
    found = failure.first(
        r"unable to (?:make backup link of|install new version of|clean up mess surrounding) '\.?([^']+)'.*"
        r"(?:cross-device|resource busy|Device or resource)"
    )
    if not found:
        return None
    return (
        f"found {found[1][1]} mounted from elsewhere (a container's driver, an overlay), expected a "
        "file that dpkg can replace; a container gets the driver from its host: install it there; "
        f"otherwise findmnt {found[1][1]} shows the mount: unmount it, then {AGAIN}"
    )


def changed_file(failure: Failure) -> str | None:
    """dpkg asks about a changed configuration file, and nobody can answer."""
    if not failure.first(r"end of file on stdin at conffile prompt"):
        return None
    named = failure.first(r"Configuration file '([^']+)'")
    asked = failure.first(r"\*\*\* (\S+) \(Y/I/N")
    file = named[1][1] if named else asked[1][1] if asked else "a configuration file"
    return (
        f"found {file} changed by hand and by its package, expected one of the two; run dpkg "
        "--configure -a --force-confold on the host (it keeps yours; --force-confnew uses the "
        f"package's), then {AGAIN}"
    )


def refused(failure: Failure) -> str | None:
    """apt would have to downgrade, change held packages, or remove essential ones."""
    found = failure.first(
        r"Packages were downgraded|Held packages were changed|Removing essential system-critical packages"
    )
    if not found:
        return None
    what, remedy = {
        "Pac": (
            "newer packages installed than the configured repository has",
            "apt-get -s install of the packages shows which: purge them, or set metal_driver_branch",
        ),
        "Hel": ("packages on hold in the way", "apt-mark showhold lists them, apt-mark unhold lifts it"),
        "Rem": (
            "an installation that would remove essential packages",
            "a source of another distribution or release is configured: apt-cache policy shows it; remove it",
        ),
    }[found[1][0][:3]]
    return f"found {what}, expected packages of one source; on the host: {remedy}; then {AGAIN}"


def headers(failure: Failure) -> str | None:
    """No headers package for a kernel: which kernel, and where its headers come from."""
    missing = failure.first(
        rf"(?:locate package|by (?:glob|regex)|No package matching|[Pp]ackage|no package) "
        rf"'?((?:linux|pve|proxmox)"
        rf"-headers-({KERNEL}))"
    )
    if missing and re.search(
        r"Unable to locate|Couldn't find|No package matching|no installation candidate|is not available|no "
        r"package",
        failure.lines[missing[0]],
    ):
        running = str((failure.collected.get("kernels") or {}).get("running") or "")
        kernel = missing[1][2].rstrip(".'")
        return headers_problem(kernel, running in {"", kernel})
    return None


def dkms(failure: Failure) -> str | None:
    """Modules were not built: the end of the log."""
    built = failure.first(rf"Bad return status for module build on kernel: ?({KERNEL})?")
    lacking = failure.first(
        rf"[Kk]ernel headers for (?:kernel )?({KERNEL}) (?:cannot|can't|could not) be found"
    )
    skipped = failure.first(rf"[Mm]odule build for (?:kernel )?({KERNEL}) was skipped")
    excluded = failure.first(r"BUILD_EXCLUSIVE directive which does not match")
    other = failure.first(
        r"(?i)\bdkms\b.{0,200}\b(?:fail(?:ed|s)?|error|exited)\b|error exit status (?:10|6|11)\b"
    )
    if not (built or lacking or skipped or excluded or other):
        return None
    kernels = failure.collected.get("kernels") or {}
    named = next((hit[1][1] for hit in (built, lacking, skipped) if hit and hit[1][1]), None)
    running = str(kernels.get("running") or "")
    if (lacking or skipped) and not built and named:
        return headers_problem(named.rstrip("."), running in {"", named}, in_lists=True)
    if problem := failure.collected and kernel_problem(failure.collected, failure.module):
        return str(problem)
    if built and named:
        if failure.collected.get("dkms_logs"):
            return unbuilt_line(failure.collected, failure.module, named)
        signs = r"error:|\*\*\*|not found|No such file|check failed|GPL-only"
        end, remedy = build_failure([line for line in failure.lines if re.search(signs, line)], named)
        log = re.search(r"(/var/lib/dkms/\S+/make\.log)", failure.text)
        where = log[1] if log else "/var/lib/dkms/nvidia/*/build/make.log"
        failed = f"DKMS failed ({end})" if end else "DKMS failed"
        return (
            f"found no module of {failure.module or 'the driver'} for kernel {named}: {failed}, "
            f"expected one; {remedy}: read the end of {where} on the host, then run dkms autoinstall "
            "and the playbook again"
        )
    return None


def unconfigured(failure: Failure) -> str | None:
    """dpkg left packages unconfigured because of one that it names: the first in the chain."""
    if not failure.first(r"dependency problems prevent configuration of|leaving unconfigured"):
        return None
    lacking = failure.first(r"Package (\S+) (?:which provides \S+ )?is not (configured yet|installed)")
    if not lacking or failure.first(r"subprocess returned error exit status"):
        return None
    waits = failure.first(r"prevent configuration of ([^\s:]+)")
    return (
        f"found {waits[1][1] if waits else 'packages'} waiting for {lacking[1][1]}, which is not "
        f"{lacking[1][2]}, expected all packages configured; run dpkg --configure -a and apt-get -f "
        f"install on the host, which show why {lacking[1][1]} is not, fix it, then {AGAIN}"
    )


def unmet(failure: Failure) -> str | None:
    """Dependencies that can't be met."""
    pattern = (
        r"[Uu]nmet dependencies|Unable to satisfy dependencies|held broken "
        r"packages|pkgProblemResolver|Unsatisfied dependencies|"
        r"but it is not (?:going|installable)"
    )
    if not failure.first(pattern):
        return None
    named = [
        plain(line)
        for line in failure.lines
        if re.search(r"\b(Pre-?Depends|Depends|Conflicts|Breaks|Recommends)\b", line)
    ]
    said = shortened("; ".join(named[:3]) or end_of(failure.lines, 300), 400)
    return (
        f"found conflicting packages from another source ({said}), expected only packages of one "
        "driver; check apt-get -s install of the packages on the host, and remove or unhold the "
        f"conflicting ones, then {AGAIN}"
    )


def missing(failure: Failure) -> str | None:
    """A package that no source has."""
    pattern = (
        r"No package matching '([^']+)'|Unable to locate package (\S+)|Package '?([\w.+:-]+)'? (?:is not "
        r"available|has no "
        r"installation candidate)|Version '[^']*' for '([^']+)' was not found|find any package by "
        r"(?:glob|regex) '([^']+)'|"
        r"no available installation candidate for (\S+)"
    )
    found = failure.first(pattern)
    if not found:
        return None
    name = next(one for one in found[1].groups() if one).split("=")[0].rstrip(".,")
    said = shortened(plain(failure.lines[found[0]]), 250)
    # Ubuntu's own modules have NVIDIA in their names too.
    if any(fnmatchcase(name, one) for one in NAMES) and not name.startswith("linux-"):
        return (
            f"found a package that the repository does not have ({said}), expected {name} at "
            f"{failure.url}; check that the mirror is complete for this distribution"
        )
    return (
        f"found no package {name} in the distribution's sources ({said}), expected it; check the files "
        f"below /etc/apt on the host (components, release) and run apt-get update there, then {AGAIN}"
    )


def broken_archive(failure: Failure) -> str | None:
    """A package's file is incomplete."""
    found = failure.first(
        r"is not a Debian format archive|unexpected end of file in|compressed data is corrupt|unknown "
        r"compression|"
        r"corrupted filesystem tarfile|lzma error|failed in buffer_read"
    )
    if not found:
        return None
    archive = re.search(r"(/\S+?\.deb)\b", failure.text)
    which = package_of(archive[1]) if archive else "a package"
    where = archive[1] if archive else "/var/cache/apt/archives"
    return (
        f"found the file of {which} damaged ({shortened(plain(failure.lines[found[0]]), 200)}), "
        f"expected a complete package; run apt-get clean on the host (it deletes {where}), check its "
        f"disk, then {AGAIN}"
    )


_LOADING: Final = (
    (
        r"Key was rejected|Required key",
        "the firmware does not know its key: see secure boot in docs/driver.md",
    ),
    (
        r"No such device",
        "no GPU that this driver knows: lspci -nn -d 10de: and journalctl -k | grep NVRM show more",
    ),
    (
        r"Exec format|Invalid argument|Unknown symbol",
        "it was built for another kernel: run dkms autoinstall, or reboot into the right kernel",
    ),
)


def not_loaded(failure: Failure) -> str | None:
    """A module can't be loaded: why."""
    absent = failure.first(rf"Module ([\w-]+) not found in directory /lib/modules/({KERNEL})")
    if absent:
        return unbuilt_line(failure.collected, failure.module, absent[1][2].rstrip("."))
    found = failure.first(r"could not insert '?([\w-]+)'?: (.+)|insmod: ERROR: .{0,200}: (.+)")
    if not found:
        return None
    said = (found[1][2] or found[1][3]).strip()
    module = found[1][1] or "nvidia"
    if re.search(r"probe routine was not called|nouveau|already bound to", failure.text):
        said += "; another driver has claimed the GPUs"
    help_ = (
        "nouveau or vfio-pci has claimed the GPUs (lspci -nnk shows which): blacklist it, run "
        "update-initramfs -u and reboot"
        if "another driver" in said
        else None
    ) or next((text for words, text in _LOADING if re.search(words, said)), "journalctl -k -b shows why")
    return (
        f"found that kernel module {module} can't be loaded ({said}), expected it loaded; {help_}, then "
        f"{AGAIN}"
    )


def script(failure: Failure) -> str | None:
    """A package's own script failed."""
    found = failure.first(
        r"installed (\S+) package (\S+) script subprocess returned error exit status (\d+)|"
        r"subprocess installed (\S+) script returned error exit status (\d+)"
    )
    if not found:
        return None
    match = found[1]
    processed = re.search(r"error processing package (\S+)", failure.text)
    package = match[1] or (processed[1] if processed else "a package")
    before = [
        plain(line) for line in failure.lines[: found[0]] if not re.search(r"error processing package", line)
    ]
    said = shortened("; ".join(before[-2:]), 300)
    if "dkms" in package:
        return (
            f"found that {package} can't be configured: DKMS failed{f' ({said})' if said else ''}, "
            f"expected modules for "
            "the kernel that boots next; read the end of /var/lib/dkms/nvidia/*/build/make.log on the host "
            "(compiler, "
            f"kernel headers), then run dkms autoinstall and {AGAIN.removeprefix('run ')}"
        )
    return (
        f"found that {package} can't be configured: its {match[2] or match[4]} script ended with "
        f"{match[3] or match[5]}{f' ({said})' if said else ''}, expected 0; run dpkg --configure "
        f"{package} on the host, which shows why, fix it and {AGAIN}"
    )


def lists(failure: Failure) -> str | None:
    """Lists could not be fetched, for an unknown reason."""
    if not failure.first(r"Failed to update apt cache"):
        return None
    return (
        f"found package lists that could not be fetched ({end_of(failure.lines, 250)}), expected an answer "
        f"from every "
        "source of apt; run apt-get update on the host, fix or remove the source it names, then run the "
        "playbook again"
    )

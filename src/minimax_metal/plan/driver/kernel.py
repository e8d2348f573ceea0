"""The kernel that boots next, its headers, and whether the driver's modules were built for it: pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from minimax_metal.common.documents import digits
from minimax_metal.plan.driver.state import built_for
from minimax_metal.plan.versions import version_key

RELEASE_CHARACTERS: Final = 64
"""Maximum length of a kernel's name: utsname(2)."""
_RELEASE: Final = re.compile(r"\d+\.\d+(?:\.\d+)*(?P<mark>\+\w+)?(?:-\d+)*-(?P<flavour>[a-z][a-z0-9-]*)")
_DEBIAN: Final = re.compile(r"(cloud-|rt-)?(amd64|arm64|arm64-16k)")
_UBUNTU: Final = re.compile(
    r"(generic|lowlatency|gcp|aws|azure|oracle|ibm|gke|gkeop|kvm|oem|raspi|nvidia|xilinx|intel)(-[a-z0-9-]+)?"
)
_CLOUDS: Final = {
    "gcp": "Google Cloud",
    "aws": "AWS",
    "azure": "Azure",
    "oracle": "Oracle Cloud",
    "ibm": "IBM Cloud",
}
KERNEL: Final = r"\d+\.\d+[\w.+~-]*"
"""A kernel's name, as in ``uname -r`` and in package names."""
PROXMOX_RENAMED: Final = "6.5"
"""From this version on Proxmox's packages are called proxmox-*, before it pve-* (its kernel 6.5 of November
2023).
"""


@dataclass(frozen=True)
class Headers:
    """The headers of one kernel.

    Attributes:
        package: the package with exactly this kernel's headers.
        newest: packages of the newest kernel of this kind and of its headers; empty if unknown.
        whose: the kernel's vendor, in words.
        source: where such packages come from, in words.
    """

    package: str
    newest: tuple[str, ...]
    whose: str
    source: str


def headers_of(kernel: str) -> Headers:
    """Return the packages of a kernel's headers, by its ``uname -r``."""
    found = _RELEASE.fullmatch(kernel) if len(kernel) <= RELEASE_CHARACTERS else None
    flavour = found["flavour"] if found else ""
    if flavour == "pve":
        stem = "proxmox" if version_key(kernel.split("-")[0]) >= version_key(PROXMOX_RENAMED) else "pve"
        newest = ("proxmox-default-kernel", "proxmox-default-headers")
        return Headers(
            f"{stem}-headers-{kernel}",
            newest if stem == "proxmox" else ("proxmox-ve", "pve-headers"),
            "Proxmox's kernel",
            "Proxmox's own repository (pve-no-subscription at download.proxmox.com, or pve-enterprise)",
        )
    name = f"linux-headers-{kernel}"
    newest = (f"linux-image-{flavour}", f"linux-headers-{flavour}")
    if found and _DEBIAN.fullmatch(flavour):
        whose = "Debian's cloud kernel" if flavour.startswith("cloud-") else "Debian's kernel"
        backport = (found["mark"] or "").startswith("+bpo")
        source = "Debian's backports" if backport else "Debian's archive (older: its snapshot archive)"
        return Headers(name, newest, whose, source)
    if found and _UBUNTU.fullmatch(flavour):
        cloud = _CLOUDS.get(flavour.split("-")[0])
        whose = f"Ubuntu's kernel for {cloud}" if cloud else f"Ubuntu's {flavour} kernel"
        return Headers(name, newest, whose, "Ubuntu's archive (-updates and -security)")
    return Headers(name, (), "a kernel that is not the distribution's", "the source of that kernel")


def headers_problem(kernel: str, running: bool = True, in_lists: bool = False) -> str:
    """Return an error about missing headers of a kernel: found, expected, what to do.

    Args:
        kernel: its ``uname -r``.
        running: whether it is the running one.
        in_lists: whether apt's lists may have them, so that they are just not installed.
    """
    headers = headers_of(kernel)
    which = f"the {'running ' if running else ''}kernel {kernel}, {headers.whose}"
    if in_lists:
        later = (
            f"; if apt has no such package, {' '.join(headers.newest)} and a reboot" if headers.newest else ""
        )
        return (
            f"found no headers of {which}, on the host, expected the package {headers.package} for DKMS; "
            f"apt-get install {headers.package} (from {headers.source}){later}; then run the playbook again"
        )
    line = f"found no package {headers.package} in apt's lists, expected the headers of {which}, for DKMS; "
    if not headers.newest:
        return f"{line}get them from {headers.source}, or boot a kernel of the distribution"
    if "Proxmox" in headers.whose:
        return (
            f"{line}they come from {headers.source}: add that source and run the playbook again; if "
            f"it no longer has them, apt-get install {' '.join(headers.newest)}, reboot into that "
            "kernel and run the playbook again"
        )
    return (
        f"{line}a newer kernel has replaced it in {headers.source}: apt-get install "
        f"{' '.join(headers.newest)}, reboot into it and run the playbook again"
    )


def next_kernel(bootable: Iterable[str]) -> str | None:
    """Return the kernel that a boot loader starts by default: the newest, in ``linux-version sort`` order."""
    return max(bootable, key=_natural, default=None)


def _natural(text: str) -> list[tuple[int, str]]:
    return [
        (0, part) if (number := digits(part)) is None else (number, "")
        for part in re.findall(r"[0-9]+|[^0-9]+", text)
    ]


# Messages in build logs and their remedies. Sources of the messages: tests/unit/test_driver_failure.py.
_BUILD: Final[Sequence[tuple[str, str]]] = (
    (r"No space left on device", "the disk is full: free 2 GB on / and /var"),
    (r"\bKilled\b|cc1: out of memory|virtual memory exhausted", "the compiler ran out of memory"),
    (
        r"generated/autoconf\.h|linux/autoconf\.h|/build: No such file|[Kk]ernel headers.{0,80}"
        r"(cannot be found|not.{0,20}installed|not found)|Missing \S+ kernel headers",
        "the headers are missing or incomplete: install {package}, from {source}",
    ),
    (
        r"Compiler version check failed|CC version check|unrecognized command.line option|"
        r"gcc-\d+: (command )?not found|gcc-\d+: No such file|compiler .{0,40}not found",
        "install the compiler that this kernel was built with (cat /proc/version names it)",
    ),
    (
        r"GPL-incompatible module|GPL-only symbol",
        "this kernel does not load proprietary modules: set metal_open_modules to true",
    ),
    (
        r"implicit declaration of function|has no member named|too (few|many) arguments to function|"
        r"incompatible.pointer.type|undeclared|conflicting types for|redefinition of|unknown type name",
        "this driver's sources do not compile against this kernel: set metal_driver_branch to a "
        "newer branch, or boot an older kernel",
    ),
    (
        r"[Kk]ey was rejected|sign-file.{0,80}(fail|error|No such)",
        "signing failed: see secure boot in docs/driver.md",
    ),
)


def build_failure(log: Sequence[str], kernel: str, present: bool = True) -> tuple[str, str]:
    """Return the lines of a build's log that explain its failure, and the remedy.

    Args:
        log: its lines, or the end of them.
        kernel: the kernel it was for.
        present: whether the kernel's headers are on the host.

    The compiler's first error is the cause; make's later messages are consequences.
    """
    lines = [" ".join(line.split()) for line in log if line.strip()]
    # "warning: …" may mention an error that is not one.
    echo = r"Bad return status for module build|One or more modules failed|Sub-process|error processing"
    lines = [one for one in lines if not re.search(echo, one)]
    causes = [one for one in lines if re.search(r"(fatal )?error:|Error!|ERROR:|FATAL:", one)]
    wanted = "|".join(pattern for pattern, _ in _BUILD)
    known = [one for one in lines if re.search(wanted, one)]
    echoes = [one for one in lines if "***" in one]
    telling = list(dict.fromkeys([*(causes or known)[:2], *echoes[-1:]])) or lines[-3:]
    headers = headers_of(kernel)
    told = "\n".join([*causes[:3], *known[:3], *telling])
    for pattern, advice in _BUILD:
        if re.search(pattern, told):
            remedy = advice.format(package=headers.package, source=headers.source)
            return " | ".join(one[:300] for one in telling), remedy
    if not present:
        remedy = f"its headers are missing: install {headers.package}, from {headers.source}"
    else:
        remedy = f"fix the reported error (compiler, headers of {kernel}: {headers.package})"
    return " | ".join(one[:300] for one in telling), remedy


def kernel_problem(collected: Mapping[str, Any], module: str) -> str | None:
    """Return what is wrong with the modules of the kernel that boots next, or None.

    A failed build comes with the end of its log.
    """
    kernels = collected.get("kernels") or {}
    running, upcoming = str(kernels.get("running")), next_kernel(kernels.get("bootable") or ())
    if collected.get("container"):
        return None
    kernel = upcoming or running
    if built_for(collected, kernel):
        return None
    moved = "" if kernel == running else f" (which boots next; {running} is running now)"
    return unbuilt_line(collected, module, kernel, moved)


def unbuilt_line(collected: Mapping[str, Any], module: str, kernel: str, moved: str = "") -> str:
    """Return an error that DKMS built no modules for a kernel, with its log: found, expected, what to do."""
    kernels = collected.get("kernels") or {}
    logs: Mapping[str, Sequence[str]] = collected.get("dkms_logs") or {}
    end, remedy = build_failure([line for log in logs.values() for line in log], kernel,
                                kernel in (kernels.get("headers") or ()) or not kernels)  # fmt: skip
    where = ", ".join(logs) or "/var/lib/dkms/nvidia/*/build/make.log"
    return (
        f"found no module of {module or 'the driver'} for kernel {kernel}{moved}: DKMS failed: "
        f"{end or 'it left no log'}; expected one; {remedy} (the log: {where}), run dkms autoinstall and the "
        "playbook again"
    )

"""The NVIDIA driver's Xids: meaning, required action, and log format.

Source: NVIDIA, "GPU Deployment and Management: XID Errors", its catalogue "Analyzing Xid Errors with the Xid
Catalog" (release of October 2025) and, where that says "unused", the older table of the same guide (R:
published, not reproduced; no GPU was available). "operator" where the immediate action is a reset, a reboot
or a repair.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from minimax_metal.common.text import printable


@dataclass(frozen=True, slots=True)
class XidRule:
    """Meaning and required action of one Xid."""

    meaning: str
    operator: bool
    """Whether the host must be drained; otherwise restarting the application is enough."""


_APPLICATION: Final[dict[int, str]] = {
    8: "GPU stopped processing",
    11: "invalid or corrupted push buffer stream",
    13: "graphics engine exception",
    14: "unused",
    25: "invalid or illegal push buffer stream",
    31: "GPU memory page fault",
    32: "invalid or corrupted push buffer stream",
    37: "driver firmware error",
    38: "driver firmware error",
    39: "copy engine exception",
    40: "copy engine exception",
    41: "copy engine exception",
    43: "GPU stopped processing",
    44: "graphics engine fault during a context switch",
    45: "preemptive cleanup, after another error",
    60: "video processor exception",
    63: "memory row remapped, takes effect at the next reset",
    66: "illegal access by the driver",
    67: "illegal access by the driver",
    68: "video decoder exception",
    69: "graphics engine class error",
    **{70 + number: f"copy engine {3 + number} error" for number in (0, 1, 2)},
    **{75 + number: f"copy engine {6 + number} error" for number in (0, 1, 2)},
    80: "corrupted data sent to the GPU",
    82: "JPEG engine error",
    83: "video decoder error",
    84: "video decoder error",
    85: "copy engine 9 error",
    86: "optical flow engine exception",
    88: "video decoder error",
    89: "video decoder error",
    92: "high rate of single-bit ECC errors",
    93: "InfoROM wear limit exceeded, not fatal",
    94: "contained ECC error",
    **dict.fromkeys(range(96, 99), "video decoder error"),
    **dict.fromkeys(range(99, 106), "JPEG engine error"),
    106: "SMBPBI test message",
    107: "SMBPBI test message",
    121: "C2C link corrected error",
    **{number: f"copy engine {number - 116} error" for number in range(126, 136)},
    137: "NVLink privilege error, usually an illegal access by the application",
    139: "optical flow engine error",
    141: "CUDA fast path error",
    152: "DLA SMMU error",
    153: "DLA timeout",
    159: "CHI non-data error",
    160: "channel retired",
    161: "channel could not be retired",
    162: "power smoothing re-enabled",
    163: "power smoothing disabled",
    164: "power smoothing circuit near the end of its life",
}
_OPERATOR: Final[dict[int, str]] = {
    46: "GPU stopped processing",
    48: "double-bit ECC error",
    54: "auxiliary power is not connected to the board",
    61: "internal micro-controller breakpoint",
    62: "internal micro-controller halt",
    64: "memory row could not be remapped",
    74: "NVLink error",
    78: "vGPU start error",
    79: "GPU has fallen off the bus",
    95: "uncontained ECC error",
    109: "context switch timeout",
    110: "security fault",
    119: "GSP timeout",
    120: "GSP error",
    123: "SPI write failure of the power management unit",
    125: "InfoROM file system failure",
    136: "link training failed",
    140: "unrecovered ECC error",
    142: "video encoder error",
    143: "GPU initialisation error",
    151: "key rotation error",
    154: "the driver asks for a recovery action",
    155: "NVLink software-defined error",
    156: "resource retirement event",
    157: "resource could not be retired",
    158: "GPU fatal timeout",
    165: "power smoothing circuit at the end of its life",
    166: "NVLink traffic before encryption was set up",
    167: "PCIe fatal timeout",
    168: "errors in protected memory: less GPU memory available",
    169: "internal micro-controller halt",
    170: "NVLink interrupt in confidential computing",
    171: "uncorrectable DRAM error",
    172: "uncorrectable SRAM error",
}
_NVLINK5: Final[dict[int, str]] = {
    144: "NVLink 5: SAW error",
    145: "NVLink 5: RLW error",
    146: "NVLink 5: TLW error",
    147: "NVLink 5: TREX error",
    148: "NVLink 5: NVLPW_CTRL error",
    149: "NVLink 5: NETIR error",
    150: "NVLink 5: MSE error",
}
"""Xids whose lines state whether they are fatal."""

XIDS: Final[dict[int, XidRule]] = (
    {number: XidRule(meaning, False) for number, meaning in _APPLICATION.items()}
    | {number: XidRule(meaning, True) for number, meaning in _OPERATOR.items()}
    | {number: XidRule(meaning, False) for number, meaning in _NVLINK5.items()}
)
UNKNOWN: Final = XidRule("not in NVIDIA's published list", False)
"""An operator should look at it, but need not drain the host."""

# MIG: "(PCI:0000:9b:00 GPU-I:05)". Older drivers omit "PCI:".
_XID: Final = re.compile(
    r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F]{1,8}:[0-9a-fA-F:.]{2,16})(?: GPU-I:(\d{1,3}))?[^)]{0,40}\): (\d{1,4})"
)
_SEVERITY: Final = re.compile(r"\b(Non-?fatal|Fatal)\b", re.IGNORECASE)
_RECOVERY: Final = re.compile(r"recovery action changed from .{1,60}? to 0x[0-9a-fA-F]{1,8} \(([^)]{1,60})\)")
_PREVIOUS: Final = re.compile(r"caused by previous Xid (\d{1,4})")


@dataclass(frozen=True, slots=True)
class Xid:
    """One Xid line of the kernel."""

    number: int
    device: str
    line: str
    instance: str | None = None
    """The MIG instance, if it names one."""

    @property
    def fatal(self) -> bool | None:
        """Whether the line of an NVLink 5 Xid says fatal; None if it says nothing."""
        if self.number not in _NVLINK5:
            return None
        found = _SEVERITY.search(self.line)
        return found[1].lower() == "fatal" if found else None

    @property
    def previous(self) -> int | None:
        """The Xid that the line names as its cause."""
        found = _PREVIOUS.search(self.line)
        return int(found[1]) if found else None

    @property
    def rule(self) -> XidRule:
        """Its meaning and required action."""
        rule = XIDS.get(self.number, UNKNOWN)
        if self.number in _NVLINK5:
            said = {True: ", fatal", False: ", not fatal", None: ""}[self.fatal]
            return XidRule(f"{rule.meaning}{said}", self.fatal is not False)
        if self.number == 154 and (action := _RECOVERY.search(self.line)):
            if action[1].strip().lower() == "none":
                return XidRule("the driver no longer asks for a recovery action", False)
            return XidRule(f"the driver asks for: {action[1].strip()}", True)
        return rule

    def __str__(self) -> str:
        where = f"{self.device} MIG instance {int(self.instance)}" if self.instance else self.device
        return f"Xid {self.number} on {where} ({self.rule.meaning})"


def find_xids(kernel_lines: Sequence[str]) -> list[Xid]:
    """Return the Xids in lines of the kernel's log."""
    found = ((_XID.search(line[:2000]), line) for line in kernel_lines if "Xid" in line[:2000])
    return [
        Xid(int(match[3]), match[1], printable(line[:2000]).strip(), match[2])
        for match, line in found
        if match
    ]

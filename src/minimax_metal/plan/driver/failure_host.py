"""Causes of a failed installation on the host: locks, disks, its clock, a module in use. Pure."""

from __future__ import annotations

import re

from minimax_metal.plan.driver.apt_words import plain, shortened, url_near
from minimax_metal.plan.driver.failure_case import AGAIN, Failure, where


def interrupted(failure: Failure) -> str | None:
    """dpkg was interrupted in an earlier installation."""
    if not failure.first(r"dpkg was interrupted, you must manually run|dpkg --configure -a"):
        return None
    return (
        "found dpkg interrupted in an earlier installation, expected it to be complete; run dpkg "
        f"--configure -a on the host, then {AGAIN}"
    )


def locked(failure: Failure) -> str | None:
    """Another process holds the lock of apt or dpkg: which one."""
    found = failure.first(
        r"Could not get lock|Unable to acquire the dpkg|Unable to lock|is another process using it|"
        r"Failed to lock apt|Waiting for cache lock|dpkg status database is locked|"
        r"lock was locked by another|is locked by another process"
    )
    if not found:
        return None
    if re.search(r"are you root\?|Permission denied", failure.text):
        return (
            "found apt running without root's rights, expected root; check become and sudo for this "
            f"host, then {AGAIN}"
        )
    held = re.search(r"(?:held by process|process with pid) (\d+)(?: \(([^)]+)\))?", failure.text)
    lock = re.search(r"(/var/[\w/.-]*lock[\w-]*)", failure.text)
    lock = lock or re.search(r'"config": (/var/cache/debconf/[\w.-]+)', failure.text)
    path = lock[1] if lock else "/var/lib/dpkg/lock-frontend"
    who = f"by process {held[1]}" + (f" ({held[2]})" if held[2] else "") if held else "by another process"
    if held and "unattended" in (held[2] or ""):
        advice = (
            "wait for unattended upgrades to finish (systemctl stop unattended-upgrades stops them cleanly)"
        )
    elif held:
        advice = f"wait for it to finish (ps -fp {held[1]} on the host)"
    else:
        advice = f"find the process (fuser -v {path} on the host) and wait for it to finish"
    return (
        f"found apt locked: {path} is held {who}, expected apt free within the time Ansible waits; "
        f"{advice}, then {AGAIN}"
    )


def full(failure: Failure) -> str | None:
    """A disk is full: which one."""
    found = failure.first(r"No space left on device|enough free space in|Disk quota exceeded")
    if not found:
        return None
    boot = re.search(r"mkinitramfs|initrd\.img|/boot/|compressed\s*block", failure.text)
    named = re.search(r"enough free space in ([\w/.-]+)", failure.text)
    place = "/boot" if boot else named[1].rstrip(".") if named else "df -h shows which one"
    advice = (
        "apt-get autoremove --purge removes old kernels" if boot else "apt-get clean, then free some space"
    )
    return (
        f"found a full disk, {place} ({shortened(plain(failure.lines[found[0]]), 200)}), expected 2 GB free "
        f"on / and /var and 200 MB on /boot; {advice} on the host, then {AGAIN}"
    )


def read_only(failure: Failure) -> str | None:
    """A file system is not writable."""
    found = failure.first(r"Read-only file system|Input/output error")
    if not found:
        return None
    return (
        f"found a disk that can't be written to ({shortened(plain(failure.lines[found[0]]), 200)}), "
        "expected it writable; journalctl -k on the host shows why (a failing disk is mounted "
        f"read-only); repair or replace it, then {AGAIN}"
    )


def python_apt(failure: Failure) -> str | None:
    """Ansible's apt module needs the distribution's own Python."""
    found = failure.first(
        r"import python modules: apt|python3?-apt (?:package|must be installed)|bindings for apt are needed"
    )
    if not found:
        return None
    used = re.search(r"visible from (/\S+?)\.?(?:\s|$)", failure.text)
    return (
        f"found a Python without the module apt{f' ({used[1]})' if used else ''}, expected the package "
        "python3-apt and the distribution's own Python; run apt-get install python3-apt on the host, and set "
        f"ansible_python_interpreter: /usr/bin/python3, then {AGAIN}"
    )


def temporary(failure: Failure) -> str | None:
    """apt has no directory for its temporary files."""
    found = failure.first(
        r"Couldn't create temporary file (\S+)|Unable to mkstemp (\S+)|Couldn't create tempfiles? .{0,80}"
    )
    if not found:
        return None
    place = next((part for part in found[1].groups() if part), "/tmp").rpartition("/")[0] or "/tmp"  # noqa: S108
    return (
        f"found {place} not writable for apt's user _apt "
        f"({shortened(plain(failure.lines[found[0]]), 250)}), expected it writable for all users (ls "
        f"-ld {place}: drwxrwxrwt) and not full; run chmod 1777 {place} on the host, check df -h "
        f"{place}, then {AGAIN}"
    )


def clock(failure: Failure) -> str | None:
    """The host's clock is wrong, or lists have expired."""
    early = failure.first(
        r"(?:is )?not valid yet|not yet (?:valid|activated)|certificate is not yet valid|Not live "
        r"until|created in the "
        r"future"
    )
    if early:
        number, _ = early
        ahead = re.search(r"invalid for another ([\dhdmins ]+?)\)", failure.lines[number])
        by = f" by at least {ahead[1].strip()}" if ahead else ""
        about = url_near(failure.lines, number) or "signed data"
        return (
            f"found {about} dated after this host's clock, which is slow{by}, expected a correct "
            "clock; set it (timedatectl set-ntp true; timedatectl shows whether it is synchronised), "
            f"then {AGAIN}"
        )
    late = failure.first(r"is expired \(invalid since|Release file .{0,300}expired")
    if not late:
        return None
    number, _ = late
    since = re.search(r"invalid since ([\dhdmins ]+?)\)", failure.lines[number])
    about = url_near(failure.lines, number) or "a source of apt"
    whose, place = where(failure, [about])
    return (
        f"found the lists of {about} expired{f' {since[1].strip()} ago' if since else ''} ({whose}), "
        "expected lists that are still valid; check that the host's clock is not fast (timedatectl); "
        f"if it is right, that mirror or cache is out of date: change {place}; for a bundle or a "
        "snapshot set metal_frozen_sources"
    )


def held_module(failure: Failure) -> str | None:
    """A kernel module can't be replaced: which one, and what uses it."""
    found = failure.first(
        r"[Mm]odule ([\w-]+) is in use(?: by:? ([\w ,-]+))?|could not remove (?:module )?'?([\w-]+?)'?: |"
        r"rmmod: ERROR: .{0,80}'([\w-]+)'"
    )
    if not found:
        return None
    # The first that can't be removed blocks those named after it.
    module = found[1][1] or found[1][3] or found[1][4]
    every = re.findall(r"[Mm]odule ([\w-]+) is in use(?: by:? ([\w ,-]+))?", failure.text)
    by = [word for name, users in every if name == module for word in re.split(r"[ ,]+", users) if word]
    users = failure.collected.get("module_users") or {}
    holders = list(dict.fromkeys([*by, *((users.get("holders") or {}).get(module) or ())]))
    processes = [f"{one.get('name')} (process {one.get('pid')})" for one in users.get("processes") or ()]
    who = []
    if holders:
        who.append(f"by the module{'s' if len(holders) > 1 else ''} {', '.join(holders)}")
    if processes:
        who.append(
            "by "
            + ", ".join(processes[:6])
            + (f" and {len(processes) - 6} more" if len(processes) > 6 else "")
        )
    said = " and ".join(who) or "by a process that has /dev/nvidia* open (fuser -v /dev/nvidia* shows it)"
    return (
        f"found kernel module {module} in use {said}, expected it unused, so that it can be "
        "replaced; stop what uses it (engines, nvidia-persistenced, nvidia-fabricmanager, DCGM and "
        f"other monitoring, a desktop), or reboot the host into the installed driver, then {AGAIN}"
    )

"""Causes of a failed installation in a package source, or on the way to it. Pure."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from minimax_metal.plan.driver.apt_words import end_of, host_of, plain, shortened, url_near
from minimax_metal.plan.driver.failure_case import AGAIN, Failure, shown, where
from minimax_metal.plan.driver.kernel import KERNEL, headers_problem


def two_keys(failure: Failure) -> str | None:
    """Two files name one repository with two keys."""
    found = failure.first(r"Conflicting values set for option Signed-By regarding source (\S+)")
    if not found:
        return None
    number, match = found
    keys = re.search(r"/ ?: (\S*) ?!= ?(\S*?),?$", failure.lines[number].strip()) or re.search(
        r": (\S*) ?!= ?(\S*)", failure.lines[number]
    )
    pair = [one or "none" for one in keys.groups()] if keys else ["one", "another"]
    host = host_of(match[1])
    files = ", ".join(failure.collected.get("sources") or ())
    named = f" ({files})" if files else ""
    return (
        f"found two sources of apt for {match[1]} with two keys ({pair[0]} and {pair[1]}), expected one; on "
        f"the host grep -rl {host} /etc/apt/sources.list /etc/apt/sources.list.d shows both files{named}: "
        f"delete one, then {AGAIN}"
    )


def medium(failure: Failure) -> str | None:
    """The distribution's installation medium is still a source, but not inserted."""
    found = failure.first(r"cdrom:(?://)?\[([^\]]{1,200})\]")
    if not found or not failure.first(
        r"Release file|use apt-cdrom|insert the dis[ck]|Media change|Unable to (?:stat|mount)"
    ):
        return None
    return (
        f"found the installation medium as a source of apt ({found[1][1]}), expected sources that the host "
        "can reach; delete the line with cdrom: from /etc/apt/sources.list (grep -rn cdrom /etc/apt), then "
        f"{AGAIN}"
    )


def renamed(failure: Failure) -> str | None:
    """A repository changed its name."""
    found = failure.first(r"changed its '(\w+)' value from '([^']*)' to '([^']*)'")
    if not found:
        return None
    about = url_near(failure.lines, found[0]) or "a source of apt"
    return (
        f"found that {about} changed its {found[1][1]} from {found[1][2] or 'nothing'} to "
        f"{found[1][3]}, expected the value that apt knew; if the change is legitimate (a "
        "distribution's release got older), run apt-get update --allow-releaseinfo-change on the "
        f"host, then {AGAIN}"
    )


def sources_file(failure: Failure) -> str | None:
    """A file of apt's sources can't be read."""
    found = failure.first(r"Malformed (?:entry|stanza|line) .{0,200}|The list of sources could not be read")
    if not found:
        return None
    return (
        f"found a file of apt's sources that can't be read ({end_of(failure.lines, 250)}), expected sources "
        f"that apt can read; fix or delete that file on the host, then {AGAIN}"
    )


_PROXY: Final = (
    r"\b407\b|Proxy Authentication|[Ii]nvalid response from proxy|from proxy after CONNECT|CONNECT denied|"
    r"Tunnel connection failed|resolve proxy|[Uu]nsupported proxy configured|Proxy (?:CONNECT|connection)"
)


def proxy(failure: Failure) -> str | None:
    """A proxy asks for credentials, refuses, or does not answer."""
    urls = failure.urls(_PROXY)
    found = failure.first(_PROXY)
    if not found:
        found = _other_server(failure)
        if not found:
            return None
        urls = [url for url in [url_near(failure.lines, found[0])] if url]
    line = plain(failure.lines[found[0]])
    ours = bool(urls) and all(failure.ours(url) for url in urls)
    setting = (
        "nvidia_driver_repository_proxy"
        if ours
        else "Acquire::http::Proxy in /etc/apt/apt.conf.d on the host"
    )
    target = shown(urls) or "a source of apt"
    address = re.search(r"\[IP: ?(\S+) (\d+)\]", line)
    proxy = f" {address[1]}:{address[2]}" if address else ""
    if re.search(r"\b407\b|Proxy Authentication", failure.text):
        return (
            f"found that the proxy{proxy} requires a user and password (407) to reach {target}, "
            f"expected a proxy that lets the host through; give its credentials in {setting} (apt "
            f"supports Basic only), or have it let this host through, then {AGAIN}"
        )
    if found[1].re.pattern != _PROXY or "resolve proxy" in line:
        return (
            f"found no answer from the proxy on the way to {target} ({shortened(line, 250)}), "
            f"expected one; check {setting}, then {AGAIN}"
        )
    return (
        f"found that the proxy{proxy} refuses to connect to {target} ({shortened(line, 250)}), "
        "expected it to allow CONNECT to "
        f"{', '.join(dict.fromkeys(host_of(url) for url in urls)) or 'it'}; allow that in the "
        f"proxy, or set {setting} to another one, then {AGAIN}"
    )


def _other_server(failure: Failure) -> tuple[int, re.Match[str]] | None:
    """Return a line about a server that could not be reached and that is not the URL's: a proxy."""
    for number, line in enumerate(failure.lines):
        server = re.search(
            r"(?:Could not connect to|Unable to connect to|Could not resolve(?: host:)?|"
            r"Temporary failure resolving|Cannot initiate the connection to) '?([A-Za-z0-9._-]+[A-Za-z0-9])",
            line,
        )
        url = url_near(failure.lines, number)
        if server and url and server[1].lower() != (urlsplit(url).hostname or "").lower():
            return number, server
    return None


def certificate(failure: Failure) -> str | None:
    """A certificate is not trusted."""
    pattern = (
        r"[Cc]ertificate verification failed|CERTIFICATE_VERIFY_FAILED|certificate is NOT trusted|"
        r"certificate verify failed|[Nn]o system certificates available|server certificate verification|"
        r"unable to get local issuer|self.signed certificate|Failed to validate the SSL certificate"
    )
    found = failure.first(pattern)
    if not found:
        return None
    number, _ = found
    line = plain(failure.lines[number])
    urls = failure.urls(pattern)
    whose, place = where(failure, urls)
    about = shown(urls) or "a source of apt"
    address = re.search(r"\[IP: ?(\S+) (\d+)\]", line)
    via = f" (answered by {address[1]} port {address[2]})" if address else ""
    if re.search(r"[Nn]o system certificates", line):
        return (
            "found no CA certificates on the host, expected the package ca-certificates for "
            f"{about}; install it from an http source, then {AGAIN}"
        )
    if re.search(r"expired", line):
        return (
            f"found an expired certificate at {about}{via}, {whose}, expected a valid one; check "
            f"that the host's clock is not fast (timedatectl), otherwise change {place}"
        )
    if re.search(
        r"name in the certificate does not match|Hostname mismatch|doesn't match", line
    ) and not re.search(r"issuer is unknown", line):
        return (
            f"found a certificate for another name at {about}{via}, {whose}, expected that server's "
            f"own; check name resolution, any proxy in between, and {place}"
        )
    return (
        f"found a certificate at {about}{via} whose issuer this host does not know, expected a "
        "certificate from a CA that it trusts; a proxy that decrypts TLS signs with its own CA: put "
        "that CA's certificate into /usr/local/share/ca-certificates/NAME.crt on the host, run "
        f"update-ca-certificates (and install ca-certificates where it is missing), then {AGAIN}"
    )


def signature(failure: Failure) -> str | None:
    """A repository's signature does not match its key."""
    pattern = (
        r"NO_PUBKEY|BADSIG|EXPKEYSIG|KEYEXPIRED|EXPSIG|REVKEYSIG|is not signed|no longer signed|Missing key|"
        r"OpenPGP signature|sqv returned|signatures? (?:were|was) invalid|weak (?:security|digest)"
    )
    if not failure.first(pattern):
        return None
    # "is not signed" follows if the signed file could not be fetched: then that is the cause.
    if not failure.first(r"NO_PUBKEY|BADSIG|EXP|KEYREVOKED|REVKEYSIG|Missing key|sqv|invalid|weak") and (
        failure.first(r"Failed to fetch|\b(?:40[0-6]|410|429|451|5\d\d) +[A-Z]")
    ):
        return None
    urls = failure.urls(pattern)
    number = failure.first(r"NO_PUBKEY|BADSIG|EXPKEYSIG|KEYEXPIRED|REVKEYSIG") or failure.first(pattern)
    said = shortened(plain(failure.lines[number[0]]), 300) if number else ""
    whose, place = where(failure, urls)
    if urls and not any(failure.ours(url) for url in urls):
        return (
            "found a signature of the package repository that does not match its key: "
            f"{shown(urls)}, {whose} ({said}); expected a source that apt can verify; renew its key "
            f"or remove it: {place}"
        )
    return (
        f"found a signature of the package repository that does not match its key ({said}), expected "
        "the key of nvidia_driver_repository_key; check the mirror, nvidia_driver_repository_key and "
        "nvidia_driver_repository_key_fingerprint; nothing was installed"
    )


def mismatch(failure: Failure) -> str | None:
    """Files do not match the index of their repository."""
    pattern = (
        r"Hash Sum mismatch|File has unexpected size|Mirror sync in progress|Hashes of (?:expected|received)"
    )
    found = failure.first(pattern)
    if not found:
        return None
    urls = failure.urls(pattern)
    whose, place = where(failure, urls)
    about = shown(urls) or plain(failure.lines[found[0]])
    return (
        f"found files of the package repository that do not match its index: {about}, {whose}; "
        "expected a consistent mirror (a proxy that keeps old files causes the same error); wait "
        f"until it has synchronised, or change {place}"
    )


def status(failure: Failure) -> str | None:
    """A server answers, and refuses: whose it is, and which URL."""
    pattern = (
        r"\b(40[0-6]|410|429|451|5\d\d) +[A-Z][A-Za-z -]+|HTTP Error (\d{3})|does not have a Release file|"
        r"no longer has a Release file|Response code: (\d{3})"
    )
    found = failure.first(pattern)
    if not found:
        return None
    urls = failure.urls(pattern)
    whose, place = where(failure, urls)
    word = " ".join(found[1][0].split())
    about = shown(urls) or "a source of apt"
    if "404" in word or "Release file" in word:
        old = [url for url in urls if url.endswith(".deb")]
        kernel = next(
            (hit[1] for url in old if (hit := re.search(rf"/linux-headers-({KERNEL}?)_", url))), None
        )
        if kernel:
            return headers_problem(kernel) + f" ({whose}: {shown(old)} answered {word})"
        if old:
            return (
                f"found {about} gone (404), of {whose}, expected the package that apt's lists name; "
                "the lists are older than the mirror, or the mirror is incomplete: run apt-get "
                f"update on the host and {AGAIN}; it resumes; if the error stays, change {place}"
            )
        return (
            f"found {about} without the expected repository ({word}), {whose}; check that it has "
            f"this distribution and release, and change {place}"
        )
    if any(host_of(url) == "enterprise.proxmox.com" for url in urls):
        return (
            f"found {about} answering {word}: Proxmox's repository for subscribers, expected a source that "
            "this host may use; without a subscription delete /etc/apt/sources.list.d/pve-enterprise.* (and "
            f"ceph.*) and add pve-no-subscription of download.proxmox.com, then {AGAIN}"
        )
    if "429" in word:
        return (
            f"found {about} answering {word}, {whose}, expected the file; that server limits the "
            f"rate of requests: wait some minutes and {AGAIN}; for a fleet set "
            "metal_vendor_repository_url, or give it a host in the group cache_hosts"
        )
    return (
        f"found {about} answering {word}, {whose}, expected the file; check access to it (a firewall "
        f"or mirror that refuses), and {place}; then {AGAIN}"
    )


def network(failure: Failure) -> str | None:
    """A server does not answer: whose it is."""
    pattern = (
        r"Could not resolve|Temporary failure resolving|Temporary failure in name resolution|Name or "
        r"service not "
        r"known|Connection refused|[Cc]onnection timed out|Could not connect|Unable to connect|Cannot "
        r"initiate|"
        r"timed out|urlopen error|Network is unreachable|No route to host|Connection reset|Connection failed|"
        r"Failed to fetch|Request failed|Something wicked happened|handshake"
    )
    found = failure.first(pattern)
    if not found:
        return None
    urls = failure.urls(pattern)
    whose, place = where(failure, urls)
    about = shown(urls)
    said = shortened(plain(failure.lines[found[0]]), 300)
    if urls and all(url.startswith("file:") for url in urls):
        return (
            f"found no {about} on the host ({said}), expected the package that a source in "
            "/etc/apt/sources.list.d names there; mount or complete that directory, or delete the source "
            f"(grep -rn file: /etc/apt), then {AGAIN}"
        )
    if not urls or all(failure.ours(url) for url in urls):
        return (
            f"found a package repository that does not answer ({said}), expected an answer from "
            f"{about or failure.url}; check the network, nvidia_driver_repository_url and "
            "nvidia_driver_repository_proxy, then run the playbook again: it resumes"
        )
    return (
        f"found {about} not answering, {whose} ({said}), expected an answer; check the network, name "
        f"resolution and {place}, then {AGAIN}: it resumes"
    )

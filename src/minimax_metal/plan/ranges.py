"""Values that a type alone can't judge: numbers, and texts that become addresses and names of directories."""

from __future__ import annotations

import re
from typing import Final

from minimax_metal.plan.findings import Findings
from minimax_metal.plan.settings import Settings

PROFILES: Final = ("default", "fast", "guide")
AIMS: Final = ("latency", "throughput", "long-context")
DAY: Final = 86_400
_REVISION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,127}){0,4}")
_PROGRAMS: Final = re.compile(r"/[A-Za-z0-9_./@+-]+")
"""Directories of programs: systemd refuses quotes in a program's name, and no script starts by a path with a
space in its first line."""
_ADDRESS: Final = re.compile(r"(?:[A-Za-z0-9_.:-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?:%[A-Za-z0-9_.-]{1,15})?")


def check_ranges(settings: Settings, found: Findings) -> None:
    """Values that the engine's own parser lets through."""
    if not 1 <= settings.port <= 65535:
        found.refuse("port", f"metal_port {settings.port}", "1 to 65535", "set metal_port to a free port")
    fraction = settings.mem_fraction_static
    if fraction is not None and not 0.0 < fraction < 1.0:
        found.refuse(
            "mem-fraction",
            f"metal_mem_fraction_static {fraction:g}",
            "more than 0 and less than 1",
            "leave it out, or set what the guide sets: 0.85",
        )
    for code, name, value, most in (
        ("parallelism", "metal_tp_size", settings.tp_size, 1024),
        ("parallelism", "metal_ep_size", settings.ep_size, 1024),
        ("limit", "metal_max_running_requests", settings.max_running_requests, 1_000_000),
        ("limit", "metal_max_queued_requests", settings.max_queued_requests, 1_000_000),
        ("limit", "metal_tokens_per_request", settings.tokens_per_request, 100_000_000),
        ("timeout", "metal_start_timeout_seconds", settings.start_timeout_seconds, 7 * DAY),
        ("timeout", "metal_stop_timeout_seconds", settings.stop_timeout_seconds, DAY),
    ):
        if value is not None and not 1 <= value <= most:
            found.refuse(code, f"{name} {value}", f"1 to {most}", f"leave {name} out")
    threads = settings.loader_threads
    if threads is not None and not 0 <= threads <= 64:
        found.refuse("limit", f"metal_loader_threads {threads}", "0 to 64", "leave metal_loader_threads out")
    if settings.profile not in PROFILES:
        found.refuse(
            "profile",
            f"metal_profile {settings.profile}",
            " or ".join(PROFILES),
            "set one of them, or leave it out",
        )
    if settings.aim not in AIMS:
        found.refuse(
            "aim", f"metal_aim {settings.aim}", " or ".join(AIMS), "set one of them, or leave it out"
        )
    for name, revision in (
        ("metal_model_revision", settings.model_revision),
        ("metal_speculative_draft_revision", settings.speculative_draft_revision),
    ):
        if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
            found.refuse(
                "model-revision",
                f"{name} {revision}",
                "a commit, a tag or a branch: letters, digits, dots and dashes",
                "leave it out for the catalogue's",
            )
    for name, address in (
        ("metal_listen_address", settings.listen_address),
        ("metal_address", settings.address),
        ("metal_tls_name", settings.tls_name),
    ):
        if address is not None and not _ADDRESS.fullmatch(address):
            found.refuse("address", f"{name} {address}", "an IP address or a host's name", f"fix {name}")
    if not _PROGRAMS.fullmatch(settings.engine_directory):
        found.refuse(
            "directory",
            f"metal_engine_directory {settings.engine_directory}",
            "a path of letters, digits and . _ / @ + -: programs start from there",
            "leave it out, or set such a path",
        )

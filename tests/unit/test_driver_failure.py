"""Messages of apt, dpkg, DKMS and modprobe on real machines, and their explanation.

Each case (``data/driver/messages.yml``) names its public report, or the source of the program that prints it.
The product explains each in one line, with the right cause.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from minimax_metal.plan.driver.apt_words import end_of, lines_of, package_of, same_place
from minimax_metal.plan.driver.failure import failure_line
from minimax_metal.plan.driver.kernel import headers_of, headers_problem

NVIDIA = "https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64"
CACHE = "http://10.0.0.5:8642/nvidia/debian12/x86_64"
MESSAGES = Path(__file__).parent / "data/driver/messages.yml"


def said(text: str, url: str = NVIDIA, collected: dict[str, Any] | None = None) -> str:
    line = failure_line({"msg": text}, url, collected, "driver 580.126.20")
    assert "\n" not in line
    assert line.startswith("found ")
    assert "expected" in line
    assert ";" in line
    return line


def check(line: str, *words: str, never: tuple[str, ...] = ()) -> None:
    for word in words:
        assert word in line, (word, line)
    for word in never:
        assert word not in line, (word, line)


CASES: list[dict[str, Any]] = yaml.safe_load(MESSAGES.read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=[case["case"][:60] for case in CASES])
def test_the_cause_is_named(case: dict[str, Any]) -> None:
    words, never = case["words"], tuple(case.get("never", ()))
    check(said(case["text"]), *words, never=never)
    # Ansible gives it in msg, or in stderr with words of its own in msg.
    line = failure_line({"msg": "non-zero return code", "stderr": case["text"], "rc": 100}, NVIDIA)
    check(line, *words, never=never)


D5 = (
    "W: Sources disagree on hashes for supposely identical version '580.126.20-1' of "
    "'nvidia-driver-cuda:amd64'.\n"
    "E: Sub-process /usr/bin/dpkg returned an error code (1)\n"
    "Bad return status for module build on kernel: 6.1.0-40-cloud-amd64 (x86_64)\n"
    "dpkg: error processing package nvidia-kernel-open-dkms (--configure):\n"
    " installed nvidia-kernel-open-dkms package post-installation script subprocess returned error exit "
    "status 10"
)


def collected(*log: str, kernel: str = "6.1.0-40-cloud-amd64", **more: Any) -> dict[str, Any]:
    kernels = {"running": kernel, "bootable": [kernel], "headers": [kernel], "modules": [kernel]}
    logs = {"/var/lib/dkms/nvidia/580.126.20/build/make.log": list(log)} if log else {}
    return {"kernels": kernels, "dkms": ["nvidia/580.126.20: added"], "dkms_logs": logs} | more


LOGS = [
    (  # anomixer/proxmox-vgpu-installer#7: the compiler's complaint, not the echoes of make
        ("  CC [M]  nvidia/nv-acpi.o", "nvidia/nv-acpi.c:26:10: fatal error: os-interface.h: No such file or directory",
         "   26 | #include \"os-interface.h\"", "compilation terminated.",
         "make[4]: *** [/usr/src/linux-headers-6.17.2-1-pve/scripts/Makefile.build:287: nvidia/nv-acpi.o] "
         "Error 1",
         "make: *** [Makefile:96: modules] Error 2"),
        ("fatal error: os-interface.h", "make: *** [Makefile:96: modules] Error 2"),
    ),
    (  # emilyst/hid-nx-dkms#12
        ("././include/linux/kconfig.h:5:10: fatal error: 'generated/autoconf.h' file not found", "1 error generated."),
        ("headers are missing", "linux-headers-6.1.0-40-cloud-amd64"),
    ),
    (  # clearlinux/distribution#1133
        ("Compiler version check failed:", "gcc version 9.1.1 20190809", "*** Failed CC version check. Bailing out! ***"),
        ("compiler that this kernel was built with",),
    ),
    (  # the kind of NVIDIA/open-gpu-kernel-modules' build reports: an interface of the kernel changed
        ("nvidia-drm/nvidia-drm-drv.c:1024:9: error: implicit declaration of function 'drm_fbdev_generic_setup'",
         "make[1]: *** [Makefile:1936: /var/lib/dkms/nvidia/580.126.20/build] Error 2"),
        ("do not compile against this kernel", "metal_driver_branch"),
    ),
    (  # scripts/mod/modpost.c of Linux
        ("ERROR: modpost: GPL-incompatible module nvidia.ko uses GPL-only symbol 'rcu_read_unlock_strict'",),
        ("metal_open_modules",),
    ),
    (("cc1: fatal error: error writing to /tmp/ccX.s: No space left on device",), ("disk is full",)),
]  # fmt: skip


@pytest.mark.parametrize(("log", "words"), LOGS, ids=lambda value: str(value[0])[:40])
def test_a_failed_build_comes_with_what_its_log_says(log: tuple[str, ...], words: tuple[str, ...]) -> None:
    line = said(D5, collected=collected(*log))
    check(line, "6.1.0-40-cloud-amd64", "driver 580.126.20", "make.log", *words, never=("Sources disagree",))


def test_a_failed_build_without_a_log_names_where_it_would_be() -> None:
    check(
        said(D5),
        "6.1.0-40-cloud-amd64",
        "/var/lib/dkms/nvidia",
        "make.log",
        never=("Sources disagree", "Sub-process"),
    )
    line = said("Error! Bad return status for module build on kernel: 5.15.27-1-pve (x86_64)\nConsult /var/lib/dkms/"
                "nvidia/460.107/build/make.log for more information.")  # fmt: skip
    check(line, "5.15.27-1-pve", "/var/lib/dkms/nvidia/460.107/build/make.log")


def test_who_holds_a_module_is_read_on_the_host() -> None:
    users = {
        "holders": {"nvidia": ["nvidia_uvm", "nvidia_modeset"]},
        "processes": [{"pid": 812, "name": "nvidia-persiste"}, {"pid": 4711, "name": "dcgm-exporter"}],
    }
    line = said("modprobe: FATAL: Module nvidia is in use.", collected={"module_users": users})
    check(line, "nvidia_uvm, nvidia_modeset", "nvidia-persiste (process 812)", "dcgm-exporter (process 4711)")


def test_a_url_is_nvidias_by_host_port_and_directory() -> None:
    assert same_place(f"{NVIDIA}/./x.deb", NVIDIA)
    assert same_place(f"{CACHE}/InRelease", CACHE)
    for other in (
        "https://developer.download.nvidia.com.example.net/compute/cuda/repos/debian12/x86_64/x.deb",
        "https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64-other/x.deb",
        "https://developer.download.nvidia.com/compute/cuda/repos/debian13/x86_64/x.deb",
    ):
        assert not same_place(other, NVIDIA)
    # A cache has both on one server.
    line = said("E: Failed to fetch http://10.0.0.5:8642/apt/http/mirror.example.org/debian/pool/x_1_all.deb  404  Not Found",
                CACHE)  # fmt: skip
    check(line, "distribution's archive, not NVIDIA's")
    check(said(f"E: Failed to fetch {CACHE}/x_1_all.deb  404  Not Found", CACHE), "of NVIDIA's repository")


def test_the_url_of_the_task_counts_where_the_text_has_none() -> None:
    failed = {"msg": "Request failed: <urlopen error timed out>", "url": f"{NVIDIA}/3bf863cc.pub"}
    check(failure_line(failed, NVIDIA), f"{NVIDIA}/3bf863cc.pub", "nvidia_driver_repository_proxy")


def test_what_nobody_knows_keeps_its_end() -> None:
    text = "\n".join(f"line {number} of a long story" for number in range(400)) + "\nthe very last word"
    line = said(text)
    check(line, "the very last word", "line 399", never=("line 1 of",))
    long = "x" * 50 + " " + " ".join(f"word{number}" for number in range(300)) + " end."
    line = said(long)
    assert "end.)" in line
    assert re.search(r"\(… word\d+ ", line), "cut between words"
    assert said("") == said("\n")


def test_terminal_escapes_and_carriage_returns_do_not_pass() -> None:
    line = said("\x1b[31mE: \x1b]0;owned\x07Unable to locate package nvidia-smi\x1b[0m\r\n")
    assert "\x1b" not in line
    check(line, "nvidia-smi")


def test_a_loops_items_are_read() -> None:
    failed = {"msg": "One or more items failed", "results": [
        {"msg": "ok"}, {"failed": True, "msg": "No package matching 'libcuda1' is available"}]}  # fmt: skip
    check(failure_line(failed, NVIDIA), "libcuda1", NVIDIA)


@pytest.mark.parametrize(
    "text",
    ["E: " * 100_000, "a" * 400_000, "'/usr/bin/apt-get " * 20_000, "trying to overwrite '" * 20_000,
     "https://" * 60_000, ", E:" * 100_000, "kernel headers for kernel " * 20_000, "1.1" * 100_000,
     "Unable to locate package linux-headers-" + "1.1-" * 50_000],
)  # fmt: skip
def test_long_foreign_text_is_read_in_time(text: str) -> None:
    import time

    started = time.monotonic()
    said(text, collected=collected(text[:100_000]))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("kernel", "package", "newest"),
    [
        ("6.1.0-40-amd64", "linux-headers-6.1.0-40-amd64", "linux-headers-amd64"),
        ("6.12.48+deb13-amd64", "linux-headers-6.12.48+deb13-amd64", "linux-headers-amd64"),
        ("6.12.57+deb13-cloud-amd64", "linux-headers-6.12.57+deb13-cloud-amd64", "linux-headers-cloud-amd64"),
        ("6.12.9+bpo-amd64", "linux-headers-6.12.9+bpo-amd64", "linux-headers-amd64"),
        ("6.8.0-1014-nvidia-64k", "linux-headers-6.8.0-1014-nvidia-64k", "linux-headers-nvidia-64k"),
        ("6.5.0-1018-gcp", "linux-headers-6.5.0-1018-gcp", "linux-headers-gcp"),
        ("5.15.0-1035-azure", "linux-headers-5.15.0-1035-azure", "linux-headers-azure"),
        ("6.8.0-1021-aws", "linux-headers-6.8.0-1021-aws", "linux-headers-aws"),
        ("6.8.0-45-generic", "linux-headers-6.8.0-45-generic", "linux-headers-generic"),
        ("6.8.12-4-pve", "proxmox-headers-6.8.12-4-pve", "proxmox-default-headers"),
        ("6.5.11-4-pve", "proxmox-headers-6.5.11-4-pve", "proxmox-default-headers"),
        ("6.2.16-3-pve", "pve-headers-6.2.16-3-pve", "pve-headers"),
    ],
)
def test_each_kernel_has_its_own_headers(kernel: str, package: str, newest: str) -> None:
    headers = headers_of(kernel)
    assert headers.package == package
    assert newest in headers.newest
    check(headers_problem(kernel), package, newest, kernel)


def test_a_kernel_of_ones_own_has_none() -> None:
    for kernel in (
        "6.6.3-2-ck-atom-modprobed",
        "6.19.14-zabbly+",
        "5.15.153.1-microsoft-standard-WSL2",
        "6.1.0",
    ):
        assert headers_of(kernel).newest == ()


def test_names_and_ends() -> None:
    assert package_of("/var/cache/apt/archives/nvidia-smi_3%3a580.1-1_amd64.deb") == "nvidia-smi 3:580.1-1"
    assert (
        end_of(lines_of({"msg": "E: one\nE: Sub-process /usr/bin/dpkg returned an error code (1)"})) == "one"
    )

"""The driver packages' output on a host, compared with output published by owners of real ones.

The packages are unpacked into a directory that stands for the host's root; NVIDIA_STANDIN_ROOT tells the
programs.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.vendor.gpus import write_pci_tree
from lab.vendor.packages import PLATFORMS, repository_packages

OPEN = "nvidia-kernel-open-dkms"
FILES = {package.file_name: package for p in PLATFORMS for package in repository_packages(p, b"", "0")}

# github.com nvidia-smi of branch 580 on H100 (driver 580.126.20), with the name and figures of an idle H20.
TABLE_580 = """\
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 580.126.20             Driver Version: 580.126.20     CUDA Version: 13.0     |
+-----------------------------------------+------------------------+----------------------+
| GPU  Name                 Persistence-M | Bus-Id          Disp.A | Volatile Uncorr. ECC |
| Fan  Temp   Perf          Pwr:Usage/Cap |           Memory-Usage | GPU-Util  Compute M. |
|                                         |                        |               MIG M. |
|=========================================+========================+======================|
|   0  NVIDIA H20                     Off |   00000000:0F:00.0 Off |                    0 |
| N/A   30C    P0             72W /  500W |       0MiB /  97871MiB |      0%      Default |
|                                         |                        |             Disabled |
+-----------------------------------------+------------------------+----------------------+

+-----------------------------------------------------------------------------------------+
| Processes:                                                                              |
|  GPU   GI   CI              PID   Type   Process name                        GPU Memory |
|        ID   ID                                                               Usage      |
|=========================================================================================|
|  No running processes found                                                             |
+-----------------------------------------------------------------------------------------+
"""
# Published header of branch 610: both fields have other names.
HEAD_610 = "| NVIDIA-SMI 610.57.04              KMD Version: 610.57.04     CUDA UMD Version: 13.3     |\n"
HEAD_590 = "| NVIDIA-SMI 590.48.01              Driver Version: 590.48.01      CUDA Version: 13.1     |\n"
# /proc/driver/nvidia/gpus/0000:62:00.0/information of an H100, published; the values are the host's own.
INFORMATION_KEYS = """\
Model IRQ GPU_UUID Video_BIOS Bus_Type DMA_Size DMA_Mask Bus_Location Device_Minor GPU_Firmware GPU_Excluded
"""
NOT_LOADED = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest"
    " NVIDIA driver is installed and running.\n\n"
)


class Host:
    """A directory that stands for a host's root."""

    def __init__(self, root: Path, model: str, count: int) -> None:
        self.root = root
        write_pci_tree(root / "sys/bus/pci/devices", model, count)
        for name, text in (
            ("machine-id", "0123456789abcdef0123456789abcdef\n"),
            ("os-release", 'VERSION_ID="13"\n'),
        ):
            (root / "etc").mkdir(exist_ok=True)
            (root / "etc" / name).write_text(text)

    def install(self, *names: str, version: str) -> None:
        """Unpack packages of one version over the existing files: what dpkg does without a reboot."""
        for name in names:
            package = FILES[f"{name}_{version}-1_amd64.deb"]
            for path, file in package.files.items():
                target = self.root / path.lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                if file.link is None:
                    target.write_bytes(file.content)
                    target.chmod(file.mode)

    def boot(self) -> str:
        """Do what the boot does: forget the old module and its state, load the module."""
        for gone in ("proc", "run"):
            shutil.rmtree(self.root / gone, ignore_errors=True)
        return self.run("usr/lib/nvidia-standin/load-kernel-module").stdout

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-IB", str(self.root / program), *arguments]
        environment = {**os.environ, "NVIDIA_STANDIN_ROOT": str(self.root)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def smi(self, *arguments: str) -> str:
        done = self.run("usr/bin/nvidia-smi", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Host]:
    def made(model: str, count: int, version: str = "580.126.20", module: str = OPEN) -> Host:
        host = Host(tmp_path, model, count)
        host.install(module, "libnvidia-ml1", "nvidia-driver-cuda", version=version)
        host.boot()
        return host

    return made


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[None]:
    yield
    for file in tmp_path.glob("run/*/*.pid"):
        os.kill(int(file.read_text()), signal.SIGTERM)


def test_the_table_is_the_published_one(make: Callable[..., Host]) -> None:
    stamp, _, table = make("H20", 1).smi().partition("\n")
    assert re.fullmatch(r"\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}       ", stamp)
    assert table == TABLE_580


@pytest.mark.parametrize(("version", "head"), [("590.48.01", HEAD_590), ("610.57.04", HEAD_610)])
def test_newer_branches_have_their_own_header(make: Callable[..., Host], version: str, head: str) -> None:
    assert head in make("H200", 8, version).smi()


def test_long_names_are_cut_as_published(make: Callable[..., Host]) -> None:
    assert "|   0  NVIDIA RTX PRO 6000 Blac...    Off |" in make("RTX-PRO-6000", 2).smi()


def test_the_query_of_the_facts_module(make: Callable[..., Host]) -> None:
    # Form of a published answer: "0, NVIDIA RTX A5000, GPU-30667114-4567-bc4a-029b-3375d117048e, 24564 MiB".
    host = make("H20", 4)
    fields = "index,name,uuid,memory.total,driver_version,compute_cap"
    lines = host.smi(f"--query-gpu={fields}", "--format=csv,noheader").splitlines()
    assert len(lines) == 4
    uuid = "GPU-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    assert re.fullmatch(f"2, NVIDIA H20, {uuid}, 97871 MiB, 580.126.20, 9.0", lines[2])
    head = host.smi(f"--query-gpu={fields}", "--format=csv").splitlines()[0]
    assert head == "index, name, uuid, memory.total [MiB], driver_version, compute_cap"
    assert (
        host.smi("--query-gpu=memory.total,memory.used", "--format=csv,noheader,nounits", "-i", "1")
        == "97871, 0\n"
    )


def test_memory_adds_up_as_published_for_rtx_pro_6000(make: Callable[..., Host]) -> None:
    # Published: 97887 MiB total, 10 MiB used, 97280 MiB free on branch 610.
    answer = make("RTX-PRO-6000", 1).smi("--query-gpu=memory.total,memory.free", "--format=csv,noheader")
    assert answer == "97887 MiB, 97290 MiB\n"


def test_names_of_fields_are_the_primary_ones(make: Callable[..., Host]) -> None:
    host = make("H20", 1)
    assert host.smi("--query-gpu=gpu_name,gpu_bus_id", "--format=csv").splitlines()[0] == "name, pci.bus_id"
    # Published answer with nothing running: "pid, process_name, used_gpu_memory [MiB]".
    answer = host.smi("--query-compute-apps=pid,process_name,used_memory", "--format=csv")
    assert answer == "pid, process_name, used_gpu_memory [MiB]\n"


def test_an_unknown_field_is_refused_as_published(make: Callable[..., Host]) -> None:
    done = make("H20", 1).run("usr/bin/nvidia-smi", "--query-gpu=name,cuda_version", "--format=csv")
    assert done.stdout == 'Field "cuda_version" is not a valid field to query.\n\n'
    assert done.returncode == 2


def test_list_and_uuids_stay_over_boots(make: Callable[..., Host]) -> None:
    host = make("H200", 8)
    before = host.smi("-L")
    assert re.match(r"GPU 0: NVIDIA H200 \(UUID: GPU-[0-9a-f-]{36}\)\n", before)
    host.boot()
    assert host.smi("-L") == before


def test_topology_as_published(make: Callable[..., Host]) -> None:
    lines = make("H20", 8).smi("topo", "-m").splitlines()
    assert lines[0].startswith("\x1b[4m\tGPU0\tGPU1\t")
    assert lines[0].endswith("GPU7\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m")
    assert lines[1] == "GPU0\t X " + "\tNV18" * 7 + "\t0-47,96-143\t0\t\tN/A"
    assert lines[8].endswith("\t X \t48-95,144-191\t1\t\tN/A")


def test_topology_without_switches(make: Callable[..., Host]) -> None:
    assert make("H20", 4).smi("topo", "-m").splitlines()[1].startswith("GPU0\t X \tNV6\tNV6\tNV6\t")


def test_links_as_published(make: Callable[..., Host]) -> None:
    """The stand-in's answer equals a real host's, line by line, except for the GPUs' names and ids."""
    published = (Path(__file__).parent / "data" / "accept" / "nvlink-8-a100.txt").read_text()
    told = make("A100-80GB", 8).smi("nvlink", "-s").expandtabs()
    identity = re.compile(r"GPU-[0-9a-f-]{36}")
    assert identity.sub("", told).splitlines() == identity.sub("", published).splitlines()
    assert "\t Link 17: 26.562 GB/s\n" in make("H20", 4).smi("nvlink", "--status")
    assert "Unable to retrieve NVLink information" in make("L40S", 2).smi("nvlink", "-s")


def test_without_the_module_nvidia_smi_fails(tmp_path: Path) -> None:
    host = Host(tmp_path, "H20", 4)
    host.install(OPEN, "libnvidia-ml1", "nvidia-driver-cuda", version="580.126.20")
    done = host.run("usr/bin/nvidia-smi")
    assert (done.stdout, done.returncode) == (NOT_LOADED, 9)


def test_an_upgrade_without_a_reboot_is_a_mismatch(make: Callable[..., Host]) -> None:
    host = make("H20", 4)
    host.install(OPEN, "libnvidia-ml1", "nvidia-driver-cuda", version="580.159.04")
    done = host.run("usr/bin/nvidia-smi")
    # Published: "NVML library version: 580.173" for 580.173.02.
    assert (
        done.stdout
        == "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.159\n"
    )
    assert done.returncode == 18
    host.boot()
    assert host.smi("--query-gpu=driver_version", "--format=csv,noheader", "-i", "0") == "580.159.04\n"


def test_proc_reads_as_published(make: Callable[..., Host]) -> None:
    host = make("H200", 8)
    version = (host.root / "proc/driver/nvidia/version").read_text().splitlines()
    # Published: "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  610.43.03  Release Build
    # (root@archlinux)" in one line.
    start = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.126.20  Release Build  (root@"
    assert version[0].startswith(start)
    assert version[1] == "GCC version:  gcc version 14.2.0 (Debian 14.2.0-19)"
    information = (host.root / "proc/driver/nvidia/gpus/0000:2d:00.0/information").read_text()
    assert information.startswith("Model: \t\t NVIDIA H200\nIRQ:   \t\t ")
    assert [
        line.split(":")[0].replace(" ", "_") for line in information.splitlines()
    ] == INFORMATION_KEYS.split()
    assert "Bus Location: \t 0000:2d:00.0\nDevice Minor: \t 1\n" in information


def test_the_proprietary_module_says_so(make: Callable[..., Host]) -> None:
    host = make("H20", 4, module="nvidia-kernel-dkms")
    text = (host.root / "proc/driver/nvidia/version").read_text()
    assert text.startswith("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.126.20  ")


def test_blackwell_needs_the_open_modules(make: Callable[..., Host]) -> None:
    host = make("B200", 8, module="nvidia-kernel-dkms")
    done = host.run("usr/bin/nvidia-smi")
    assert (done.stdout, done.returncode) == ("No devices were found\n", 6)


def test_a_host_without_gpus_loads_nothing(tmp_path: Path) -> None:
    host = Host(tmp_path, "H20", 0)
    host.install(OPEN, "libnvidia-ml1", "nvidia-driver-cuda", version="580.126.20")
    assert "No NVIDIA GPU found" in host.boot()
    assert host.run("usr/bin/nvidia-smi").returncode == 9


def fabric(host: Host) -> list[str]:
    lines = [" ".join(line.split()) for line in host.smi("-q", "-i", "0").splitlines()]
    return lines[lines.index("Fabric") + 1 :][:2]


@pytest.mark.usefixtures("daemons")
def test_the_fabric_manager_completes_the_fabric(make: Callable[..., Host]) -> None:
    host = make("H200", 8)
    host.install("nvidia-fabricmanager", version="580.126.20")
    assert fabric(host) == ["State : In Progress", "Status : N/A"]
    done = host.run("usr/bin/nv-fabricmanager", "-c", "/usr/share/nvidia/nvswitch/fabricmanager.cfg")
    assert done.returncode == 0
    assert done.stdout.startswith(
        "Connected to 1 node.\nSuccessfully configured all the available NVSwitches"
    )
    assert fabric(host) == ["State : Completed", "Status : Success"]


def test_a_fabric_manager_of_another_version_refuses(make: Callable[..., Host]) -> None:
    host = make("H200", 8)
    host.install("nvidia-fabricmanager", version="610.57.04")
    done = host.run("usr/bin/nv-fabricmanager", "-c", "x")
    assert done.returncode == 1
    assert done.stdout == (
        "fabric manager NVIDIA GPU driver interface version 610.57.04 don't match with driver version"
        " 580.126.20. Please update with matching NVIDIA driver package.\n"
    )


def test_without_nvswitches_the_fabric_manager_has_nothing_to_do(make: Callable[..., Host]) -> None:
    host = make("H20", 4)
    host.install("nvidia-fabricmanager", version="580.126.20")
    done = host.run("usr/bin/nv-fabricmanager", "-c", "x")
    assert done.returncode == 1
    assert done.stdout == (
        "request to query NVSwitch device information from NVSwitch driver failed with error:"
        "WARNING Nothing to do [NV_WARN_NOTHING_TO_DO]\n"
    )
    assert fabric(host) == ["State : N/A", "Status : N/A"]


@pytest.mark.usefixtures("daemons")
def test_the_persistence_daemon_turns_persistence_on_while_it_runs(make: Callable[..., Host]) -> None:
    host = make("H20", 4)
    host.install("nvidia-persistenced", version="580.126.20")
    query = ("--query-gpu=persistence_mode", "--format=csv,noheader", "-i", "0")
    assert host.smi(*query) == "Disabled\n"
    assert host.run("usr/bin/nvidia-persistenced", "--user", "nvpd").returncode == 0
    assert host.smi(*query) == "Enabled\n"
    pid_file = host.root / "run/nvidia-persistenced/nvidia-persistenced.pid"
    os.kill(int(pid_file.read_text()), signal.SIGTERM)
    until = time.monotonic() + 10
    while pid_file.exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert host.smi(*query) == "Disabled\n"


def test_the_persistence_daemon_refuses_without_a_matching_driver(make: Callable[..., Host]) -> None:
    host = make("H20", 4)
    host.install("nvidia-persistenced", version="580.159.04")
    done = host.run("usr/bin/nvidia-persistenced", "--user", "nvpd")
    assert done.returncode == 1
    assert done.stderr == "nvidia-persistenced failed to initialize. Check syslog for more details.\n"


@pytest.mark.parametrize(("version", "width"), [("580.126.20", 42), ("580.159.04", 55)])
def test_the_log_is_padded_as_published(make: Callable[..., Host], version: str, width: int) -> None:
    # 580.126 and before: keys in 42 columns; 580.159.04 (gpu-operator issue 2511): in 55.
    lines = make("H20", 1, version).smi("-q").splitlines()
    assert lines[1] == "==============NVSMI LOG=============="
    assert f"{'Driver Version':<{width}}: {version}" in lines
    assert f"{'Attached GPUs':<{width}}: 1" in lines
    assert f"{'        State':<{width}}: N/A" in lines


def test_one_section_of_the_log(make: Callable[..., Host]) -> None:
    log = make("H20", 1).smi("-q", "-d", "ECC")
    assert "    ECC Mode\n        Current                           : Enabled\n" in log
    assert "Fabric" not in log


def test_the_programs_run_on_python_3_9() -> None:
    # Debian 11's Python; newer syntax would only be noticed on a host.
    import ast

    for file in Path("lab/vendor/files").glob("*.py"):
        ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 9))

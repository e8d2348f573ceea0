#!/usr/bin/python3 -IB
"""nvidia-smi stand-in: the outputs people and programs read, for the GPUs the lab gave this host.

Formats were taken from published outputs of the real program, branches 580, 590 and 610 (see
lab/vendor/README.md): the default table, -L, -q [-d ...], --query-gpu=... --format=csv[,noheader][,nounits],
--query-compute-apps, topo -m, nvlink -s, -pm. Exit statuses follow its manual page. The GPUs never have work
to do: utilisation, memory in use, temperature, power are those of an idle GPU, and no process is ever listed.

Python 3.9, standard library only.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

# Where the lab's libnvidia-ml1 puts the library; NVIDIA_STANDIN_ROOT moves the root directory (tests).
sys.path.insert(0, os.environ.get("NVIDIA_STANDIN_ROOT", "") + "/usr/share/nvidia-standin/nvml")

import nvml_standin as nvml

COMPUTE_APP_FIELDS = {
    "timestamp": ("timestamp", ""),
    "gpu_name": ("gpu_name", ""),
    "name": ("gpu_name", ""),
    "gpu_bus_id": ("gpu_bus_id", ""),
    "gpu_serial": ("gpu_serial", ""),
    "gpu_uuid": ("gpu_uuid", ""),
    "pid": ("pid", ""),
    "process_name": ("process_name", ""),
    "used_gpu_memory": ("used_gpu_memory", "MiB"),
    "used_memory": ("used_gpu_memory", "MiB"),
}
ALIASES = {
    "gpu_name": "name",
    "gpu_uuid": "uuid",
    "gpu_bus_id": "pci.bus_id",
    "gpu_serial": "serial",
    "clocks.sm": "clocks.current.sm",
    "clocks.mem": "clocks.current.memory",
    "clocks.gr": "clocks.current.graphics",
}
LEGEND = """
Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  NODE = Connection traversing PCIe as well as the interconnect between PCIe Host Bridges within a NUMA node
  PHB  = Connection traversing PCIe as well as a PCIe Host Bridge (typically the CPU)
  PXB  = Connection traversing multiple PCIe bridges (without traversing the PCIe Host Bridge)
  PIX  = Connection traversing at most a single PCIe bridge
  NV#  = Connection traversing a bonded set of # NVLinks
"""


class UsageError(Exception):
    """The command line was wrong: exit status 2."""


def query_field(field: str, number: int, gpu: nvml.Gpu, driver: str, count: int) -> tuple[str, str] | None:
    """Return (value, unit) of one --query-gpu field, or None when there is no such field."""
    state, status = nvml.fabric()
    free = gpu.data["memory_mib"] - gpu.data["reserved_mib"]
    onoff = "Enabled" if nvml.persistence_enabled(gpu) else "Disabled"
    mig = "Disabled" if gpu.data["mig"] else "[N/A]"
    domain, bus, device = gpu.bus_id.split(":")
    values = {
        "timestamp": (time.strftime("%Y/%m/%d %H:%M:%S.000"), ""),
        "driver_version": (driver, ""),
        "count": (str(count), ""),
        "index": (str(number), ""),
        "name": (gpu.name, ""),
        "uuid": (gpu.uuid, ""),
        "serial": ("[N/A]", ""),
        "pci.bus_id": (gpu.bus_id, ""),
        "pci.domain": ("0x" + domain[4:], ""),
        "pci.bus": ("0x" + bus, ""),
        "pci.device": ("0x" + device.split(".")[0], ""),
        "pci.device_id": (gpu.pci["device"].upper().replace("X", "x") + "10DE", ""),
        "pci.sub_device_id": (gpu.pci["subsystem_device"].upper().replace("X", "x") + "10DE", ""),
        "vbios_version": ("[N/A]", ""),
        "compute_cap": (gpu.data["compute_capability"], ""),
        "compute_mode": ("Default", ""),
        "persistence_mode": (onoff, ""),
        "display_active": ("Disabled", ""),
        "display_mode": ("Enabled", ""),
        "accounting.mode": ("Disabled", ""),
        "pstate": ("P0", ""),
        "memory.total": (str(gpu.data["memory_mib"]), "MiB"),
        "memory.reserved": (str(gpu.data["reserved_mib"]), "MiB"),
        "memory.used": ("0", "MiB"),
        "memory.free": (str(free), "MiB"),
        "utilization.gpu": ("0", "%"),
        "utilization.memory": ("0", "%"),
        "temperature.gpu": ("30", ""),
        "power.draw": (f"{gpu.data['idle_power_w']:.2f}", "W"),
        "power.limit": (f"{gpu.data['power_limit_w']:.2f}", "W"),
        "power.default_limit": (f"{gpu.data['power_limit_w']:.2f}", "W"),
        "power.max_limit": (f"{gpu.data['power_limit_w']:.2f}", "W"),
        "enforced.power.limit": (f"{gpu.data['power_limit_w']:.2f}", "W"),
        "clocks.current.sm": ("345", "MHz"),
        "clocks.current.graphics": ("345", "MHz"),
        "clocks.current.memory": ("2619", "MHz"),
        "ecc.mode.current": ("Enabled", ""),
        "ecc.mode.pending": ("Enabled", ""),
        "ecc.errors.corrected.volatile.total": ("0", ""),
        "ecc.errors.uncorrected.volatile.total": ("0", ""),
        "ecc.errors.corrected.aggregate.total": ("0", ""),
        "ecc.errors.uncorrected.aggregate.total": ("0", ""),
        "mig.mode.current": (mig, ""),
        "mig.mode.pending": (mig, ""),
        "pcie.link.gen.current": ("5", ""),
        "pcie.link.gen.max": ("5", ""),
        "pcie.link.width.current": ("16", ""),
        "pcie.link.width.max": ("16", ""),
        "fabric.state": (state, ""),
        "fabric.status": (status, ""),
        "addressing_mode": ("HMM", ""),
    }
    return values.get(field)


def csv_lines(
    header: list[tuple[str, str]], rows: list[list[tuple[str, str]]], options: list[str]
) -> list[str]:
    """Return the lines of a CSV answer: cells are (value, unit), header cells (name, unit)."""
    lines = []
    if "noheader" not in options:
        lines.append(", ".join(f"{name} [{unit}]" if unit else name for name, unit in header))
    for row in rows:
        units = "nounits" not in options
        lines.append(", ".join(f"{value} {unit}" if unit and units else value for value, unit in row))
    return lines


def query_gpus(
    fields: list[str], options: list[str], selected: list[tuple[int, nvml.Gpu]], driver: str, count: int
) -> list[str]:
    """Answer --query-gpu."""
    names = [ALIASES.get(field, field) for field in fields]
    rows = []
    for number, gpu in selected:
        row = []
        for given, name in zip(fields, names):  # noqa: B905  # strict= is not in Python 3.9
            cell = query_field(name, number, gpu, driver, count)
            if cell is None:
                raise UsageError(f'Field "{given}" is not a valid field to query.\n')
            row.append(cell)
        rows.append(row)
    header = [(name, unit) for name, (_, unit) in zip(names, rows[0])]  # noqa: B905  # as above
    return csv_lines(header, rows, options)


def query_compute_apps(fields: list[str], options: list[str]) -> list[str]:
    """Answer --query-compute-apps: no process ever uses these GPUs."""
    for field in fields:
        if field not in COMPUTE_APP_FIELDS:
            raise UsageError(f'Field "{field}" is not a valid field to query.\n')
    return csv_lines([COMPUTE_APP_FIELDS[field] for field in fields], [], options)


def table(selected: list[tuple[int, nvml.Gpu]], driver: str) -> list[str]:
    """Return the default table."""
    cuda = nvml.cuda_version(driver)
    border = "+" + "-" * 41 + "+" + "-" * 24 + "+" + "-" * 22 + "+"
    if int(driver.split(".")[0]) >= 610:  # the branch that renamed both fields
        head = f"| NVIDIA-SMI {driver:<23}KMD Version: {driver:<14}CUDA UMD Version: {cuda:<9}|"
    else:
        head = f"| NVIDIA-SMI {driver:<23}Driver Version: {driver:<15}CUDA Version: {cuda:<9}|"
    lines = [
        time.strftime("%a %b %e %H:%M:%S %Y") + " " * 7,
        "+" + "-" * 89 + "+",
        head,
        border,
        "| GPU  Name                 Persistence-M | Bus-Id          Disp.A | Volatile Uncorr. ECC |",
        "| Fan  Temp   Perf          Pwr:Usage/Cap |           Memory-Usage | GPU-Util  Compute M. |",
        "|                                         |                        |               MIG M. |",
        "|" + "=" * 41 + "+" + "=" * 24 + "+" + "=" * 22 + "|",
    ]
    for number, gpu in selected:
        name = gpu.name if len(gpu.name) <= 27 else gpu.name[:24] + "..."
        mode = "On" if nvml.persistence_enabled(gpu) else "Off"
        draw, limit = f"{gpu.data['idle_power_w']}W", f"{gpu.data['power_limit_w']}W"
        total = f"{gpu.data['memory_mib']}MiB"
        mig = "Disabled" if gpu.data["mig"] else "N/A"
        lines += [
            f"|{number:>4}  {name:<30} {mode:<3} |   {gpu.bus_id} Off |{0:>21} |",
            f"| N/A   30C    P0{draw:>16} / {limit:>5} |{'0MiB':>11} / {total:>9} |      0%      Default |",
            f"|{'':41}|{'':24}|{mig:>21} |",
            border,
        ]
    lines += [
        "",
        "+" + "-" * 89 + "+",
        "| Processes:                                                                              |",
        "|  GPU   GI   CI              PID   Type   Process name                        GPU Memory |",
        "|        ID   ID                                                               Usage      |",
        "|" + "=" * 89 + "|",
        "|  No running processes found                                                             |",
        "+" + "-" * 89 + "+",
    ]
    return lines


def log_sections(number: int, gpu: nvml.Gpu, driver: str) -> list[tuple[str, int, str, str | None]]:
    """Return (section, depth, key, value) of one GPU's part of nvidia-smi -q; value None opens a group.

    The section is the name -d knows, or "" for what only the full log shows.
    """
    state, status = nvml.fabric()
    done = state == "Completed"
    data = gpu.data
    mig = "Disabled" if data["mig"] else "N/A"
    rows: list[tuple[str, int, str, str | None]] = [
        ("", 1, "Product Name", gpu.name),
        ("", 1, "Product Brand", "NVIDIA"),
        ("", 1, "Product Architecture", data["architecture"]),
        ("", 1, "Display Mode", "Requested functionality has been deprecated"),
        ("", 1, "Display Attached", "No"),
        ("", 1, "Display Active", "Disabled"),
        ("", 1, "Persistence Mode", "Enabled" if nvml.persistence_enabled(gpu) else "Disabled"),
        ("", 1, "Addressing Mode", "HMM"),
        ("", 1, "MIG Mode", None),
        ("", 2, "Current", mig),
        ("", 2, "Pending", mig),
        ("", 1, "Serial Number", "N/A"),
        ("", 1, "GPU UUID", gpu.uuid),
        ("", 1, "Minor Number", str(gpu.minor)),
        ("", 1, "MultiGPU Board", "No"),
        ("", 1, "Platform Info", None),
        ("", 2, "Module Id", str(number + 1)),
        ("", 2, "GPU Fabric GUID", f"0x{number + 1:016x}" if done else "N/A"),
        ("", 1, "GPU Recovery Action", "None"),
        ("", 1, "GSP Firmware Version", driver),
        ("", 1, "PCI", None),
        ("", 2, "Bus", "0x" + gpu.bus_id.split(":")[1]),
        ("", 2, "Device", "0x" + gpu.bus_id.split(":")[2][:2]),
        ("", 2, "Domain", "0x" + gpu.bus_id.split(":")[0][4:]),
        ("", 2, "Device Id", gpu.pci["device"].upper().replace("X", "x") + "10DE"),
        ("", 2, "Bus Id", gpu.bus_id),
        ("", 2, "Sub System Id", gpu.pci["subsystem_device"].upper().replace("X", "x") + "10DE"),
        ("", 1, "Fan Speed", "N/A"),
        ("PERFORMANCE", 1, "Performance State", "P0"),
        ("MEMORY", 1, "FB Memory Usage", None),
        ("MEMORY", 2, "Total", f"{data['memory_mib']} MiB"),
        ("MEMORY", 2, "Reserved", f"{data['reserved_mib']} MiB"),
        ("MEMORY", 2, "Used", "0 MiB"),
        ("MEMORY", 2, "Free", f"{data['memory_mib'] - data['reserved_mib']} MiB"),
        ("COMPUTE", 1, "Compute Mode", "Default"),
        ("UTILIZATION", 1, "Utilization", None),
        ("UTILIZATION", 2, "GPU", "0 %"),
        ("UTILIZATION", 2, "Memory", "0 %"),
        ("ECC", 1, "ECC Mode", None),
        ("ECC", 2, "Current", "Enabled"),
        ("ECC", 2, "Pending", "Enabled"),
        ("ECC", 1, "ECC Errors", None),
    ]
    for period in ("Volatile", "Aggregate"):
        rows.append(("ECC", 2, period, None))
        rows += [
            ("ECC", 3, key, "0")
            for key in (
                "SRAM Correctable",
                "SRAM Uncorrectable Parity",
                "SRAM Uncorrectable SEC-DED",
                "DRAM Correctable",
                "DRAM Uncorrectable",
            )
        ]
    health = [
        "Summary",
        "Bandwidth",
        "Route Recovery in progress",
        "Route Unhealthy",
        "Access Timeout Recovery",
    ]
    health.append("Incorrect Configuration")
    if _wide(driver):
        health.append("Partition Assigned")
    good = {"Summary": "Healthy", "Bandwidth": "Full", "Incorrect Configuration": "None"}
    rows += [
        ("TEMPERATURE", 1, "Temperature", None),
        ("TEMPERATURE", 2, "GPU Current Temp", "30 C"),
        ("POWER", 1, "GPU Power Readings", None),
        ("POWER", 2, "Average Power Draw", f"{data['idle_power_w']:.2f} W"),
        ("POWER", 2, "Current Power Limit", f"{data['power_limit_w']:.2f} W"),
        ("POWER", 2, "Default Power Limit", f"{data['power_limit_w']:.2f} W"),
        ("", 1, "Fabric", None),
        ("", 2, "State", state),
        ("", 2, "Status", status),
        ("", 2, "CliqueId", "0" if done else "N/A"),
        ("", 2, "ClusterUUID", "00000000-0000-0000-0000-000000000000" if done else "N/A"),
        ("", 2, "Health", None),
        *[("", 3, key, good.get(key, "False") if done else "N/A") for key in health],
        ("PIDS", 1, "Processes", "None"),
    ]
    return rows


def log(selected: list[tuple[int, nvml.Gpu]], driver: str, count: int, wanted: set[str]) -> list[str]:
    """Return the lines of nvidia-smi -q, of the sections `wanted` only when that is not empty."""
    width = 55 if _wide(driver) else 42
    lines = [
        "",
        "==============NVSMI LOG==============",
        "",
        f"{'Timestamp':<{width}}: {time.strftime('%a %b %e %H:%M:%S %Y')}",
        f"{'Driver Version':<{width}}: {driver}",
        f"{'CUDA Version':<{width}}: {nvml.cuda_version(driver)}",
        "",
        f"{'Attached GPUs':<{width}}: {count}",
    ]
    for number, gpu in selected:
        lines.append(f"GPU {gpu.bus_id}")
        for section, depth, key, value in log_sections(number, gpu, driver):
            if wanted and section not in wanted:
                continue
            text = "    " * depth + key
            lines.append(text if value is None else f"{text:<{width}}: {value}")
        lines.append("")
    return lines


def topology(gpus: list[nvml.Gpu]) -> list[str]:
    """Return the lines of nvidia-smi topo -m."""
    count = len(gpus)
    switched = bool(nvml.nvswitches())
    titles = [f"GPU{number}" for number in range(count)] + ["CPU Affinity", "NUMA Affinity", "GPU NUMA ID"]
    lines = ["\x1b[4m\t" + "\t".join(titles) + "\x1b[0m"]
    for number, gpu in enumerate(gpus):
        row = []
        for other_number, other in enumerate(gpus):
            if number == other_number:
                row.append(" X ")
            elif gpu.data["nvlinks"]:
                # Through NVSwitches every pair has all links; on a 4-GPU board each GPU splits them among
                # three.
                links = gpu.data["nvlinks"] if switched else gpu.data["nvlinks"] // max(count - 1, 1)
                row.append(f"NV{links}")
            else:
                row.append("NODE" if gpu.numa_node == other.numa_node else "SYS")
        affinity = gpu.pci.get("local_cpulist", "")
        lines.append("\t".join([f"GPU{number}", *row, affinity, str(gpu.numa_node), "", "N/A"]))
    return lines + LEGEND.splitlines()


def link_status(selected: list[tuple[int, nvml.Gpu]]) -> list[str]:
    """Return the lines of nvidia-smi nvlink -s: every link up, at the speed of the GPU's generation."""
    lines = []
    for number, gpu in selected:
        lines.append(f"GPU {number}: {gpu.name} (UUID: {gpu.uuid})")
        if gpu.data["nvlinks"]:
            speed = gpu.data["nvlink_speed"]
            lines += [f"\t Link {link}: {speed} GB/s" for link in range(gpu.data["nvlinks"])]
        else:
            lines.append("\t NVML: Unable to retrieve NVLink information: Not Supported")
    return lines


def set_persistence(selected: list[tuple[int, nvml.Gpu]], value: str) -> list[str]:
    """Do nvidia-smi -pm: return the lines it prints."""
    if value not in ("0", "1", "DISABLED", "ENABLED"):
        raise UsageError(f"Option '-pm' has an invalid value: {value}")
    if os.geteuid() != 0:
        raise nvml.NvmlError("Insufficient permissions to change persistence mode. Please run as root.", 4)
    word = "Enabled" if value in ("1", "ENABLED") else "Disabled"
    lines = []
    nvml.STATE.mkdir(parents=True, exist_ok=True)
    for _, gpu in selected:
        mark = nvml.STATE / ("persistence-" + gpu.address)
        if nvml.persistence_enabled(gpu) == (word == "Enabled"):
            lines.append(f"Persistence mode is already {word} for GPU {gpu.bus_id}.")
        else:
            lines.append(f"{word} persistence mode for GPU {gpu.bus_id}.")
        if word == "Enabled":
            mark.touch()
        elif mark.exists():
            mark.unlink()
    return [*lines, "All done."]


def parse(arguments: list[str]) -> dict[str, Any]:
    """Return the command line as a dictionary; long options with "=" and short ones with the next word."""
    options: dict[str, Any] = {}
    words = list(arguments)
    flags = {
        "-L": "list",
        "--list-gpus": "list",
        "-q": "log",
        "--query": "log",
        "-h": "help",
        "--help": "help",
    }
    valued = {
        "-d": "display",
        "--display": "display",
        "-i": "id",
        "--id": "id",
        "--format": "format",
        "--query-gpu": "query-gpu",
        "--query-compute-apps": "query-compute-apps",
        "-pm": "persistence",
        "--persistence-mode": "persistence",
    }
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if word in flags:
            options[flags[word]] = True
        elif name in valued:
            if not equals:
                if not words:
                    raise UsageError(f"Option {word} is missing its value")
                value = words.pop(0)
            options[valued[name]] = value
        elif word == "--version":
            options["version"] = True
        elif word in ("topo", "nvlink"):
            options[word] = words
            break
        else:
            raise UsageError("Invalid combination of input arguments. Please run 'nvidia-smi -h' for help.\n")
    return options


def select(gpus: list[nvml.Gpu], wanted: str | None) -> list[tuple[int, nvml.Gpu]]:
    """Return (index, gpu) of the GPUs that -i names (index, UUID or bus id), all of them without -i."""
    numbered = list(enumerate(gpus))
    if wanted is None:
        return numbered
    names = [name.strip() for name in wanted.split(",")]
    return [
        (number, gpu)
        for number, gpu in numbered
        if {str(number), gpu.uuid, gpu.bus_id, gpu.bus_id[4:], gpu.address} & {*names, *map(str.upper, names)}
    ]


def answer(options: dict[str, Any]) -> list[str]:
    """Return the lines of the answer. Raises UsageError or NvmlError."""
    if "help" in options:
        return (__doc__ or "").splitlines()
    driver = nvml.initialise()
    gpus = nvml.attached_gpus()
    selected = select(gpus, options.get("id"))
    if not selected:
        raise nvml.NvmlError("No devices were found", 6)
    if "version" in options:
        return [
            f"NVIDIA-SMI version  : {driver}",
            f"NVML version        : {'.'.join(driver.split('.')[:2])}",
            f"DRIVER version      : {driver}",
            f"CUDA Version        : {nvml.cuda_version(driver)}",
        ]
    if "topo" in options:
        if options["topo"] not in (["-m"], ["--matrix"]):
            raise UsageError(
                "Invalid combination of input arguments. Please run 'nvidia-smi topo -h' for help.\n"
            )
        return topology(gpus)
    if "nvlink" in options:
        if options["nvlink"] not in (["-s"], ["--status"]):
            raise UsageError(
                "Invalid combination of input arguments. Please run 'nvidia-smi nvlink -h' for help.\n"
            )
        return link_status(selected)
    if "list" in options:
        return [f"GPU {number}: {gpu.name} (UUID: {gpu.uuid})" for number, gpu in selected]
    if "persistence" in options:
        return set_persistence(selected, options["persistence"])
    if "query-gpu" in options or "query-compute-apps" in options:
        formats = [part.strip() for part in options.get("format", "").split(",")]
        if "csv" not in formats:
            raise UsageError("\"--format=\" switch is missing. Please run 'nvidia-smi -h' for help.\n")
        if "query-gpu" in options:
            fields = [field.strip() for field in options["query-gpu"].split(",")]
            return query_gpus(fields, formats, selected, driver, len(gpus))
        return query_compute_apps([f.strip() for f in options["query-compute-apps"].split(",")], formats)
    if "log" in options:
        wanted = {part.strip().upper() for part in options.get("display", "").split(",") if part}
        return log(selected, driver, len(gpus), wanted)
    return table(selected, driver)


def main(arguments: list[str]) -> int:
    """Run nvidia-smi and return its exit status."""
    try:
        print("\n".join(answer(parse(arguments))))
    except UsageError as error:
        print(error)
        return 2
    except nvml.NvmlError as error:
        print(error.text)
        return error.code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def _wide(driver: str) -> bool:
    """Say whether nvidia-smi -q of this version pads its keys to 55 columns (580.159 and later) or to 42."""
    return tuple(int(part) for part in driver.split(".")[:2]) >= (580, 159) and not driver.startswith("590.4")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Exact remedies: the engine's own advice, the file, the package, the GPU."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from minimax_metal.host.engine.diagnosis.lines import Line
from minimax_metal.host.engine.diagnosis.reading import Finding, last_work, loading_weights

PACKAGES: Final[dict[str, str]] = {
    "libnuma.so": "libnuma1",
    "libcuda.so": "the driver's own libraries (libcuda1 / libnvidia-compute)",
    "libnvidia-ml.so": "the driver's own libraries (libnvidia-ml1 / libnvidia-compute)",
    "libcudart.so": "cuda-cudart",
    "libnvrtc.so": "cuda-nvrtc",
    "libcublas": "libcublas (cuda toolkit)",
    "libcudnn": "nvidia-cudnn, from the engine's lock",
    "libnccl.so": "nvidia-nccl, from the engine's lock",
    "libcusparse": "libcusparse (cuda toolkit)",
    "libcufile.so": "nvidia-cufile, from the engine's lock",
    "libibverbs.so": "libibverbs1",
    "librdmacm.so": "librdmacm1",
    "libmlx5.so": "ibverbs-providers",
    "libgomp.so": "libgomp1",
    "libstdc++.so": "libstdc++6",
    "libGL.so": "libgl1",
    "libglib-2.0.so": "libglib2.0-0",
    "libsndfile.so": "libsndfile1",
    "libavutil.so": "ffmpeg",
    "libavcodec.so": "ffmpeg",
    "libpython3": "libpython3-dev, or an engine environment with uv's own Python",
    "libsqlite3.so": "libsqlite3-0",
    "libtbb": "libtbb12",
    "liburing.so": "liburing2",
    "libssl.so": "libssl3",
}
"""Debian's and Ubuntu's package of a library, by the start of its name."""

LOWER: Final = "lower metal_mem_fraction_static, or use a smaller format or more GPUs"
RAISE: Final = (
    "raise metal_mem_fraction_static: no memory is left for the KV cache after the weights; if 0.9 "
    "is not enough, use a smaller format or more GPUs"
)
WEIGHTS: Final = (
    "the weights don't fit: use more GPUs or a smaller format; nvidia-smi shows whether another process "
    "holds memory"
)
OTHERS: Final = (
    "another process uses that GPU's memory: nvidia-smi shows which; stop it, or reset the GPU if "
    "that process no longer exists"
)

_MORE = r"increas(?:e|ing)|rais(?:e|ing)|enlarg(?:e|ing)|larger|higher|greater|bigger"
_LESS = r"decreas(?:e|ing)|reduc(?:e|ing)|lower(?:ing)?|smaller|shrink"
_FLAG = r"(--[a-z][a-z0-9-]{2,60}|mem_fraction_static|[a-z]{3,20}(?:_[a-z]{2,20}){1,5})"
_VERB_FLAG: Final = re.compile(rf"\b(?:({_MORE})|({_LESS}))\b[^.;\n]{{0,24}}?{_FLAG}", re.IGNORECASE)
_FLAG_VERB: Final = re.compile(rf"{_FLAG}[^.;\n]{{0,30}}?\b(?:({_MORE})|({_LESS}))\b", re.IGNORECASE)
SETTINGS: Final[dict[str, str]] = {
    "--mem-fraction-static": "metal_mem_fraction_static",
    "--max-running-requests": "metal_max_running_requests",
    "--max-queued-requests": "metal_max_queued_requests",
    "--kv-cache-dtype": "metal_kv_cache_dtype",
    "--tp-size": "metal_tp_size",
    "--tensor-parallel-size": "metal_tp_size",
    "--tp": "metal_tp_size",
    "--ep-size": "metal_ep_size",
    "--ep": "metal_ep_size",
}
"""The engine's options that are settings of this project; the others belong in metal_engine_extra_args."""
_OTHER_PROCESS: Final = re.compile(r"Process \d{1,10} has (\d{1,6}(?:\.\d{1,3})?) GiB memory in use")
_THIS_PROCESS: Final = re.compile(r"this process has (\d{1,6}(?:\.\d{1,3})?) GiB memory in use")
_FILE: Final = re.compile(
    r"(/[^\s'\",:]{1,300}\.(?:safetensors|bin|pt|pth|json|model|jinja|py)\b|\b[\w.-]{1,120}\.safetensors\b)"
)
_CUDA: Final = re.compile(r"found version (\d{4,6})\)")
_PORT: Final = re.compile(r"(?:port:? |:|, )(\d{2,5})\b")


def directions(text: str) -> list[tuple[str, str]]:
    """Return the engine's own advice: (``raise`` or ``lower``, option) in its order."""
    found: list[tuple[int, str, str]] = []
    for match in _VERB_FLAG.finditer(text):
        found.append((match.start(), "raise" if match[1] else "lower", match[3]))
    taken = {flag for _, _, flag in found}
    for match in _FLAG_VERB.finditer(text):
        if match[1] not in taken:
            found.append((match.start(), "raise" if match[2] else "lower", match[1]))
    told: dict[str, str] = {}
    for _, verb, flag in sorted(found):
        name = flag if flag.startswith("--") else "--" + flag.replace("_", "-")
        told.setdefault(name, verb)
    return [(verb, name) for name, verb in told.items()]


def spell(advice: Sequence[tuple[str, str]]) -> str:
    """Return that advice in this project's settings."""
    return ", or ".join(
        f"{verb} {SETTINGS.get(name, f'{name} in metal_engine_extra_args')}" for verb, name in advice[:3]
    )


def exact(finding: Finding, lines: Sequence[Line], port: int | None) -> tuple[str, str, str]:
    """Return code, message and remedy of a finding, with details from the lines around it."""
    code, words, remedy = finding.rule.code, finding.words, finding.rule.remedy
    text = finding.line.text
    if code == "memory":
        code, remedy = _memory(finding, lines, remedy)
    elif code == "library" and (name := finding.groups.get("file")):
        package = next((package for start, package in PACKAGES.items() if name.startswith(start)), None)
        remedy = f"the shared library {name} is missing: " + (
            f"install {package}" if package else "install the package that contains it (apt-file search)"
        )
    elif code == "build" and (header := finding.groups.get("header")):
        remedy = f"the header {header} is missing; {remedy}"
    elif code == "build" and (name := finding.groups.get("library")):
        remedy = f"the linker can't find lib{name.removeprefix('-l')}.so; {remedy}"
    elif code in {"weights", "config"}:
        near = [line.text for line in lines[max(0, finding.at - 12) : finding.at + 4]]
        names = [
            found[1]
            for line in reversed(near)
            for found in _FILE.finditer(line)
            if not found[1].endswith(".py")
        ]
        if names and names[0] not in words:
            words = f"{words} ({names[0]})"
    elif code == "driver-old" and (version := _CUDA.search(words)):
        number = int(version[1])
        words = f"{words}: the driver supports CUDA {number // 1000}.{number % 1000 // 10}"
    elif code == "watchdog":
        work = last_work(lines, finding.at)
        words += f"; before it: {work}" if work else ""
    elif code == "port":
        seen = _PORT.search(text)
        if seen and port is not None and int(seen[1]) != port:
            code = "internal-port"
    return code, words, remedy


def _memory(finding: Finding, lines: Sequence[Line], remedy: str) -> tuple[str, str]:
    text = " ".join(line.text for line in lines[finding.at : finding.at + 2])
    mine = _THIS_PROCESS.search(text)
    others = [float(found[1]) for found in _OTHER_PROCESS.finditer(text)]
    if others and (mine is None or max(others) > float(mine[1])):
        return "gpu-memory", OTHERS
    advice = directions(finding.line.text)
    if advice:
        told = spell(advice)
        if advice[0][1] == "--mem-fraction-static":
            rest = f", or {spell(advice[1:])}" if advice[1:] else ""
            return "memory", (RAISE if advice[0][0] == "raise" else LOWER) + rest
        return "memory", told
    if finding.rule.remedy == LOWER and loading_weights(lines, finding.at):
        return "memory", WEIGHTS
    return "memory", remedy

"""List what an engine's release says when it fails to start, and which rule of ours reads it.

    tools/engine_messages.py SITE-PACKAGES > tests/unit/data/messages/sglang-0.5.23.tsv
    tools/engine_messages.py SITE-PACKAGES --against tests/unit/data/messages/sglang-0.5.23.tsv

Reads the sources and libraries of an installed engine without importing them: ``raise``, ``assert``,
``sys.exit`` and ``logger.error``/``critical`` of the Python on the start path, and the words of CUDA's errors
and NCCL's warnings in the libraries. A row: package, file, kind of exception, message (``{}`` where a value
stands), and the kind that our rules make of it; ``generic`` where they leave it to the exception's own words.
``tests/unit/data/messages/decisions.toml`` says for each place why that will do.

Exit status: 1 with ``--against`` when the release has messages that the listing has not; they are printed.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from minimax_metal.host.engine.diagnosis.lines import read_line
from minimax_metal.host.engine.diagnosis.reading import find, place_of

START_PATH: Final[dict[str, tuple[str, ...]]] = {
    "sglang": (
        "launch_server.py", "cli", "srt/server_args.py", "srt/arg_groups", "srt/environ.py",
        "srt/entrypoints/engine.py",
        "srt/entrypoints/http_server.py", "srt/entrypoints/ssl_utils.py", "srt/managers/scheduler.py",
        "srt/managers/tokenizer_manager.py", "srt/managers/tp_worker.py", "srt/managers/utils.py",
        "srt/managers/data_parallel_controller.py", "srt/managers/detokenizer_manager.py",
        "srt/managers/multi_tokenizer_mixin.py", "srt/model_executor", "srt/model_loader",
        "srt/configs/model_config.py",
        "srt/configs/load_config.py", "srt/configs/device_config.py", "srt/distributed",
        "srt/mem_cache/memory_pool.py",
        "srt/mem_cache/kv_cache_configurator.py", "srt/layers/quantization", "srt/layers/moe",
        "srt/layers/attention", "srt/layers/linear.py", "srt/layers/dp_attention.py", "srt/utils",
        "srt/platforms",
        "srt/plugins", "srt/parser", "srt/function_call/function_call_parser.py", "srt/speculative",
        "srt/models/registry.py", "srt/models/minimax_m2.py", "srt/models/minimax_m3.py", "srt/tokenizer",
    ),
    "torch": (
        "cuda/__init__.py", "cuda/memory.py", "distributed/distributed_c10d.py",
        "distributed/rendezvous.py",
        "utils/cpp_extension.py",
    ),
    "flashinfer": (
        "jit/core.py", "jit/cpp_ext.py", "jit/cubin_loader.py", "jit/env.py", "jit/utils.py",
        "jit/__init__.py",
        "jit/gemm/core.py", "jit/fused_moe.py", "artifacts.py", "comm/cuda_ipc.py", "comm/trtllm_ar.py",
        "comm/mnnvl.py", "comm/allreduce.py", "utils.py", "compilation_context.py",
    ),
    "sgl_kernel": ("__init__.py", "load_utils.py", "utils.py"),
}  # fmt: skip
EXCLUDED: Final = re.compile(
    # Other hardware, other models, other ways to load and to move weights: no MiniMax start uses them.
    r"hardware_backend|/(?:npu|hip|xpu|musa|cpu|ascend|rocm|mlx)|test|expert_pack|kimi|gguf|mooncake|mscclpp|"
    r"modelslim|deepseek|dsv4|/dsa|mamba|linear|nsa|mla|bench|uno_|modelopt|bitsandbytes|remote_instance|"
    r"weight_checker|torchao|pyspy_dump|encoder_free|lmcache|hf3fs|dllm|domino|ngram|frozen_kv"
)
LIBRARIES: Final = (
    ("cuda", "nvidia/cu13/lib/libcudart.so.13", rb"[a-z][A-Za-z0-9 ,.'()/-]{12,120}"),
    ("nccl", "nvidia/nccl/lib/libnccl.so.2", rb"[A-Z][\x20-\x7e]{14,180}"),
)
_CUDA_WORDS: Final = re.compile(
    r"\b(?:error|invalid|not (?:supported|permitted|initialized|ready|found|available)|failed|failure|"
    r"unsupported|insufficient|busy|illegal|misaligned|unable|too (?:many|old|large)|mismatch|exceed|"
    r"timed out|lost|no )\b"
)
_NCCL_WORDS: Final = re.compile(
    r"(?:[Ff]ailed (?:to|with|:)|[Uu]nable to|[Cc]ould not|[Mm]ismatch|timed out|[Nn]o .{1,30} found)"
)
LONGEST: Final = 300


@dataclass(frozen=True, slots=True, order=True)
class Message:
    """One message at one place."""

    package: str
    file: str
    kind: str
    text: str

    @property
    def decision(self) -> str:
        """Return our rules' code for the line in a log."""
        example = self.text.replace("{}", "8")
        line = f"{self.kind}: {example}" if self.kind[:1].isupper() else example
        line = f"CUDA error: {example}" if self.package == "cuda" else line
        line = f"gpu01:7:7 [0] NCCL WARN {example}" if self.package == "nccl" else line
        found = find(read_line(line), 0)
        if found is not None:
            return found.rule.code
        return place_of(f"/x/site-packages/{self.package}/{self.file}") or "generic"

    @property
    def row(self) -> str:
        """Return its row in the listing."""
        return "\t".join((self.package, self.file, self.kind, self.text, self.decision))


def template(node: ast.expr) -> str | None:
    """Return the text of a string expression with ``{}`` for values; None if it has no words."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        parts = [template(value) if isinstance(value, ast.Constant) else "{}" for value in node.values]
        return "".join(part or "" for part in parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = template(node.left), template(node.right)
        return None if left is None and right is None else f"{left or '{}'}{right or '{}'}"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
        text = template(node.left)
        return None if text is None else re.sub(r"%[sdrif]", "{}", text)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        text = template(node.func.value)
        return None if text is None else re.sub(r"\{[^{}]{0,40}\}", "{}", text)
    return None


def name_of(node: ast.expr) -> str:
    """Return ``ValueError`` for ``ValueError`` and for ``errors.ValueError``."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def of_source(source: str) -> Iterator[tuple[str, str]]:
    """Yield kind and text of the messages in a Python file."""
    for node in ast.walk(ast.parse(source)):
        kind, words = "", None
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            kind, words = name_of(node.exc.func), template(node.exc.args[0])
        elif isinstance(node, ast.Assert) and node.msg is not None:
            kind, words = "AssertionError", template(node.msg)
        elif isinstance(node, ast.Call) and node.args:
            name = name_of(node.func)
            if name in {"exit", "_exit"}:
                kind, words = "exit", template(node.args[0])
            elif name in {"error", "critical"} and isinstance(node.func, ast.Attribute):
                kind, words = "log", template(node.args[0])
        if words and re.search(r"[A-Za-z]{3}", words):
            yield kind or "Exception", " ".join(words.split())[:LONGEST]


def of_library(path: Path, pattern: bytes) -> Iterator[str]:
    """Words in a library that indicate a failure."""
    wanted = _CUDA_WORDS if b"[a-z]" in pattern[:5] else _NCCL_WORDS
    data = path.read_bytes() if path.stat().st_size < (8 << 20) else _text_of(path)
    for found in set(re.findall(pattern, data)):
        text = found.decode("ascii", "replace")
        if wanted.search(text) and " " in text and not re.search(r"[{}<>;]|::|\\|_Z", text):
            yield re.sub(r"%[-0-9.]{0,4}(?:l{0,2}[duxs]|zu|p|c|f|s|d)", "{}", " ".join(text.split()))[
                :LONGEST
            ]


def _text_of(path: Path) -> bytes:
    """Return the read-only text of a library of hundreds of MB, most of which is code for GPUs."""
    kept = []
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            if block.count(b"WARN") + block.count(b"ailed") > 20:
                kept.append(block)
    return b"".join(kept)


def collect(site: Path) -> list[Message]:
    """Return the messages of an installed engine's start path."""
    found: set[Message] = set()
    for package, places in START_PATH.items():
        for place in places:
            path = site / package / place
            files = sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.exists() else []
            for file in files:
                name = str(file.relative_to(site / package))
                if EXCLUDED.search(name) and name != "srt/layers/linear.py":
                    continue
                try:
                    source = file.read_text(encoding="utf-8")
                    found.update(Message(package, name, kind, text) for kind, text in of_source(source))
                except (OSError, SyntaxError, ValueError) as error:
                    print(f"engine_messages: {file}: {error}", file=sys.stderr)
    for package, relative, pattern in LIBRARIES:
        path = site / relative
        if path.exists():
            found.update(Message(package, path.name, "native", text) for text in of_library(path, pattern))
    return sorted(found)


def listed(path: Path) -> set[tuple[str, str, str]]:
    """Return package, kind and text of a listing's rows; files may move without a new decision."""
    rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if "\t" in line)
    return {(row[0], row[2], row[3]) for row in rows}


def main(argv: Sequence[str]) -> int:
    """Print the listing, or what it lacks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("site", type=Path, help="the engine environment's site-packages")
    parser.add_argument(
        "--against", type=Path, help="print only messages missing in this listing that no rule reads"
    )
    arguments = parser.parse_args(argv)
    messages = collect(arguments.site)
    if arguments.against is None:
        print("\n".join(message.row for message in messages))
        return 0
    known = listed(arguments.against)
    new = [
        message
        for message in messages
        if message.decision == "generic" and (message.package, message.kind, message.text) not in known
    ]
    print("\n".join(message.row for message in new))
    return 1 if new else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

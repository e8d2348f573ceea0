"""Small models in the format that the engine loads: valid ones, for a test to damage."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"
ARCHITECTURE = "MiniMaxM2ForCausalLM"


def safetensors(tensors: Mapping[str, bytes], **metadata: str) -> bytes:
    """Return a file of the format with these tensors, as vectors of U8."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    position = 0
    for name, content in tensors.items():
        end = position + len(content)
        header[name] = {"dtype": "U8", "shape": [len(content)], "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(tensors.values())


def model(shards: int = 2, size: int = 200_000) -> dict[str, bytes]:
    """Return path -> content of a whole model: shards of two tensors each, and their metadata files."""
    files: dict[str, bytes] = {}
    weight_map: dict[str, str] = {}
    for number in range(1, shards + 1):
        name = f"model-{number:05}-of-{shards:05}.safetensors"
        tensors = {f"layers.{number}.{part}": bytes([number]) * (size // 2) for part in ("up", "down")}
        files[name] = safetensors(tensors)
        weight_map |= dict.fromkeys(tensors, name)
    return files | {
        INDEX: json.dumps({"metadata": {"total_size": shards * size}, "weight_map": weight_map}).encode(),
        "config.json": json.dumps({"architectures": [ARCHITECTURE], "model_type": "minimax_m2"}).encode(),
        "tokenizer.json": b'{"version": "1.0"}\n',
        "tokenizer_config.json": b"{}\n",
        "README.md": b"# A model\n",
    }


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files below a folder and return it."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder

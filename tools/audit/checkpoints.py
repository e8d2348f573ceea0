"""Compare a checkpoint of the catalogue with its own ``config.json``, in a directory or on a hub."""

from __future__ import annotations

import math
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minimax_metal.catalog import Checkpoint, Figure, packaged_catalog
from minimax_metal.catalog.schema import Licence
from minimax_metal.common.errors import UserError
from minimax_metal.plan.kv_cache import bytes_per_token
from tools.audit.rows import MOST_BYTES, Row, as_object, compared, read_object, read_text, skipped

FIELDS = {
    "layers": ("num_hidden_layers",),
    "attention_heads": ("num_attention_heads",),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "experts": ("num_local_experts", "num_experts"),
    "moe_intermediate": ("moe_intermediate_size", "intermediate_size"),
    "max_sequence": ("max_position_embeddings",),
    "index_dim": ("index_head_dim", "sparse_index_dim"),
}
"""Number to its names in configurations; the first one found counts."""
METHODS = {
    "fp8": ("fp8",),
    "mxfp8": ("mxfp8", "fp8"),
    "nvfp4": ("modelopt", "modelopt_fp4", "modelopt_mixed", "nvfp4"),
}
BFLOAT16 = 2
SIZE_TOLERANCE = 0.01
"""Sizes in the catalogue are rounded; a larger difference is another checkpoint."""


def _number(value: Any) -> int | None:
    return value.value if isinstance(value, Figure) else value if isinstance(value, int) else None


def compare_config(one: Checkpoint, config: Mapping[str, Any], against: str) -> Iterator[Row]:
    """Compare architecture, dimensions, quantisation and KV arithmetic."""
    where = f"{one.name} {one.format}"
    inner = config.get("text_config")
    text: Mapping[str, Any] = {**config, **inner} if isinstance(inner, Mapping) else config
    sparse = text.get("sparse_attention_config")
    if isinstance(sparse, Mapping):
        text = {**text, **{key: value for key, value in sparse.items() if key == "sparse_index_dim"}}
    theirs = config.get("architectures")
    names = theirs if isinstance(theirs, list) else []
    yield compared(
        where,
        "architectures",
        list(one.architectures),
        names,
        against,
        same=bool(set(names) & set(one.architectures)),
    )
    for field, keys in FIELDS.items():
        ours = _number(getattr(one, field))
        if ours is None:
            continue
        key = next((key for key in keys if isinstance(text.get(key), int)), None)
        if key is None:
            yield skipped(where, field, f"config.json has no {keys[0]}", against)
        else:
            yield compared(where, field, ours, text[key], f"{against}: {key}")
    yield from _quantisation(
        one, where, config.get("quantization_config") or text.get("quantization_config"), against
    )
    per_token = _number(one.kv_bytes_per_token)
    shape = [text.get(key) for key in ("num_hidden_layers", "num_key_value_heads", "head_dim")]
    numbers = [part for part in shape if isinstance(part, int)]
    if isinstance(sparse, Mapping):
        if len(numbers) == len(shape):
            yield from _sparse(one, where, sparse, 2 * math.prod(numbers) * BFLOAT16, against)
    elif per_token is not None and len(numbers) == len(shape):
        computed = 2 * math.prod(numbers) * BFLOAT16
        how = f"{against}: 2 * layers * KV heads * head_dim * 2 bytes"
        yield compared(where, "kv_bytes_per_token", per_token, computed, how)


def _sparse(
    one: Checkpoint, where: str, sparse: Mapping[str, Any], keys_and_values: int, against: str
) -> Iterator[Row]:
    """Compare sparse attention: its layers, and the cache per token by the engine's formula.

    Based on ``pool_configurator.py`` of 0.5.23: keys and values of every layer, and for each sparse layer one
    index key, with an index value unless the configuration omits it.
    """
    layers, width = sparse.get("sparse_attention_freq"), sparse.get("sparse_index_dim")
    if not isinstance(layers, list) or not isinstance(width, int):
        missing = "config.json has no sparse_attention_freq and sparse_index_dim"
        yield skipped(where, "sparse_layers, KV cache", missing, against)
        return
    chosen = [number for number, flag in enumerate(layers) if flag]
    ours = _number(one.sparse_layers)
    yield compared(where, "sparse_layers", ours, len(chosen), f"{against}: sparse_attention_freq")
    flags = sparse.get("sparse_disable_index_value")
    bare = {number for number, flag in enumerate(flags) if flag} if isinstance(flags, list) else set()
    rows = sum(1 if number in bare else 2 for number in chosen)
    computed = keys_and_values + rows * width * BFLOAT16
    how = f"{against}: 2 * layers * KV heads * head_dim * 2 bytes + {rows} index rows * {width} * 2 bytes"
    yield compared(where, "KV cache of a token", bytes_per_token(one, 1, "bfloat16", "9.0"), computed, how)


def _quantisation(one: Checkpoint, where: str, found: Any, against: str) -> Iterator[Row]:
    method = found.get("quant_method") if isinstance(found, Mapping) else None
    wanted = METHODS.get(one.format)
    if one.format == "bf16" or wanted is None:
        yield compared(where, "format", one.format, method or "not quantised", against, same=method is None)
        return
    yield compared(where, "format", one.format, method or "not quantised", against, same=method in wanted)
    block = found.get("weight_block_size") if isinstance(found, Mapping) else None
    size = block[-1] if isinstance(block, list) and block else None
    if size is None and isinstance(found, Mapping):
        size = found.get("group_size")
    if one.moe_block is None or not isinstance(size, int):
        yield skipped(where, "moe_block", "config.json has no block size", against)
    else:
        yield compared(where, "moe_block", one.moe_block.value, size, against)


def compare_files(one: Checkpoint, sizes: Mapping[str, int], against: str) -> Iterator[Row]:
    """Compare number and size of files."""
    where = f"{one.name} {one.format}"
    total = sum(sizes.values())
    weights = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
    for field, ours, theirs, tolerance in (
        ("bytes", one.bytes.value, total, SIZE_TOLERANCE),
        ("weight_memory_bytes", one.weight_memory_bytes.value, weights, 0.05),
    ):
        yield compared(
            where, field, ours, theirs, against, same=abs(ours - theirs) <= tolerance * max(theirs, 1)
        )
    yield compared(where, "files", one.files.value, len(sizes), against)


def compare_licence(
    one: Checkpoint, said: str | None, against: str, licences: Mapping[str, Licence] | None = None
) -> Row:
    """Compare the repository's licence, by a name that its cards are known to use."""
    where = f"{one.name} {one.format}"
    if not said:
        return skipped(where, "licence", "the repository has none", against)
    known = (packaged_catalog().licences if licences is None else licences).get(one.licence)
    names = {_plain(name) for name in (one.licence, *(known.cards if known else ()))}
    return compared(where, "licence", one.licence, said, against, same=_plain(said) in names)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.casefold())


def from_directory(
    one: Checkpoint, root: Path, licences: Mapping[str, Licence] | None = None
) -> Iterator[Row]:
    """Compare with a directory that has the checkpoint, or only its small files."""
    config = read_object(root / "config.json", "a checkpoint's config.json")
    yield from compare_config(one, config, f"{root.name}/config.json")
    sizes = {
        str(path.relative_to(root)): path.stat().st_size
        for path in sorted(root.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)
    }
    if any(name.endswith(".safetensors") for name in sizes):
        yield from compare_files(one, sizes, f"files of {root.name}")
    else:
        yield skipped(f"{one.name} {one.format}", "bytes, files", "the directory holds no weights", root.name)
    card = root / "README.md"
    said = None
    if card.exists():
        head = read_text(card, "a model card").split("\n---", 1)[0]
        named = dict(re.findall(r"^(license|license_name):\s*(\S+)", head, re.MULTILINE))
        said = named.get("license_name") or named.get("license")
    yield compare_licence(one, said, f"{root.name}/README.md", licences)


def _ask(url: str, what: str) -> dict[str, Any]:
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"found --hub {url}, expected an http or https URL")
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310  # the scheme is checked above
            text = answer.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"found no answer from {url} ({error}), expected {what}") from error
    return as_object(text.decode("utf-8", "replace"), url, what)


def from_hub(one: Checkpoint, hub: str, licences: Mapping[str, Licence] | None = None) -> Iterator[Row]:
    """Compare with a hub's configuration, listing and licence, at the catalogue's revision."""
    repository, revision = one.repositories["huggingface"], one.revision or "main"
    base = hub.rstrip("/")
    config = _ask(f"{base}/{repository}/resolve/{revision}/config.json", "the checkpoint's config.json")
    yield from compare_config(one, config, f"{repository}@{revision[:12]}")
    listing = _ask(
        f"{base}/api/models/{repository}/revision/{revision}?blobs=true", "the repository's listing"
    )
    files = [item for item in listing.get("siblings") or [] if isinstance(item, dict)]
    sizes = {str(item.get("rfilename")): int(item.get("size") or 0) for item in files}
    yield from compare_files(one, sizes, f"listing of {repository}")
    card = listing.get("cardData")
    card = card if isinstance(card, dict) else {}
    said = card.get("license_name") or card.get("license")
    yield compare_licence(one, said, f"card of {repository}", licences)


def on_modelscope(one: Checkpoint, hub: str) -> Row:
    """Check that the catalogue's ModelScope id is a repository there (``/api/v1/models/ORG/NAME``)."""
    where, repository = f"{one.name} {one.format}", one.repositories.get("modelscope")
    if repository is None:
        return skipped(where, "repositories.modelscope", "the catalogue has none", "ModelScope")
    what = "a repository of ModelScope"
    try:
        answer = _ask(f"{hub.rstrip('/')}/api/v1/models/{repository}", what)
    except UserError as error:
        if not isinstance(error.__cause__, urllib.error.HTTPError) or error.__cause__.code != 404:
            raise
        return compared(where, "repositories.modelscope", repository, "not there", "ModelScope")
    there = answer.get("Code") == 200
    theirs = repository if there else f"not there: {answer.get('Message')}"
    return compared(where, "repositories.modelscope", repository, theirs, "ModelScope", same=there)

"""Put the tiny models on the hub and tell the plan of them, through a catalogue overlay."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from lab.engine import environment
from lab.hub.store import Snapshot, Store
from lab.models.description import MODELS, TinyModel
from lab.models.training_run import trained

HEADER = """\
# Catalogue overlay of a lab: the tiny models' sizes and revisions in the place of the published ones.
# Written by lab.models.publish; sizes are those of the files on the lab's hub.
"""


def publish(names: Sequence[str], hub_root: Path, overlay: Path) -> None:
    """Publish the models ``names`` under ``hub_root`` and write the catalogue overlay for them to
    ``overlay``.

    Trains what the cache lacks, several models at once. Doing it again changes no file.

    Raises:
        KeyError: a name is no tiny model's.
        TrainingError, EnvironmentBuildError: a model could not be made; one line for users.
    """
    models = [MODELS[name] for name in names]
    environment()  # before the threads: they would wait for one another anyway
    with ThreadPoolExecutor() as pool:
        folders = list(pool.map(trained, models))
    store = Store(hub_root)
    entries = {}
    for model, folder in zip(models, folders, strict=True):
        published = [
            store.publish(site, repository, folder)
            for site in ("huggingface", "modelscope")
            for repository in model.repositories[site]
        ]
        entries[model.name] = _entry(model, published[0])
    text = HEADER + yaml.safe_dump({"models": entries}, sort_keys=False, allow_unicode=True)
    if not (overlay.is_file() and overlay.read_text(encoding="utf-8") == text):
        overlay.parent.mkdir(parents=True, exist_ok=True)
        scratch = overlay.with_name(f".{overlay.name}.{os.getpid()}")
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(overlay)


def _entry(model: TinyModel, snapshot: Snapshot) -> dict[str, Any]:
    """Return the catalogue's entry: the description's figures, and what the published files say of
    themselves.
    """
    entry = copy.deepcopy(dict(model.catalogue))
    weights = sum(file.size for file in snapshot.files.values() if file.path.endswith(".safetensors"))
    entry["formats"]["bf16"] |= {
        "revision": snapshot.commit,
        "revision_source": "the lab's hub",
        "bytes": sum(file.size for file in snapshot.files.values()),
        "files": len(snapshot.files),
        "weight_memory_bytes": weights,
    }
    return entry

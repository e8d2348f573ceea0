"""The catalogue: models, GPUs, engine releases and platforms as data, each number with its source."""

from minimax_metal.catalog.load import load_catalog, merge, packaged_catalog, read_overlay
from minimax_metal.catalog.schema import Catalog, Checkpoint, EngineRelease, Figure, Gpu, Platform

__all__ = [
    "Catalog",
    "Checkpoint",
    "EngineRelease",
    "Figure",
    "Gpu",
    "Platform",
    "load_catalog",
    "merge",
    "packaged_catalog",
    "read_overlay",
]

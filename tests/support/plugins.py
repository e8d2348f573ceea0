"""Loads the files under plugins/, which Ansible finds as those of a collection and no package holds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

PLUGINS = Path(__file__).parents[2] / "plugins"


def load_plugin(name: str) -> ModuleType:
    """Return one as a module of its own, as ``load_plugin("modules/metal_owned")``.

    What modules share (``module_utils/``) is the one that they import.
    """
    if name.startswith("module_utils/"):
        return importlib.import_module(f"ansible_collections.minimax.metal.plugins.{name.replace('/', '.')}")
    specification = importlib.util.spec_from_file_location(Path(name).name, PLUGINS / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    loaded = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(loaded)
    return loaded

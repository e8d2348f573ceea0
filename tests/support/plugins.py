"""Load the files under plugins/, which Ansible finds as a collection's and which are in no package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

PLUGINS = Path(__file__).parents[2] / "plugins"


def load_plugin(name: str) -> ModuleType:
    """Return one as its own module, as ``load_plugin("modules/metal_owned")``.

    Shared code of modules (``module_utils/``) is the one that they import.
    """
    if name.startswith("module_utils/"):
        return importlib.import_module(f"ansible_collections.minimax.metal.plugins.{name.replace('/', '.')}")
    specification = importlib.util.spec_from_file_location(Path(name).name, PLUGINS / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    loaded = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(loaded)
    return loaded

"""Loads the files under plugins/, which Ansible finds by their path and no package holds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

PLUGINS = Path(__file__).parents[2] / "plugins"


def load_plugin(name: str) -> ModuleType:
    """Return one as a module of its own, as ``load_plugin("modules/metal_state")``."""
    for path in sorted((PLUGINS / "module_utils").glob("*.py")):
        # Ansible ships these with a module, under this name.
        shipped = f"ansible.module_utils.{path.stem}"
        if shipped not in sys.modules:
            _load(shipped, path)
    return _load(Path(name).name, PLUGINS / f"{name}.py")


def _load(name: str, path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    loaded = importlib.util.module_from_spec(specification)
    if name.startswith("ansible."):
        sys.modules[name] = loaded
    specification.loader.exec_module(loaded)
    return loaded

"""Loads the files under plugins/, which Ansible finds as those of a collection and no package holds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

PLUGINS = Path(__file__).parents[2] / "plugins"
UTILITIES = "ansible_collections.minimax.metal.plugins.module_utils."


def load_plugin(name: str) -> ModuleType:
    """Return one as a module of its own, as ``load_plugin("modules/metal_owned")``."""
    # What is a link to a file of the package imports none of the others.
    for path in sorted((PLUGINS / "module_utils").glob("*.py"), key=lambda one: not one.is_symlink()):
        # Ansible ships these with a module, under this name.
        shipped = f"{UTILITIES}{path.stem}"
        if shipped not in sys.modules:
            _load(shipped, path)
    if name.startswith("module_utils/"):
        return sys.modules[UTILITIES + Path(name).name]
    return _load(Path(name).name, PLUGINS / f"{name}.py")


def _load(name: str, path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    loaded = importlib.util.module_from_spec(specification)
    if name.startswith(UTILITIES):
        sys.modules[name] = loaded
    specification.loader.exec_module(loaded)
    return loaded

"""Copy the files of the package that Ansible modules take to a host: ``python tools/module_utils.py``.

Ansible sends a module only what lies in ``plugins/module_utils/``. The package uses these files as well, and
links do not survive every archive and file system. So they are copies; a unit test says when one is stale.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

REPOSITORY = Path(__file__).parents[1]
COPIES: Final = {
    "metal_apart.py": "src/minimax_metal/common/apart.py",
    "metal_files.py": "src/minimax_metal/common/files.py",
    "metal_lock.py": "src/minimax_metal/host/lock.py",
    "metal_program.py": "src/minimax_metal/common/program.py",
}
"""What is copied: the name in ``plugins/module_utils/``, and the file that is changed by hand."""


def copies() -> dict[Path, str]:
    """Return each copy's path and what it holds."""
    return {
        REPOSITORY / "plugins/module_utils" / name: (
            f"# Copied from {source} by tools/module_utils.py. Change that file, not this one.\n"
            + (REPOSITORY / source).read_text(encoding="utf-8")
        )
        for name, source in COPIES.items()
    }


def main() -> None:
    """Write the copies that differ."""
    for path, content in copies().items():
        if path.is_symlink() or not path.exists() or path.read_text(encoding="utf-8") != content:
            path.unlink(missing_ok=True)
            path.write_text(content, encoding="utf-8")
            print(f"wrote {path.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()

"""An engine environment on the machine that runs the lab: it trains the tiny models and serves the contract
tests.

It is filled from the production lock, so that a model is trained with the very transformers and tokenizers
that will serve it, and through the same package cache as the lab hosts, so that training warms their
installs.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.engine.wheel import build_wheel

RELEASE = "0.5.23"
"""The engine release the plug-in is written for."""

LOCKS = Path(__file__).parents[2] / "src" / "minimax_metal" / "catalog" / "locks"


class EnvironmentBuildError(RuntimeError):
    """The engine environment could not be made; the message is one line for users."""


def cache_root() -> Path:
    """Return the folder all caches of this project live in; deleting it is safe while no lab runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minimax-metal"


def lock_file() -> Path:
    """Return the engine's lock for the Python that runs this.

    Raises:
        EnvironmentBuildError: there is no lock for this Python.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    lock = LOCKS / f"sglang-{RELEASE}-py{version}.txt"
    if not lock.is_file():
        known = ", ".join(
            sorted(path.stem.rpartition("-py")[2] for path in LOCKS.glob(f"sglang-{RELEASE}-py*.txt"))
        )
        raise EnvironmentBuildError(
            f"Python {version} runs the lab, but SGLang {RELEASE} is locked for Python {known} only: "
            "make the project's environment with one of those"
        )
    return lock


def lock_digest() -> str:
    """Return the first 12 hex digits of the lock's sha256, which name the environment."""
    return hashlib.sha256(lock_file().read_bytes()).hexdigest()[:12]


def environment() -> Path:
    """Return the python of the engine environment; make the environment when there is none.

    The environment is filled beside its place and renamed into it, so another process sees it whole or not at
    all. Installing 207 packages takes some 40 s with a cold package cache and 10 s with a warm one. They are
    links into the cache, and not byte-compiled: that would take longer than the few imports it saves here.

    Raises:
        EnvironmentBuildError: no lock for this Python, or an installation failed.
    """
    root = cache_root() / "engine"
    home = root / lock_digest()
    root.mkdir(parents=True, exist_ok=True)
    with _only_one(root / ".lock"):
        if not home.is_dir():
            _fill(home)
        _install_plugin(home)
    return home / "bin" / "python"


def _fill(home: Path) -> None:
    """Make the environment ``home`` from the lock."""
    scratch = home.with_name(f".{home.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    _uv("venv", "--relocatable", "--python", sys.executable, str(scratch))
    python = str(scratch / "bin" / "python")
    _uv("pip", "sync", "--only-binary", ":all:", "--require-hashes", "--python", python, str(lock_file()))
    scratch.rename(home)


def _install_plugin(home: Path) -> None:
    """Put the plug-in into the environment ``home``, unless this very wheel is in it."""
    wheel = build_wheel(cache_root() / "wheels")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    marker = home / "plugin.sha256"
    if marker.is_file() and marker.read_text() == digest:
        return
    marker.unlink(missing_ok=True)
    # Copied: the wheel's bytes may change under one version while it is being written.
    _uv("pip", "install", "--no-deps", "--reinstall", "--no-index", "--link-mode", "copy", "--refresh",
        "--python", str(home / "bin" / "python"), str(wheel))  # fmt: skip
    marker.write_text(digest)


def _uv(*arguments: str) -> None:
    """Run uv quietly with the project's package cache.

    Raises:
        EnvironmentBuildError: it failed; the message ends with the last line it printed.
    """
    from uv import find_uv_bin

    settings = {
        "UV_CACHE_DIR": str(cache_root() / "uv"),
        "UV_LINK_MODE": "symlink",
        "UV_NO_PROGRESS": "1",
        "UV_PYTHON_DOWNLOADS": "never",
    }
    done = subprocess.run(
        [find_uv_bin(), *arguments],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise EnvironmentBuildError(
            f"uv {arguments[0]} {arguments[1] if arguments[0] == 'pip' else ''}".rstrip()
            + f" ended with {done.returncode} while making the engine environment: "
            + (lines[-1] if lines else "it printed nothing")
        )


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Hold the file ``lock`` against other processes; the kernel lets go of it when this one dies."""
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield

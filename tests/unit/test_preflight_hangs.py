"""A host that hangs is refused alone: the real preflight on two hosts, one of which stops answering."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def preflight(tmp_path: Path, *words: str) -> tuple[str, float]:
    """The output of ``playbooks/preflight.yml`` for the inventory; it changes nothing on this machine."""
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    began = time.monotonic()
    done = subprocess.run(
        [program, "-i", str(tmp_path / "hosts.yml"), "playbooks/preflight.yml", *words],
        cwd=REPOSITORY,
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"},
    )
    assert done.returncode != 0  # no host here has GPUs
    return done.stdout + done.stderr, time.monotonic() - began


def host(tmp_path: Path, name: str, interpreter: str) -> str:
    path = tmp_path / f"python-{name}"
    path.write_text("#!/bin/sh\n" + interpreter)
    path.chmod(0o755)
    return (
        f"    {name}:\n      ansible_connection: local\n      ansible_become: false\n"
        f"      ansible_python_interpreter: {path}\n"
    )


@pytest.mark.parametrize("kind", ["module", "nvidia-smi"])
def test_a_host_that_hangs_is_refused_alone(tmp_path: Path, kind: str) -> None:
    """Before, one such host kept every other one waiting for ever."""
    if kind == "module":
        bad = "exec sleep 300\n"
    else:
        programs = tmp_path / "bin"
        programs.mkdir()
        # It does not mind SIGTERM, and leaves a child that holds its pipes.
        (programs / "nvidia-smi").write_text("#!/bin/sh\ntrap '' TERM INT HUP\nsleep 300 &\nsleep 300\n")
        (programs / "nvidia-smi").chmod(0o755)
        bad = f'PATH={programs}:$PATH exec {sys.executable} "$@"\n'
    good = f'exec {sys.executable} "$@"\n'
    (tmp_path / "hosts.yml").write_text(
        "gpu_hosts:\n  vars:\n    metal_model: MiniMax-M2.5\n"
        f"    metal_weights_directory: {tmp_path}/models\n"
        f"    metal_host_timeout_seconds: {8 if kind == 'module' else 120}\n  hosts:\n"
        + host(tmp_path, "gpu-hangs", bad)
        + host(tmp_path, "gpu-fine", good)
    )
    said, seconds = preflight(tmp_path)
    assert seconds < 150
    # The sound one was read to the end and judged by what it has.
    assert "gpu-fine: gpu-none: found no NVIDIA GPU" in said
    if kind == "module":
        assert "gpu-hangs: host-timeout: found a host that did not answer in 8 s" in said
        assert "gpu-fine: host-" not in said
    else:
        assert "gpu-hangs: nvidia-smi: found nvidia-smi did not answer in time" in said
        assert "gpu-fine: nvidia-smi" not in said

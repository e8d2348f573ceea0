"""Give an engine on a CPU a device of a fixed memory size: ``TEST_DEVICE_MIB``, less its tensors.

A plug-in of the engine for tests that compare the planned capacity with what is allocated. On a CPU the
engine takes the whole machine's free memory as the device's, and that changes while a test runs. The engine
finds :func:`install` by the entry point that :func:`write` puts next to the copy of this file.
"""

import gc
import os
import shutil
from pathlib import Path

NAME = "TEST_DEVICE_MIB"


def write(folder: Path) -> dict[str, str]:
    """Put the plug-in into ``folder``; return the environment of an engine that must find it."""
    information = folder / "test_device_memory-1.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: test-device-memory\nVersion: 1\n")
    (information / "entry_points.txt").write_text(
        "[sglang.srt.plugins]\ntest_device_memory = device_memory:install\n"
    )
    shutil.copy(__file__, folder / "device_memory.py")
    return {"PYTHONPATH": str(folder)}


def install() -> None:
    """Replace the engine's query of the machine's memory."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register("sglang.srt.utils.common.get_free_cpu_memory", free, HookType.REPLACE)


def free() -> int:
    """Bytes of the device that no tensor of this process uses."""
    import torch

    storages: dict[int, int] = {}
    for one in gc.get_objects():
        if issubclass(type(one), torch.Tensor) and one.device.type == "cpu":
            storage = one.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return (int(os.environ[NAME]) << 20) - sum(storages.values())

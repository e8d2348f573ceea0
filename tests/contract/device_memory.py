"""A device with a set amount of memory for an engine on a CPU: ``TEST_DEVICE_MIB``, less its tensors.

A plug-in of the engine for tests that hold the plan's capacity against what is allocated. On a CPU the engine
takes the whole machine's free memory for the device's, and that changes while a test runs. The engine finds
:func:`install` by the entry point that :func:`write` puts beside this file's copy.
"""

import gc
import os
import shutil
from pathlib import Path

NAME = "TEST_DEVICE_MIB"


def write(folder: Path) -> dict[str, str]:
    """Put the plug-in into ``folder``; return the environment of an engine that has to find it."""
    information = folder / "test_device_memory-1.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: test-device-memory\nVersion: 1\n")
    (information / "entry_points.txt").write_text(
        "[sglang.srt.plugins]\ntest_device_memory = device_memory:install\n"
    )
    shutil.copy(__file__, folder / "device_memory.py")
    return {"PYTHONPATH": str(folder)}


def install() -> None:
    """Replace the engine's look at the machine's memory."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register("sglang.srt.utils.common.get_free_cpu_memory", free, HookType.REPLACE)


def free() -> int:
    """Bytes of the device that no tensor of this process takes."""
    import torch

    storages: dict[int, int] = {}
    for one in gc.get_objects():
        if issubclass(type(one), torch.Tensor) and one.device.type == "cpu":
            storage = one.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return (int(os.environ[NAME]) << 20) - sum(storages.values())

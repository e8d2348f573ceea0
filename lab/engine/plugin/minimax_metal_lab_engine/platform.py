"""The platform SGLang runs on in the lab: its own CPU device, without the CPU kernel package."""

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform


class LabPlatform(CpuDeviceMixin, SRTPlatform):  # type: ignore[misc]  # the engine's, which is not here
    """SGLang's CPU device as an out-of-tree platform.

    In tree (``--device cpu`` alone) the engine calls ``sgl_kernel``'s CPU build, which no package index
    carries for this release and which wants AMX. Out of tree every layer falls back to its
    ``forward_native``.
    """

    _enum = PlatformEnum.OOT
    # No graph capture: there is no CUDA graph, and the engine's CPU graphs need a C++ compiler.
    capabilities = PlatformCapabilities()

    def get_default_attention_backend(self) -> str:
        """Return the attention of plain torch; the others are GPU kernels or ``sgl_kernel``'s."""
        return "torch_native"

    def get_dispatch_key_name(self) -> str:
        """Return the suffix of the method a layer runs: ``forward_native``."""
        return "native"

    def is_pin_memory_available(self, device: object = None) -> bool:
        """Return False: pinned memory needs a CUDA driver."""
        return False

"""Stand-ins for what NVIDIA ships: GPUs on the PCI bus, and the package repository with the driver and
CUDA."""

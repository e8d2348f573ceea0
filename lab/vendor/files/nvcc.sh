#!/bin/sh
# nvcc stand-in: answers --version as the real compiler does (format: published outputs), and compiles nothing. The
# engine's CPU platform never calls it.
case "$1" in
--version | -V)
    echo "nvcc: NVIDIA (R) Cuda compiler driver"
    echo "Copyright (c) 2005-2025 NVIDIA Corporation"
    echo "Built on Wed_Aug_20_01:58:59_PM_PDT_2025"
    echo "Cuda compilation tools, release @RELEASE@, V@VERSION@"
    echo "Build cuda_@RELEASE@.r@RELEASE@/compiler.0_0"
    ;;
*)
    echo "nvcc fatal   : the lab's nvcc compiles nothing" >&2
    exit 1
    ;;
esac

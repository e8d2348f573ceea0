#!/bin/sh
# nvidia-modprobe stand-in. The real program (setuid root) loads the kernel module and makes device nodes on demand.
# In the lab nothing can load a module, and nvidia-kernel-module-standin.service makes all nodes at boot: what is left
# is the answer whether the module is there.
[ -e /proc/driver/nvidia/version ]

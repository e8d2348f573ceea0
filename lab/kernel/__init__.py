"""Hosts with a kernel of their own, under QEMU: for modules, DKMS, sysctl, all that a container lacks."""

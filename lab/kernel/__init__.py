"""Hosts with their own kernel, under QEMU: for modules, DKMS, sysctl, and all that a container lacks."""

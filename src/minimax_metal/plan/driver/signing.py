"""Whether modules built on a host will load under its secure boot: pure, from collected facts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minimax_metal.plan.facts import HostFacts

DKMS_KEY = "/var/lib/dkms/mok.pub"
_MAKE = {
    # DKMS before 3.1 (Debian 12, Ubuntu 22.04) has no generate_mok: this is the command it runs itself, but
    # too late, at its first build (dkms 3.0.10, prepare_signing).
    "debian": (
        "apt install dkms mokutil openssl, openssl req -new -x509 -nodes -days 36500 -subj '/CN=DKMS module "
        "signing key' -newkey rsa:2048 -keyout /var/lib/dkms/mok.key -outform DER -out /var/lib/dkms/mok.pub",
        DKMS_KEY,
    ),
    # Ubuntu's DKMS signs with the key of its package shim-signed.
    "ubuntu": (
        "apt install dkms mokutil shim-signed, update-secureboot-policy --new-key",
        "/var/lib/shim-signed/mok/MOK.der",
    ),
}


def secure_boot_problem(facts: HostFacts, collected: Mapping[str, Any]) -> str | None:
    """Return why modules built here would be refused, as "found ..., expected ...; ..."; None if they would
    load.

    Args:
        facts: of the host; ``secure_boot`` is the firmware's state.
        collected: facts from the module metal_driver_facts: ``keys``, each key that signs modules here,
            and whether the firmware knows it.
    """
    keys: Mapping[str, bool] = collected.get("keys") or {}
    if not facts.secure_boot or any(keys.values()):
        return None
    make, certificate = _MAKE["ubuntu" if facts.distribution == "ubuntu" else "debian"]
    if keys:
        certificate = next(iter(keys))
        have, steps = f"the key {certificate} not enrolled", "apt install mokutil"
    else:
        have, steps = "no key enrolled for modules built here", make
    return (
        f"found secure boot on and {have}, expected a key (MOK) that the firmware knows; nothing was "
        f"installed: on the host run {steps}, mokutil --import {certificate}, reboot and confirm at "
        "the console, then run the playbook again; or disable secure boot; or set "
        "nvidia_driver_secure_boot to trust if you sign the modules"
    )

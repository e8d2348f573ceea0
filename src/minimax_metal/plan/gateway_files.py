"""Files of keys and certificates on a gateway's host: which of them systemd hands to the gateway. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from minimax_metal.plan.access import CA_CERTIFICATE, CERTIFICATE, PRIVATE_KEY
from minimax_metal.plan.gateway import CONFIGURATION, Options

API_KEY: Final = "api_key"
ADMIN_KEY: Final = "admin_key"


def certificates(plan: Mapping[str, Any]) -> dict[str, str]:
    """Return what each file of the fleet's authority holds: ``certificate``, ``key`` or ``ca``, by its name.

    None where the fleet has no authority (``metal_tls``). Clients are served with a certificate of the
    user's where there is one.
    """
    tls = plan.get("tls")
    if not tls:
        return {}
    own = {PRIVATE_KEY: "key", CERTIFICATE: "certificate"} if tls["serves"] else {}
    return {**own, CA_CERTIFICATE: "ca"}


def credentials(
    plan: Mapping[str, Any], options: Mapping[str, Any], directory: str = CONFIGURATION
) -> dict[str, str]:
    """Return the file of each credential of the gateway's unit, by the credential's name.

    Args:
        plan: the gateway's.
        options: the role's variables, as :meth:`Options.read` takes them.
        directory: of the gateway's configuration.
    """
    given = Options.read(options)
    names = [ADMIN_KEY, *([API_KEY] if plan["api_keys"] else []), *certificates(plan)]
    users = {CERTIFICATE: given.tls_certificate, PRIVATE_KEY: given.tls_key} if given.tls_certificate else {}
    return {
        **{name: str(path) for name, path in users.items()},
        **{name: f"{directory}/{name}" for name in names},
    }


def unused(plan: Mapping[str, Any], options: Mapping[str, Any], directory: str = CONFIGURATION) -> list[str]:
    """Return the paths of the fleet's files that an earlier run may have left there, and none of the user's.

    The arguments are those of :func:`credentials`.
    """
    given = Options.read(options)
    users = {given.tls_certificate, given.tls_key, given.worker_ca_certificate}
    names = [name for name in (PRIVATE_KEY, CERTIFICATE, CA_CERTIFICATE) if name not in certificates(plan)]
    return [path for path in (f"{directory}/{name}" for name in names) if path not in users]

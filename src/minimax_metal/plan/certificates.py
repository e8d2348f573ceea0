"""When the certificates of the fleet's own CA end, from the controller's copies: for ``metal plan``.

The first run creates them; before that there is nothing to report. The user's own certificates are on the
hosts: ``metal status`` reports when those end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from minimax_metal.common import certificates
from minimax_metal.plan.model import Notice, Plan

CODE: Final = "tls-ends"
SAID: Final = "tls-until"
"""Code of a notice that needs no action."""
HOST_DAYS: Final = 365
"""Days that a host's certificate is valid. A CA with fewer days left issues none."""
_SETTINGS: Final = ("sglang_service_secrets_directory", "metal_secrets_directory")


@dataclass(frozen=True)
class Ends:
    """End dates of a host's certificate and of its CA's; None if no run has created it."""

    host: datetime | None
    authority: datetime | None

    def __str__(self) -> str:
        said = [
            f"{name} ends on {end:%Y-%m-%d}"
            for name, end in (("the certificate", self.host), ("the CA", self.authority))
            if end is not None
        ]
        return ", ".join(said)


def secrets_directory(inventories: Sequence[Path], variables: Mapping[str, Any]) -> Path | None:
    """Return where a host's run stores secrets; None if a template or no variable sets it.

    ``variables``: ``metal_*`` and those of roles, as in the inventory.
    """
    named = next((variables[name] for name in _SETTINGS if variables.get(name)), None)
    if named is not None:
        return Path(str(named)).expanduser() if "{{" not in str(named) else None
    for one in inventories:
        if one.exists():
            return (one if one.is_dir() else one.parent) / "secrets"
    return None


def ends_of(host: str, secrets: Path) -> Ends:
    """Return the end dates of a host's certificate and of the CA's, in a secrets directory."""

    def end(name: str) -> datetime | None:
        try:
            return certificates.end_of_file(secrets / "tls" / name)
        except OSError:
            return None

    return Ends(end(f"host-{host}.crt"), end("ca.crt"))


def with_notices(plan: Plan, ends: Ends, now: datetime | None = None) -> Plan:
    """Return the plan with these end dates, and with a warning for each that is near."""
    now = now or datetime.now(UTC)
    found: list[str] = []
    said = (Notice(SAID, f"{ends}; site.yml renews the certificate before that"),) if ends.host else ()
    if ends.host is not None:
        found += filter(None, [certificates.warning("the host's certificate", ends.host, now, fleet=True)])
    if ends.authority is not None:
        last = ends.authority - timedelta(days=HOST_DAYS)
        if (last - now).days < certificates.FLEET_DAYS:
            found.append(
                f"the fleet's CA ends on {ends.authority:%Y-%m-%d} and issues no certificates after "
                f"{last:%Y-%m-%d}; before that day, remove tls in the secrets directory, run "
                "site.yml and give clients the new ca.crt"
            )
    return replace(plan, warnings=(*plan.warnings, *said, *(Notice(CODE, text) for text in found)))

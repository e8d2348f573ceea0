"""The lab's uplink, and the stand-ins for outside services: removed, and restored.

Without them a host still reaches the other hosts and this machine, as at a site without an uplink.
"""

from __future__ import annotations

from lab.hosts.network import Network, set_link
from lab.hosts.processes import run, succeeds


def table(net: Network) -> str:
    """Return the name of the nftables table that closes the way out."""
    return f"{net.bridge}-uplink"


def cut(net: Network) -> None:
    """Remove the uplink: nothing is forwarded, and the services' cable is disconnected."""
    name = table(net)
    rules = f"""
        table ip {name} {{}}
        delete table ip {name}
        table ip {name} {{
          chain out {{
            type filter hook forward priority filter - 1; policy accept;
            iifname "{net.bridge}" oifname != "{net.bridge}" drop
          }}
        }}
    """
    run(["nft", "-f", "-"], stdin=rules)
    set_link(net.services, up=False)


def restore(net: Network) -> None:
    """Restore it; nothing happens if it was not removed."""
    if succeeds(["nft", "list", "table", "ip", table(net)]):
        run(["nft", "delete", "table", "ip", table(net)])
        set_link(net.services, up=True)

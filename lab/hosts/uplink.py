"""The way out of a lab, and the stand-ins of what is outside: taken away, and given back.

What a host still reaches is the other hosts and this machine, as in a room without an uplink.
"""

from __future__ import annotations

from lab.hosts.network import Network, set_link
from lab.hosts.processes import run, succeeds


def table(net: Network) -> str:
    """Return the name of the nftables table that closes the way out."""
    return f"{net.bridge}-uplink"


def cut(net: Network) -> None:
    """Take the way out away: nothing is forwarded, and the services' cable is pulled."""
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
    """Give it back; without one that was taken away nothing happens."""
    if succeeds(["nft", "list", "table", "ip", table(net)]):
        run(["nft", "delete", "table", "ip", table(net)])
        set_link(net.services, up=True)

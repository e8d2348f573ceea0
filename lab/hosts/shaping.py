"""Links of a given speed, by the kernel's token buckets (``tc``): also used by benchmarks.

A token bucket (tbf) shapes outgoing traffic, so a cable is shaped at both ends. It cannot show a real line's
delay, loss and jitter (this needs ``netem``, which not every kernel has).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lab.hosts.network import INTERFACE, Node
from lab.hosts.processes import run

LATENCY: Final = "50ms"
"""How long a packet may wait before it is dropped: the depth of a switch's buffer."""


def burst(mbit: int) -> int:
    """Return the bytes a bucket holds: 5 ms of the line, and at least two of the kernel's largest packets."""
    return max(2 * 65536, mbit * 1_000_000 // 8 // 200)


def limit(interface: str, mbit: int | None, inside: Sequence[str] = ()) -> None:
    """Shape an interface's outgoing traffic; None removes a limit.

    Args:
        interface: its name.
        mbit: Mbit/s.
        inside: options of ``tc`` that give its location, for instance ``-n NAMESPACE``.
    """
    if mbit is None:
        run(["tc", *inside, "qdisc", "del", "dev", interface, "root"], check=False)
        return
    shape = ["tbf", "rate", f"{mbit}mbit", "burst", str(burst(mbit)), "latency", LATENCY]
    run(["tc", *inside, "qdisc", "replace", "dev", interface, "root", *shape])


def limit_each(interface: str, mbit: int, addresses: Sequence[str], inside: Sequence[str] = ()) -> None:
    """Shape an interface's outgoing traffic per destination (htb); the rest is not shaped."""
    tc = ["tc", *inside]
    run([*tc, "qdisc", "replace", "dev", interface, "root", "handle", "1:", "htb", "default", "0"])
    for number, address in enumerate(addresses, start=16):
        where = ["dev", interface, "parent", "1:"]
        rate = ["htb", "rate", f"{mbit}mbit", "burst", str(burst(mbit)), "cburst", str(burst(mbit))]
        run([*tc, "class", "add", *where, "classid", f"1:{number:x}", *rate])
        match = ["u32", "match", "ip", "dst", f"{address}/32", "flowid", f"1:{number:x}"]
        run([*tc, "filter", "add", *where, "protocol", "ip", *match])


def shape(node: Node, mbit: int | None) -> None:
    """Give a node's cable a speed, both ways."""
    limit(node.link, mbit)
    limit(INTERFACE, mbit, ["-n", node.namespace])

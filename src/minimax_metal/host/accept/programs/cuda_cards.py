"""Every card: a context, memory written and read back, and copies from each card to every other."""

from __future__ import annotations

from typing import Any

from answering import main, need_cuda


def check(count: int) -> dict[str, Any]:
    """Compute on each of ``count`` cards and copy from each to every other."""
    torch = need_cuda(count)
    cards = []
    for index in range(count):
        ones = torch.ones(1 << 20, device=f"cuda:{index}")
        total = float((ones * (index + 1)).sum())
        if total != (index + 1) * (1 << 20):
            raise RuntimeError(f"card {index} computed {total}, expected {(index + 1) * (1 << 20)}")
        features = torch.cuda.get_device_properties(index)
        cards.append(
            {
                "index": index,
                "name": features.name,
                "capability": f"{features.major}.{features.minor}",
                "memory": features.total_memory,
            }
        )
    for source in range(count):
        sent = torch.arange(1024, device=f"cuda:{source}")
        for target in range(count):
            if not torch.equal(sent.to(f"cuda:{target}").cpu(), sent.cpu()):
                raise RuntimeError(f"data sent from card {source} to card {target} was changed on the way")
    peers = sum(
        torch.cuda.can_device_access_peer(one, other)
        for one in range(count)
        for other in range(count)
        if one != other
    )
    return {"cards": cards, "torch": torch.__version__, "cuda": torch.version.cuda, "peers": peers}


if __name__ == "__main__":
    main(check)

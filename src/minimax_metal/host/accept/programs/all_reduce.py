"""NCCL's all-reduce over all cards, computed like nccl-tests' all_reduce_perf.

Bus bandwidth is ``bytes / seconds * 2 * (cards - 1) / cards``, so that it can be compared with a link's
bandwidth (nccl-tests, doc/PERFORMANCE.md).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from typing import Any

from answering import main, need_cuda

SIZES = (64 << 20, 1 << 30)
"""Sizes of one message in bytes; the larger one shows the bandwidth."""
WARM_UP, ROUNDS = 5, 20


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _rank(rank: int, count: int, port: int, device: str, sizes: Sequence[int], results: Any) -> None:
    """Run one process per card."""
    from datetime import timedelta

    import torch
    import torch.distributed as distributed

    cuda = device == "cuda"
    if cuda:
        torch.cuda.set_device(rank)
    wait = torch.cuda.synchronize if cuda else lambda: None
    distributed.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=120),
        device_id=torch.device("cuda", rank) if cuda else None,
    )
    measured = {}
    for size in sizes:
        message = torch.full((size // 4,), float(rank + 1), device=device)
        distributed.all_reduce(message)
        first, last, wanted = float(message[0]), float(message[-1]), count * (count + 1) / 2
        if first != wanted or last != wanted:
            raise RuntimeError(f"rank {rank} got sums of {first} and {last}, expected {wanted}")
        message.zero_()
        for _ in range(WARM_UP):
            distributed.all_reduce(message)
        wait()
        distributed.barrier()
        began = time.perf_counter()
        for _ in range(ROUNDS):
            distributed.all_reduce(message)
        wait()
        seconds = (time.perf_counter() - began) / ROUNDS
        measured[str(size)] = size / seconds * 2 * (count - 1) / count
        del message
    if rank == 0:
        results.put(measured)
    distributed.barrier()
    distributed.destroy_process_group()


def check(count: int, device: str = "cuda", sizes: Sequence[int] = SIZES) -> dict[str, Any]:
    """Measure over ``count`` cards; on ``cpu`` it uses gloo, and the result says nothing about NVLink."""
    if count < 2:
        raise RuntimeError("a single GPU has no peer to communicate with")
    if device == "cuda":
        need_cuda(count)
    import torch

    nccl = ".".join(map(str, torch.cuda.nccl.version())) if device == "cuda" else "none"
    os.environ.setdefault("NCCL_DEBUG", "WARN")
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.start_processes(
        _rank,
        args=(count, _free_port(), device, tuple(sizes), results),
        nprocs=count,
        start_method="spawn",
    )
    measured = results.get()
    return {"bandwidths": measured, "bandwidth": max(measured.values()), "nccl": nccl, "cards": count}


if __name__ == "__main__":
    main(check)

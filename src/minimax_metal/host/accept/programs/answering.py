"""Shared code of the programs here: parameters as JSON in the first argument, the answer as the last line.

They run with the engine's Python in the engine's sandbox, so nothing of this package is available.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any


def main(check: Callable[..., dict[str, Any]]) -> None:
    """Call ``check`` with the parameters, print its answer, exit 0 if all went well."""
    parameters = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    began = time.monotonic()
    try:
        answer = {"ok": True, **check(**parameters)}
    except Exception as error:
        # Any error is the result: the class and its first line.
        words = " ".join(str(error).split())[:600]
        answer = {"ok": False, "error": f"{type(error).__name__}: {words}" if words else type(error).__name__}
        import traceback

        traceback.print_exc()
    answer["seconds"] = round(time.monotonic() - began, 3)
    sys.stderr.flush()
    print("\n" + json.dumps(answer), flush=True)
    sys.exit(0 if answer["ok"] else 1)


def need_cuda(count: int) -> Any:
    """Return torch if it sees ``count`` cards.

    Raises:
        RuntimeError: it sees fewer, with CUDA's own reason.
    """
    import torch

    if not torch.cuda.is_available():
        # This call gives the reason.
        torch.cuda.init()
    found = torch.cuda.device_count()
    if found != count:
        raise RuntimeError(f"torch.cuda sees {found} cards, expected {count}")
    return torch

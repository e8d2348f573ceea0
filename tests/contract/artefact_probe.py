"""Ask the installed FlashInfer for a missing precompiled kernel; run with the engine's Python.

Prints ``{"bytes": ...}`` if it came from somewhere, else ``{"error": ...}`` with the first line.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    """Answer on the original standard output of the process, whatever FlashInfer prints."""
    answer_to = os.dup(1)
    os.dup2(2, 1)
    from flashinfer.jit.cubin_loader import get_artifact

    name, digest = sys.argv[1:]
    try:
        answer: dict[str, object] = {"bytes": len(get_artifact(name, digest))}
    except RuntimeError as error:
        answer = {"error": str(error).splitlines()[0]}
    os.write(answer_to, json.dumps(answer).encode())


if __name__ == "__main__":
    main()

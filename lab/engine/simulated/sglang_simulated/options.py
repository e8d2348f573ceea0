"""How the simulated engine was started: the real one's command line, and what is simulated, by environment.

==============================  =====================================================================
``SIMULATED_TOKEN_SECONDS``     seconds a token takes (0.01)
``SIMULATED_START_SECONDS``     seconds until ``/health`` answers 200 (1)
``SIMULATED_FAULTS``            names with commas between: those of tests/support/engine.py that are about
                                an answer, and ``no_start`` (ends with status 1 at once),
                                ``late_errors:N`` (500 for every request after the first N)
``SIMULATED_REQUEST_LOG``       file of the request log (``/var/lib/sglang/requests-PORT.jsonl``); empty: none
==============================  =====================================================================
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

KEY_LINE = re.compile(r'^api-key:\s*"?([^"\s]+)"?\s*$', re.MULTILINE)


@dataclass(frozen=True)
class Options:
    """What the command line and the environment say."""

    model_path: str
    served_name: str
    host: str
    port: int
    tool_parser: str | None
    reasoning_parser: str | None
    metrics: bool
    api_key: str | None
    certificate: str | None
    certificate_key: str | None
    most_running: int | None
    """``--max-running-requests``: what is above waits."""
    most_waiting: int | None
    """``--max-queued-requests``: what is above is refused with 503, as the engine does."""
    token_seconds: float
    start_seconds: float
    faults: frozenset[str]
    late_errors: int | None
    log: Path | None

    @property
    def family(self) -> str:
        """M3 or M2, by the name of the model."""
        return "m3" if "M3" in f"{self.served_name} {self.model_path}" else "m2"


def read_options(argv: Sequence[str], environment: Mapping[str, str]) -> Options:
    """Read both; flags of the real engine that change nothing here are passed over."""
    parser = argparse.ArgumentParser(prog="sglang", allow_abbrev=False)
    parser.add_argument("--model-path", "--model", default="/nowhere")
    parser.add_argument("--served-model-name")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--tool-call-parser")
    parser.add_argument("--reasoning-parser")
    parser.add_argument("--enable-metrics", action="store_true")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--ssl-certfile")
    parser.add_argument("--ssl-keyfile")
    parser.add_argument("--max-running-requests", type=int)
    parser.add_argument("--max-queued-requests", type=int)
    words = list(argv)
    known, _ = parser.parse_known_args(words[1:] if words[:1] == ["serve"] else words)
    key = KEY_LINE.search(known.config.read_text(encoding="utf-8")) if known.config else None
    faults = {name for name in environment.get("SIMULATED_FAULTS", "").split(",") if name}
    late = [int(name.partition(":")[2]) for name in faults if name.startswith("late_errors:")]
    log = environment.get("SIMULATED_REQUEST_LOG", f"/var/lib/sglang/requests-{known.port}.jsonl")
    return Options(
        model_path=known.model_path,
        served_name=known.served_model_name or known.model_path,
        host=known.host,
        port=known.port,
        tool_parser=known.tool_call_parser,
        reasoning_parser=known.reasoning_parser,
        metrics=known.enable_metrics,
        api_key=key.group(1) if key else None,
        certificate=known.ssl_certfile,
        certificate_key=known.ssl_keyfile,
        most_running=known.max_running_requests,
        most_waiting=known.max_queued_requests,
        token_seconds=float(environment.get("SIMULATED_TOKEN_SECONDS", "0.01")),
        start_seconds=float(environment.get("SIMULATED_START_SECONDS", "1")),
        faults=frozenset(name for name in faults if not name.startswith("late_errors:")),
        late_errors=min(late) if late else None,
        log=Path(log) if log else None,
    )

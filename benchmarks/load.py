"""A steady load with a log of every request's fate, and its reconciliation with what the servers saw.

    python benchmarks/load.py run --url http://gateway:30000 --model NAME --key-file FILE --log load.jsonl
    python benchmarks/load.py reconcile --log load.jsonl requests-8000.jsonl ...

Requests are sent at fixed moments whatever became of those before (an open loop), half of them streamed; a
share is long. Each asks for an exact number of tokens (``ignore_eos``), so that a short answer is found out,
and carries its id in the ``user`` field. One line of JSON per request: id, kind, when it was sent, when its
first byte came and when it ended (seconds since the epoch), tokens asked and got, and its fate:

=========== ======================================================================
whole       answered with 200, every token and the end of the answer
truncated   began with 200 and ended early
refused     429 or 503, before anything of the answer
failed      another status, or no answer
=========== ======================================================================

SIGTERM ends the sending; what is under way ends as it will, and the summary is of what was sent.

Exit status of ``run``: 0 when nothing was truncated, failed or (without ``--may-refuse``) refused, else 1.
Of ``reconcile``: 0 when client and servers agree on every request, else 1, with a line for each that they do
not. It needs the log of the simulated engine (lab/engine/simulated), which a real engine does not write.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx

PROMPT = "Count from one on, and do not stop. Request {identity}."


@dataclass
class Request:
    """One request and its outcome."""

    id: str
    kind: str
    asked: int
    sent: float = 0.0
    first: float | None = None
    ended: float = 0.0
    got: int = 0
    status: int | None = None
    fate: str = "failed"
    error: str | None = None

    @property
    def stream(self) -> bool:
        return self.kind != "plain"


def plan(number: int, tokens: int, long_tokens: int, long_share: float, run: str) -> list[Request]:
    """Return the requests in order: long ones spread evenly, of the others every second one streamed."""
    every = round(1 / long_share) if long_share else 0
    made = []
    for place in range(number):
        is_long = bool(every) and place % every == every // 2
        kind = "long" if is_long else ("stream", "plain")[place % 2]
        made.append(Request(f"{run}-{place}", kind, long_tokens if is_long else tokens))
    return made


async def ask(client: httpx.AsyncClient, request: Request, model: str, usage: bool) -> None:
    """Send one request and log its outcome."""
    body: dict[str, Any] = {
        "model": model,
        "user": request.id,
        "messages": [{"role": "user", "content": PROMPT.format(identity=request.id)}],
        "max_tokens": request.asked,
        "ignore_eos": True,
        "stream": request.stream,
    }
    if usage and request.stream:
        body["stream_options"] = {"include_usage": True}
    request.sent = time.time()
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            request.status = answer.status_code
            if answer.status_code == 200:
                request.fate = "truncated"
                if await (streamed(answer, request) if request.stream else plain(answer, request)):
                    request.fate = "whole"
            else:
                await answer.aread()
                request.fate = "refused" if answer.status_code in {429, 503} else "failed"
                request.error = answer.text[:200]
    except (httpx.HTTPError, ValueError, LookupError) as error:  # no answer, or an unreadable one
        request.error = f"{type(error).__name__}: {error}"
    request.ended = time.time()


async def streamed(answer: httpx.Response, request: Request) -> bool:
    """Read a stream; return whether it was complete.

    A gateway may join chunks (smg 1.13 does, up to twenty): the received words are counted, which are the
    simulated engine's tokens. A real engine sends fewer words than tokens, and their number at the end, if
    requested.
    """
    done = finished = False
    counted: int | None = None
    async for line in answer.aiter_lines():
        if not line.startswith("data: "):
            continue
        request.first = request.first or time.time()
        if line == "data: [DONE]":
            done = True
            continue
        piece = json.loads(line.removeprefix("data: "))
        if "error" in piece:
            request.error = line[:200]
            return False
        counted = (piece.get("usage") or {}).get("completion_tokens", counted)
        for choice in piece["choices"]:
            request.got += len(((choice.get("delta") or {}).get("content") or "").split())
            finished = finished or choice.get("finish_reason") == "length"
    request.got = request.got if counted is None else counted
    return done and finished and request.got >= request.asked


async def plain(answer: httpx.Response, request: Request) -> bool:
    """Read a whole answer; return whether it is one."""
    body = json.loads(await answer.aread())
    request.first = time.time()
    request.got = body["usage"]["completion_tokens"]
    return bool(body["choices"][0]["finish_reason"]) and request.got >= request.asked


async def drive(requests: Sequence[Request], arguments: argparse.Namespace) -> list[Request]:
    """Send them on schedule until SIGTERM, and append each to the log as it ends; return those that were
    sent.
    """
    key = arguments.key_file.read_text(encoding="ascii").strip() if arguments.key_file else None
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    client = httpx.AsyncClient(
        base_url=arguments.url, headers=headers, timeout=arguments.timeout, limits=limits, trust_env=False
    )
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    sent: list[Request] = []
    start = time.monotonic()
    with arguments.log.open("w", encoding="utf-8") as log:

        async def one(request: Request) -> None:
            await ask(client, request, arguments.model, arguments.usage)
            log.write(json.dumps(asdict(request)) + "\n")
            log.flush()

        async with client, asyncio.TaskGroup() as group:
            for place, request in enumerate(requests):
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), start + place / arguments.rate - time.monotonic())
                if stop.is_set():
                    break
                sent.append(request)
                group.create_task(one(request))
    return sent


def summary(requests: Iterable[Request]) -> dict[str, Any]:
    """Count outcomes and measure clients' waiting times."""
    requests = list(requests)
    whole = [request for request in requests if request.fate == "whole"]
    waits = sorted((request.first or request.ended) - request.sent for request in whole)
    fates = Counter(request.fate for request in requests)
    return {
        "requests": len(requests),
        **{fate: fates[fate] for fate in ("whole", "truncated", "refused", "failed")},
        "seconds": round(max(r.ended for r in requests) - min(r.sent for r in requests), 1),
        "first_byte_median": round(statistics.median(waits), 3) if waits else None,
        "first_byte_p99": round(waits[int(0.99 * (len(waits) - 1))], 3) if waits else None,
        "errors": sorted({f"{request.status}: {request.error}" for request in requests if request.error})[:5],
    }


def reconcile(client: Path, servers: Sequence[Path]) -> list[str]:
    """Return a line for each request on which client and servers disagree.

    A request that is whole for the client must be whole on exactly one server; one that a server answered
    whole must be known to the client; a request must not run on two servers unless the first refused it.
    """
    wrong = []
    seen: dict[str, list[str]] = defaultdict(list)
    for path in servers:
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if entry["event"] in {"received", "whole", "refused", "aborted"}:
                seen[entry["id"]].append(entry["event"])
    asked = {entry["id"]: entry for entry in map(json.loads, client.read_text(encoding="utf-8").splitlines())}
    runs = {identity.rpartition("-")[0] for identity in asked}
    for identity in sorted(seen):
        if identity.rpartition("-")[0] in runs and identity not in asked:
            wrong.append(f"{identity}: seen by a server, missing in the client's log")
    for identity, entry in asked.items():
        events = Counter(seen[identity])
        ends = events["whole"] + events["refused"] + events["aborted"]
        if events["received"] != ends:
            wrong.append(f"{identity}: received {events['received']} times, ended {ends} times")
        if entry["fate"] == "whole" and (events["whole"], events["aborted"]) != (1, 0):
            wrong.append(f"{identity}: complete for the client, on servers {dict(events)}")
        if entry["fate"] != "whole" and events["whole"]:
            wrong.append(f"{identity}: {entry['fate']} for the client, complete on a server")
    return wrong


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    top = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    verbs = top.add_subparsers(dest="verb")
    run = verbs.add_parser("run", help="send the load")
    run.add_argument("--url", required=True)
    run.add_argument("--model", required=True)
    run.add_argument("--key-file", type=Path)
    run.add_argument("--rate", type=float, default=20.0, help="requests per second")
    run.add_argument("--requests", type=int, default=2000)
    run.add_argument("--tokens", type=int, default=20)
    run.add_argument("--long-tokens", type=int, default=1000)
    run.add_argument("--long-share", type=float, default=0.05)
    run.add_argument("--timeout", type=float, default=600.0, help="seconds without a byte")
    run.add_argument("--log", type=Path, required=True)
    run.add_argument("--name", default=f"load-{int(time.time())}", help="prefix of every request's id")
    run.add_argument(
        "--usage", action="store_true", help="count a stream's tokens by the engine's usage field"
    )
    run.add_argument("--may-refuse", action="store_true", help="429 and 503 do not fail this run")
    compare = verbs.add_parser("reconcile", help="compare with the servers' logs")
    compare.add_argument("--log", type=Path, required=True)
    compare.add_argument("servers", type=Path, nargs="+")
    return top


def main() -> int:
    """Run one of the two; return its exit status."""
    arguments = parser().parse_args()
    if arguments.verb is None:
        print("a tool of other benchmarks: 'run' needs an endpoint, see --help")
        return 0
    if arguments.verb == "reconcile":
        wrong = reconcile(arguments.log, arguments.servers)
        print("\n".join(wrong) or "client and servers agree on every request")
        return 1 if wrong else 0
    requests = plan(
        arguments.requests, arguments.tokens, arguments.long_tokens, arguments.long_share, arguments.name
    )
    said = summary(asyncio.run(drive(requests, arguments)))
    print(json.dumps(said))
    return 1 if said["failed"] or said["truncated"] or (said["refused"] and not arguments.may_refuse) else 0


if __name__ == "__main__":
    sys.exit(main())

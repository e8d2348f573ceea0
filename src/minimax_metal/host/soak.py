"""``metal soak``: whether a replica works as well as before, by its own metrics.

``figures`` prints the engine's counters since its start: answers and failed ones (HTTP 5xx, aborted), mean
seconds to the first token and between tokens. ``watch`` reads them for a while, takes the difference, and
compares it with the same host's before the change and, if given, with those of the previous batch, which
already has the release; its last line is the result as JSON. ``trial`` sends its own requests to a replica
that gets no others, so that one that fails under load fails before clients use it.

The metrics are those of SGLang's ``/metrics``: ``sglang:http_responses_total`` (``http_request_metrics.py``,
0.5.23), ``sglang:num_aborted_requests_total``, ``sglang:time_to_first_token_seconds`` and
``sglang:inter_token_latency_seconds`` (``metrics_collector.py``).

Exit status: 0 as well as before; 1 worse, with the reason; 2 usage, or metrics that can't be read at the
start.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import sys
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.errors import UserError
from minimax_metal.common.metrics import MOST, samples
from minimax_metal.common.web import fetch
from minimax_metal.host.engine.health import ask, context_for

PAUSE_SECONDS: Final = 2.0
TIMEOUT_SECONDS: Final = 20.0
ANSWER_BYTES: Final = 8 << 20
"""Maximum bytes of the answer to a trial request."""
LEAVE_SECONDS: Final = 0.05
"""Latencies that differ by less than this are equal: a mean over few requests is no more precise."""
FEW_FAILURES: Final = 2
"""Minimum number of failed answers for an error rate; a single one may be a client's doing."""

_ANSWERS: Final = "/v1/"


class WorseError(UserError):
    """The replica works worse than before."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Counters: answers to clients, failed ones, and the latencies' sums in seconds with their counts."""

    answers: float = 0.0
    failures: float = 0.0
    first_sum: float = 0.0
    first_count: float = 0.0
    between_sum: float = 0.0
    between_count: float = 0.0

    def since(self, before: Figures) -> Figures:
        """Return the counts since ``before``; all of it if a counter restarted."""
        mine, theirs = asdict(self), asdict(before)
        if any(mine[name] < theirs[name] for name in mine):
            return self
        return Figures(**{name: mine[name] - theirs[name] for name in mine})

    def plus(self, other: Figures) -> Figures:
        """Return the sum of both."""
        mine, theirs = asdict(self), asdict(other)
        return Figures(**{name: mine[name] + theirs[name] for name in mine})

    @property
    def failed_share(self) -> float:
        """Share of failed answers."""
        return self.failures / self.answers if self.answers else 0.0

    @property
    def first(self) -> float | None:
        """Mean seconds to the first token."""
        return self.first_sum / self.first_count if self.first_count else None

    @property
    def between(self) -> float | None:
        """Mean seconds between tokens."""
        return self.between_sum / self.between_count if self.between_count else None

    def words(self) -> str:
        """Return them as text."""
        parts = [f"{self.answers:.0f} answers, {self.failures:.0f} failed"]
        if self.first is not None:
            parts.append(f"first token after {self.first:.2f} s")
        if self.between is not None:
            parts.append(f"{self.between * 1000:.0f} ms between tokens")
        return ", ".join(parts)


def parse(text: str) -> Figures | None:
    """Return the metrics of a scrape; None if it lacks the engine's."""
    sums: dict[str, float] = {}
    found = False
    for name, labels, value in samples(text, "sglang:"):
        found = True
        if name == "sglang:http_responses_total":
            # Clients' requests; gateways and drains often read /v1/models and /v1/loads with GET.
            if f'endpoint="{_ANSWERS}' in labels and 'method="POST"' in labels:
                sums["answers"] = sums.get("answers", 0.0) + value
                if 'status_code="5' in labels:
                    sums["failures"] = sums.get("failures", 0.0) + value
        else:
            sums[name] = sums.get(name, 0.0) + value
    if not found:
        return None
    return Figures(
        answers=sums.get("answers", sums.get("sglang:num_requests_total", 0.0)),
        failures=sums.get("failures", 0.0) + sums.get("sglang:num_aborted_requests_total", 0.0),
        first_sum=sums.get("sglang:time_to_first_token_seconds_sum", 0.0),
        first_count=sums.get("sglang:time_to_first_token_seconds_count", 0.0),
        between_sum=sums.get("sglang:inter_token_latency_seconds_sum", 0.0),
        between_count=sums.get("sglang:inter_token_latency_seconds_count", 0.0),
    )


def worse(
    now: Figures,
    before: Figures | None,
    errors: float,
    latency: float,
    requests: int,
    where: str = "before",
) -> str | None:
    """Return how a replica works worse than before; None if it does not.

    Args:
        now: counters since the change.
        before: counters before it; None on a host that served nothing.
        errors: allowed increase of the share of failed answers.
        latency: allowed factor for the time to the first token, and for the inter-token latency.
        requests: answers needed, then and now, to compare latencies.
        where: what it is compared with, in words.
    """
    allowed = (before.failed_share if before else 0.0) + errors
    if now.failures >= FEW_FAILURES and now.failed_share > allowed:
        return (
            f"found {now.failures:.0f} of {now.answers:.0f} answers failed, expected at most {allowed:.1%}, "
            f"{f'as {where}' if before else 'the limit'} (metal_rollout_soak_errors)"
        )
    if before is None or now.answers < requests or before.answers < requests:
        return None
    for what, mine, theirs in (
        ("the first token", now.first, before.first),
        ("the inter-token latency", now.between, before.between),
    ):
        if (
            mine is not None
            and theirs is not None
            and mine > theirs * latency
            and mine - theirs > LEAVE_SECONDS
        ):
            return (
                f"found {what} at {mine:.3f} s, {theirs:.3f} s {where}, expected at most {latency:g} "
                "times as long (metal_rollout_soak_latency)"
            )
    return None


def scrape(url: str) -> Figures | None:
    """Return an endpoint's current counters; None if it reports none."""
    status, text = ask(urllib.parse.urljoin(url, "/metrics"), TIMEOUT_SECONDS)
    return parse(text) if status == "200" else None


def watch(
    url: str, before: Figures | None, batch: Figures | None, arguments: argparse.Namespace
) -> tuple[str, Figures]:
    """Watch a replica for a while; return the result, in words and as counters.

    Args:
        url: of the replica.
        before: its counters before the change; None if it served nothing.
        batch: the previous batch's counters on this release; None if there was none like it.
        arguments: duration and limits.

    Raises:
        WorseError: it works worse than before, or no longer answers.
        UserError: it reports no metrics at the start.
    """
    began = time.monotonic()
    start = scrape(url)
    if start is None:
        raise UserError(f"found no metrics at {url}/metrics, expected the engine's (metal_metrics)")
    now = Figures()
    silent = 0
    while (left := arguments.seconds - (time.monotonic() - began)) > 0:
        time.sleep(min(PAUSE_SECONDS, left))
        found = scrape(url)
        silent = 0 if found else silent + 1
        if silent >= 3:
            raise WorseError(f"found no answer from {url} three times in a row, expected its metrics")
        if found is None:
            continue
        now = found.since(start)
        for earlier, where in ((before, "before"), (batch, "in the previous batch")):
            if earlier is None and where != "before":
                continue
            limits = (arguments.errors, arguments.latency, arguments.requests)
            if reason := worse(now, earlier, *limits, where):
                raise WorseError(reason)
    said = f"{now.words()} in {time.monotonic() - began:.0f} s"
    if before is not None and min(now.answers, before.answers) < arguments.requests:
        said += f"; too few to compare latencies ({arguments.requests} are needed)"
    elif before is not None:
        said += f"; before: {before.words()}"
    if batch is not None:
        said += f"; the previous batch: {batch.words()}"
    return said, now


def trial(url: str, arguments: argparse.Namespace) -> str:
    """Send concurrent requests; return the result.

    Raises:
        WorseError: one was not answered with 200 and a complete document.
    """
    key = arguments.api_key_file.read_text(encoding="utf-8").strip() if arguments.api_key_file else ""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    context = context_for(url)

    def one(number: int) -> str:
        body = {
            "model": arguments.model,
            "messages": [{"role": "user", "content": f"Count to {number + 3}."}],
            "max_tokens": arguments.tokens,
        }
        try:
            status, content = fetch(
                urllib.parse.urljoin(url, "/v1/chat/completions"),
                seconds=arguments.timeout,
                limit=ANSWER_BYTES,
                headers=headers,
                body=json.dumps(body).encode(),
                context=context,
            )
            if status != 200:
                return f"HTTP {status}"
            read_json(content)
        except (OSError, ValueError) as error:
            return type(error).__name__
        return ""

    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(arguments.concurrency) as pool:
        said = [text for text in pool.map(one, range(arguments.count)) if text]
    if said:
        kinds = ", ".join(sorted(set(said)))
        raise WorseError(
            f"found {len(said)} of {arguments.count} trial requests failed ({kinds}), "
            f"{arguments.concurrency} at once; expected none, before clients send theirs "
            "(metal_rollout_trial_requests)"
        )
    took = time.monotonic() - began
    return f"{arguments.count} trial requests, {arguments.concurrency} at once, in {took:.0f} s"


def said(text: Any) -> Figures | None:
    """Return the counters that a host printed; None if it printed something else."""
    try:
        return figures_of(read_json(text) if isinstance(text, str) else None)
    except (ValueError, TypeError):
        return None


def figures_of(raw: Any) -> Figures | None:
    """Parse counters as ``metal soak figures`` prints them; None for null.

    Raises:
        TypeError: they are something else.
    """
    if not raw:
        return None
    figures = Figures(**raw)
    for name, value in asdict(figures).items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST:
            raise TypeError(f"{name} is not a count")
    return figures


def read_earlier(text: str) -> tuple[Figures | None, Figures | None]:
    """Return the earlier counters of an input: the host's own, and the previous batch's.

    Raises:
        UserError: it is something else.
    """
    try:
        found: Mapping[str, Mapping[str, Any] | None] = (read_json(text) if text.strip() else None) or {}
        before, batch = found.get("before"), found.get("batch")
        return figures_of(before), figures_of(batch)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            'found no earlier metrics in the input, expected {"before": FIGURES, "batch": '
            "FIGURES}, each as metal soak figures prints them, or null"
        ) from error


def main(argv: list[str]) -> int:
    """Run ``metal soak``; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="metal soak", description="Check that a replica works as well as before."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    reading = verbs.add_parser("figures", help="print the counters since the start; null if nothing answers")
    watching = verbs.add_parser(
        "watch", help="watch it for a while; earlier metrics come from standard input"
    )
    watching.add_argument("--seconds", type=float, required=True)
    watching.add_argument(
        "--errors", type=float, default=0.01, help="highest share of failures; default: %(default)s"
    )
    watching.add_argument(
        "--latency",
        type=float,
        default=2.0,
        help="highest ratio to the earlier latency; default: %(default)s",
    )
    watching.add_argument(
        "--requests", type=int, default=20, help="answers needed to compare latencies; default: %(default)s"
    )
    trying = verbs.add_parser("trial", help="send many requests of our own at once")
    trying.add_argument("--model", required=True)
    trying.add_argument("--api-key-file", type=Path)
    trying.add_argument("--count", type=int, default=64, help="default: %(default)s")
    trying.add_argument("--concurrency", type=int, default=16, help="default: %(default)s")
    trying.add_argument("--tokens", type=int, default=8, help="tokens per answer; default: %(default)s")
    trying.add_argument(
        "--timeout", type=float, default=300.0, help="seconds per request; default: %(default)s"
    )
    for verb in (reading, watching, trying):
        verb.add_argument("url", help="such as http://127.0.0.1:8000")
    arguments = parser.parse_args(argv)
    url = arguments.url.rstrip("/")
    try:
        if arguments.verb == "figures":
            found = scrape(url)
            print(json.dumps(asdict(found) if found else None))
        elif arguments.verb == "watch":
            said, seen = watch(url, *read_earlier(sys.stdin.read()), arguments)
            print(said)
            print(json.dumps(asdict(seen)))
        else:
            print(trial(url, arguments))
    except WorseError as error:
        print(error)
        return 1
    return 0

"""``metal soak``: whether a replica does its work as well as before, by its own figures.

``figures`` prints what the engine has counted since its start: answers and those that failed (HTTP 5xx,
aborted), mean seconds to the first token and between tokens. ``watch`` reads them for a while, takes the
difference, and compares it with those of the same host before the change and, where they are given, with
those of the batch before, which has the release already; its last line is what it counted, as JSON.
``trial`` sends requests of its own to a replica that gets no
others, so that one that fails under load fails before clients meet it.

Figures are those of SGLang's ``/metrics``: ``sglang:http_responses_total`` (``http_request_metrics.py``,
0.5.23), ``sglang:num_aborted_requests_total``, ``sglang:time_to_first_token_seconds`` and
``sglang:inter_token_latency_seconds`` (``metrics_collector.py``).

Exit status: 0 as well as before; 1 worse, with the reason; 2 usage, or figures that can't be read at the
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
"""Of the answer to a trial request at most."""
LEAVE_SECONDS: Final = 0.05
"""Latencies that differ by less than this are the same: a mean over few requests is no better than that."""
FEW_FAILURES: Final = 2
"""So many failed answers at least make an error rate; one may be a client's doing."""

_ANSWERS: Final = "/v1/"


class WorseError(UserError):
    """The replica does worse than before."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What was counted: answers to clients, failed ones, and the latencies' sums in seconds with their
    counts."""

    answers: float = 0.0
    failures: float = 0.0
    first_sum: float = 0.0
    first_count: float = 0.0
    between_sum: float = 0.0
    between_count: float = 0.0

    def since(self, before: Figures) -> Figures:
        """Return what was counted after ``before``; all of it where a counter began anew."""
        mine, theirs = asdict(self), asdict(before)
        if any(mine[name] < theirs[name] for name in mine):
            return self
        return Figures(**{name: mine[name] - theirs[name] for name in mine})

    def plus(self, other: Figures) -> Figures:
        """Return what both counted together."""
        mine, theirs = asdict(self), asdict(other)
        return Figures(**{name: mine[name] + theirs[name] for name in mine})

    @property
    def failed_share(self) -> float:
        """Failed answers as a share of all."""
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
        """Return them for people."""
        parts = [f"{self.answers:.0f} answers, {self.failures:.0f} failed"]
        if self.first is not None:
            parts.append(f"first token after {self.first:.2f} s")
        if self.between is not None:
            parts.append(f"{self.between * 1000:.0f} ms between tokens")
        return ", ".join(parts)


def parse(text: str) -> Figures | None:
    """Return the figures of a scrape; None where it holds none of the engine's."""
    sums: dict[str, float] = {}
    found = False
    for name, labels, value in samples(text, "sglang:"):
        found = True
        if name == "sglang:http_responses_total":
            # What clients send; gateways and drains look at /v1/models and /v1/loads with GET, often.
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
    """Return in what a replica does worse than before; None when in nothing that counts.

    Args:
        now: what was counted since the change.
        before: what was counted before it; None on a host that served nothing.
        errors: how much larger the share of failed answers may be.
        latency: how many times as long the first token, and the one after another, may take.
        requests: answers that are needed, then and now, to compare latencies.
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
        ("a token after another", now.between, before.between),
    ):
        if (
            mine is not None
            and theirs is not None
            and mine > theirs * latency
            and mine - theirs > LEAVE_SECONDS
        ):
            return (
                f"found {what} after {mine:.3f} s, {theirs:.3f} s {where}, expected at most "
                f"{latency:g} times as long (metal_rollout_soak_latency)"
            )
    return None


def scrape(url: str) -> Figures | None:
    """Return the figures of an endpoint now; None where it does not answer with any."""
    status, text = ask(urllib.parse.urljoin(url, "/metrics"), TIMEOUT_SECONDS)
    return parse(text) if status == "200" else None


def watch(
    url: str, before: Figures | None, batch: Figures | None, arguments: argparse.Namespace
) -> tuple[str, Figures]:
    """Look at a replica for a while; return what was seen, in words and in figures.

    Args:
        url: of the replica.
        before: what it had counted before the change; None where it served nothing.
        batch: what the batch before counted on this release; None where there was none like it.
        arguments: how long, and what counts as worse.

    Raises:
        WorseError: it does worse than before, or does not answer any more.
        UserError: it shows no figures at the start.
    """
    began = time.monotonic()
    start = scrape(url)
    if start is None:
        raise UserError(f"found no figures at {url}/metrics, expected those of the engine (metal_metrics)")
    now = Figures()
    silent = 0
    while (left := arguments.seconds - (time.monotonic() - began)) > 0:
        time.sleep(min(PAUSE_SECONDS, left))
        found = scrape(url)
        silent = 0 if found else silent + 1
        if silent >= 3:
            raise WorseError(f"found no answer from {url} three times in a row, expected its figures")
        if found is None:
            continue
        now = found.since(start)
        for earlier, where in ((before, "before"), (batch, "in the batch before")):
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
        said += f"; the batch before: {batch.words()}"
    return said, now


def trial(url: str, arguments: argparse.Namespace) -> str:
    """Send requests, many at once; return what was seen.

    Raises:
        WorseError: one was not answered with 200 and a whole document.
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
            f"{arguments.concurrency} at once; "
            "expected none, before clients send theirs (metal_rollout_trial_requests)"
        )
    took = time.monotonic() - began
    return f"{arguments.count} trial requests, {arguments.concurrency} at once, in {took:.0f} s"


def said(text: Any) -> Figures | None:
    """Return the figures that a host printed; None where it printed something else."""
    try:
        return figures_of(read_json(text) if isinstance(text, str) else None)
    except (ValueError, TypeError):
        return None


def figures_of(raw: Any) -> Figures | None:
    """Read figures as ``metal soak figures`` prints them; None for null.

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
    """Return the earlier figures of an input: those of the host before, and those of the batch before.

    Raises:
        UserError: it is something else.
    """
    try:
        found: Mapping[str, Mapping[str, Any] | None] = (read_json(text) if text.strip() else None) or {}
        before, batch = found.get("before"), found.get("batch")
        return figures_of(before), figures_of(batch)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            'found no earlier figures in the input, expected {"before": FIGURES, "batch": FIGURES}, each as '
            "metal soak figures prints them, or null"
        ) from error


def main(argv: list[str]) -> int:
    """Run ``metal soak``; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="metal soak", description="Whether a replica does as well as before."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    reading = verbs.add_parser(
        "figures", help="print what was counted since the start; null where nothing answers"
    )
    watching = verbs.add_parser(
        "watch", help="look at it for a while; earlier figures come by standard input"
    )
    watching.add_argument("--seconds", type=float, required=True)
    watching.add_argument(
        "--errors", type=float, default=0.01, help="larger share of failures; default: %(default)s"
    )
    watching.add_argument("--latency", type=float, default=2.0, help="times as long; default: %(default)s")
    watching.add_argument(
        "--requests", type=int, default=20, help="answers to compare by; default: %(default)s"
    )
    trying = verbs.add_parser("trial", help="send requests of our own, many at once")
    trying.add_argument("--model", required=True)
    trying.add_argument("--api-key-file", type=Path)
    trying.add_argument("--count", type=int, default=64, help="default: %(default)s")
    trying.add_argument("--concurrency", type=int, default=16, help="default: %(default)s")
    trying.add_argument("--tokens", type=int, default=8, help="of each answer; default: %(default)s")
    trying.add_argument("--timeout", type=float, default=300.0, help="seconds of each; default: %(default)s")
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

"""``metal check URL --model NAME``: test an endpoint.

Exit status: 0 no check failed; 1 a check failed; 2 nothing answers at the URL, or usage.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from minimax_metal.common.errors import UserError

if TYPE_CHECKING:
    from minimax_metal.host.check.context import Options
    from minimax_metal.host.check.report import Report

EXIT_FAILED: Final = 1
EXIT_UNREACHABLE: Final = 2
KEY_VARIABLE: Final = "METAL_API_KEY"


def main(argv: list[str]) -> int:
    """Run ``metal check``; return its exit status."""
    if "--list" in argv:
        return _list()
    arguments = _parser().parse_args(argv)
    _check_usage(arguments)
    key = _key(arguments.api_key_file)
    # Imported here: the clients take a second.
    from minimax_metal.host.check import suite
    from minimax_metal.host.check.context import Context
    from minimax_metal.host.check.endpoint import Endpoint
    from minimax_metal.host.check.outcome import UnreachableError

    for pattern in (*arguments.only, *arguments.skip):
        if not any(suite.selected(check.name, [pattern], []) for check in suite.CHECKS):
            names = ", ".join(check.name for check in suite.CHECKS)
            raise UserError(f"no check is named {pattern!r}; expected some of {names}")
    try:
        endpoint = Endpoint(arguments.url, arguments.model, key, arguments.timeout, arguments.ca_file)
    except OSError as error:
        raise UserError(
            f"can't read certificates from {arguments.ca_file}: {error.strerror or error}; pass a PEM file"
        ) from error
    if arguments.identity and key:
        _see_that_it_is_the_engine(endpoint.url, arguments.identity, key, arguments.ca_file)
    try:
        report = suite.run(Context(endpoint, _options(arguments)), only=arguments.only, skip=arguments.skip)
    except UnreachableError as error:
        said = str(error).replace(key or "\0", "[key]")
        print(
            f"metal check: nothing answers at {endpoint.url}: {said}; run systemctl status 'sglang@*' there",
            file=sys.stderr,
        )
        return EXIT_UNREACHABLE
    finally:
        endpoint.close()
    _write(report, arguments.report, arguments.junit)
    if arguments.json:
        print(report.as_json(), end="")
    else:
        report.print(sys.stdout)
    return 0 if report.passed else EXIT_FAILED


def _see_that_it_is_the_engine(url: str, identity: str, key: str, ca_file: Path | None) -> None:
    """Send no key to another program that uses the port.

    Raises:
        UserError: the server can't prove to be the engine.
    """
    from minimax_metal.host.gateway.client import Web
    from minimax_metal.host.gateway.identity import Examiner, Seen

    if Examiner(key, Web(None, ca_file)).ask(url, identity) is Seen.FOREIGN:
        raise UserError(
            f"{url}: the server there is not the engine of {identity}, or has another key; expected "
            "its proof at /metal/identity; no key was sent; find the program with ss -ltnp"
        )


def _list() -> int:
    from minimax_metal.host.check import suite

    for check in suite.CHECKS:
        print(f"{check.name:<22}{check.about}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="metal check",
        description="Test an endpoint with the calls of the deployment guides and the openai and anthropic "
        "clients.",
        epilog="Exit status: 0 passed; 1 a check failed; 2 not reachable, or usage. The key is read from "
        f"the environment ({KEY_VARIABLE}) or from --api-key-file. docs/check.md describes each "
        "check.",
    )
    parser.add_argument("url", metavar="URL", help="http://host:port, with or without /v1")
    parser.add_argument("--model", required=True, help="the served name, e.g. MiniMaxAI/MiniMax-M2.5")
    image = parser.add_mutually_exclusive_group()
    image.add_argument("--image", action="store_true", help="the model accepts images: ask for three colours")
    image.add_argument(
        "--image-refused", action="store_true", help="the model accepts no images: expect a 4xx"
    )
    parser.add_argument(
        "--reasoning-parser",
        metavar="NAME",
        help="the expected reasoning parser; default: the one the engine reports",
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="run only these checks; * is a wildcard"
    )
    parser.add_argument("--skip", action="append", default=[], metavar="NAME", help="skip these checks")
    parser.add_argument("--list", action="store_true", help="list the checks; needs no URL")

    request = parser.add_argument_group("requests")
    request.add_argument("--timeout", type=_seconds, default=300.0, help="seconds per request (%(default)s)")
    request.add_argument(
        "--max-tokens", type=_count, default=2048, help="per answer, including reasoning (%(default)s)"
    )
    request.add_argument(
        "--always-reasons",
        action="store_true",
        help="the model's reasoning can't be turned off: allow each answer at least 256 tokens",
    )
    request.add_argument(
        "--reasoning-efforts",
        type=_words,
        default=(),
        metavar="A,B",
        help="values of reasoning_effort that the model supports, lowest first: each is tried",
    )
    request.add_argument("--api-key-file", type=Path, metavar="FILE", help="file with the API key")
    request.add_argument(
        "--identity",
        metavar="URL",
        help="address under which gateways know the engine: it must prove its identity before it gets the "
        "key",
    )
    request.add_argument(
        "--ca-file", type=Path, metavar="FILE", help="CA certificates to trust for an https URL"
    )

    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--limit-tokens", type=_count, metavar="N", help="longest sequence; default: the endpoint's own value"
    )
    limits.add_argument(
        "--long-prompt-share",
        type=_share,
        default=0.5,
        metavar="SHARE",
        help="length of the long prompt as a share of the limit; 0 skips it (%(default)s)",
    )
    limits.add_argument(
        "--concurrency", type=_count, default=8, metavar="N", help="concurrent requests (%(default)s)"
    )
    limits.add_argument(
        "--abort-seconds",
        type=_seconds,
        default=15.0,
        metavar="S",
        help="seconds until the slot of a disconnected client must be free (%(default)s)",
    )
    limits.add_argument("--metrics", action="store_true", help="require /metrics")

    figures = parser.add_argument_group("figures")
    figures.add_argument(
        "--figures",
        type=_levels,
        default=(1, 4),
        metavar="N,N",
        help="measure with these numbers of concurrent streams, or none (1,4)",
    )
    figures.add_argument(
        "--figure-tokens", type=_count, default=32, metavar="N", help="per stream (%(default)s)"
    )
    figures.add_argument("--bench", action="store_true", help="also run SGLang's bench_serving")
    figures.add_argument(
        "--bench-python", type=Path, metavar="PATH", help="bin/python of the engine's environment"
    )
    figures.add_argument("--bench-tokenizer", metavar="PATH", help="default: the engine's own")
    for name, default in (("prompts", 32), ("input-tokens", 256), ("output-tokens", 64), ("concurrency", 8)):
        figures.add_argument(f"--bench-{name}", type=_count, default=default, metavar="N", help="%(default)s")
    figures.add_argument(
        "--bench-timeout", type=_seconds, default=1800.0, metavar="S", help="%(default)s seconds"
    )

    output = parser.add_argument_group("output")
    output.add_argument("--report", type=Path, metavar="FILE", help="write the report as JSON")
    output.add_argument("--junit", type=Path, metavar="FILE", help="write the report as JUnit XML")
    output.add_argument("--json", action="store_true", help="print the report as JSON instead of a table")
    return parser


def _words(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected values separated by commas: low,high")
    return words


def _options(arguments: argparse.Namespace) -> Options:
    from minimax_metal.host.check.context import Options

    return Options(
        image="accepted" if arguments.image else "refused" if arguments.image_refused else "ask",
        max_tokens=arguments.max_tokens,
        # "auto" lets the engine choose; it then reports its choice.
        reasoning_parser=None if arguments.reasoning_parser == "auto" else arguments.reasoning_parser,
        always_reasons=arguments.always_reasons,
        efforts=arguments.reasoning_efforts,
        limit_tokens=arguments.limit_tokens,
        long_prompt_share=arguments.long_prompt_share,
        concurrency=arguments.concurrency,
        figure_levels=arguments.figures,
        figure_tokens=arguments.figure_tokens,
        metrics_required=arguments.metrics,
        abort_seconds=arguments.abort_seconds,
        bench=arguments.bench,
        bench_python=arguments.bench_python,
        bench_prompts=arguments.bench_prompts,
        bench_input_tokens=arguments.bench_input_tokens,
        bench_output_tokens=arguments.bench_output_tokens,
        bench_concurrency=arguments.bench_concurrency,
        bench_tokenizer=arguments.bench_tokenizer,
        bench_timeout=arguments.bench_timeout,
    )


def _check_usage(arguments: argparse.Namespace) -> None:
    """Raise for an invalid URL and for options that need one another."""
    try:
        parts = urlsplit(arguments.url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UserError(f"{arguments.url!r} is not the URL of an endpoint; write it like http://gpu01:8000")
    if parts.username is not None or parts.query or parts.fragment:
        # Not repeated in the message: it may contain a password.
        raise UserError(
            f"the URL of {parts.hostname} contains more than host, port and path; pass the key in "
            f"{KEY_VARIABLE} or --api-key-file"
        )
    if arguments.bench and arguments.bench_python is None:
        raise UserError(
            "--bench needs --bench-python; expected bin/python of the engine's environment, such as "
            "/opt/sglang/*/bin/python on a host"
        )


def _write(report: Report, json_file: Path | None, junit_file: Path | None) -> None:
    from minimax_metal.host.check.report import Report

    for file, form in ((json_file, Report.as_json), (junit_file, Report.as_junit)):
        if file is None:
            continue
        try:
            report.write(file, form)
        except OSError as error:
            raise UserError(f"can't write the report {file}: {error.strerror}; name another file") from error


def _key(file: Path | None) -> str | None:
    """Return the key from the file, or from the environment, or None."""
    if file is None:
        key, where = os.environ.get(KEY_VARIABLE, ""), KEY_VARIABLE
        # The guides' value for "no key".
        if key in {"", "EMPTY"}:
            return None
    else:
        try:
            key, where = file.read_text(encoding="utf-8").strip(), str(file)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise UserError(f"can't read the key file {file}: {reason}; pass a readable one") from error
    if not key or not all("!" <= character <= "~" for character in key):
        raise UserError(
            f"{where} contains no key: expected one line of visible ASCII characters without spaces"
        )
    return key


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a time in seconds")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def _levels(text: str) -> tuple[int, ...]:
    if text == "none":
        return ()
    return tuple(_count(part) for part in text.split(","))

"""``metal check URL --model NAME``: prove an endpoint.

Exit status: 0 no check failed; 1 a check failed; 2 nothing answers at the URL, or usage.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Final

from minimax_metal.errors import UserError

EXIT_FAILED: Final = 1
EXIT_UNREACHABLE: Final = 2


def main(argv: list[str]) -> int:
    """Run ``metal check``; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="metal check",
        description="Prove an endpoint with the calls of the deployment guides and the openai client.",
        epilog="Exit status: 0 passed; 1 a check failed; 2 not reachable, or usage. The key is read from the "
        "environment (METAL_API_KEY) or from --api-key-file.",
    )
    parser.add_argument("url", metavar="URL", help="http://host:port, with or without /v1")
    parser.add_argument("--model", required=True, help="the served name, e.g. MiniMaxAI/MiniMax-M2.5")
    image = parser.add_mutually_exclusive_group()
    image.add_argument("--image", action="store_true", help="the model takes images: name three colours")
    image.add_argument("--image-refused", action="store_true", help="the model takes none: expect a 4xx")
    parser.add_argument("--tool-choice", choices=("auto", "required", "named"), default="auto")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the report as JSON")
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of a table")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds per request (%(default)s)")
    parser.add_argument(
        "--max-tokens", type=int, default=2048, help="per answer, thoughts included (%(default)s)"
    )
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="file that holds the key")
    arguments = parser.parse_args(argv)
    if not arguments.url.startswith(("http://", "https://")):
        raise UserError(f"{arguments.url!r} is no URL of an endpoint; write it like http://gpu01:8000")

    from minimax_metal.checks import suite

    client, url = suite.connect(arguments.url, _key(arguments.api_key_file), arguments.timeout)
    context = suite.Context(
        client,
        arguments.model,
        image="accepted" if arguments.image else "refused" if arguments.image_refused else "skip",
        tool_choice=arguments.tool_choice,
        max_tokens=arguments.max_tokens,
    )
    try:
        report = suite.run(context, url)
    except suite.UnreachableError as error:
        print(
            f"metal check: nothing answers at {url}: {error}; systemctl status 'sglang@*' there",
            file=sys.stderr,
        )
        return EXIT_UNREACHABLE
    finally:
        client.close()
    if arguments.report is not None:
        try:
            report.write(arguments.report)
        except OSError as error:
            raise UserError(
                f"cannot write the report {arguments.report}: {error.strerror}; name another file"
            ) from error
    if arguments.json:
        print(report.as_json(), end="")
    else:
        report.print(sys.stdout)
    return 0 if report.passed else EXIT_FAILED


def _key(file: Path | None) -> str:
    """Return the key: from the file, from ``METAL_API_KEY``, or the guides' ``EMPTY``."""
    if file is None:
        return os.environ.get("METAL_API_KEY") or "EMPTY"
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UserError(
            f"cannot read the key file {file}: {error.strerror}; pass one that is readable"
        ) from error

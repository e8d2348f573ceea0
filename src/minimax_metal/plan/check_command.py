"""The command that checks an endpoint after a change: pure, from the plan and the role's settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from minimax_metal.common.errors import UserError
from minimax_metal.plan.model import Plan, ServicePlan

METAL: Final = "/usr/local/bin/metal"


def check_command(service: ServicePlan, plan: Plan, settings: Mapping[str, Any], directory: str) -> list[str]:
    """Return the arguments of ``metal check`` for one endpoint; a key is named by its file, never included.

    Args:
        service: the endpoint's part of the plan.
        plan: the host's plan.
        settings: values of the role's variables, ``post_check_*``.
        directory: on the host, for the reports.

    Raises:
        UserError: the plan says nothing of the checks, or of the engine.
    """
    if plan.checks is None or plan.engine is None:
        raise UserError(
            f"{plan.host}: found a plan without checks or engine, expected both; look at metal plan"
        )
    report = f"{directory}/{service.instance}"
    figures = settings["post_check_figures"]
    command = [METAL, "check", service.url, "--report", f"{report}.json", "--junit", f"{report}.xml"]
    command += [*service.check_arguments, *plan.checks.arguments]
    for option, value in (
        ("--timeout", settings["post_check_request_timeout_seconds"]),
        ("--long-prompt-share", settings["post_check_long_prompt_share"]),
        ("--concurrency", settings["post_check_concurrency"]),
        ("--figures", figures if isinstance(figures, str) else ",".join(map(str, figures))),
        ("--figure-tokens", settings["post_check_figure_tokens"]),
    ):
        command += [option, str(value) or "none"]
    command += [f"--skip={name}" for name in _list(settings["post_check_skip"])]
    if settings["post_check_api_key_file"]:
        command += ["--api-key-file", str(settings["post_check_api_key_file"])]
    if _true(settings["post_check_bench"]):
        command += ["--bench", "--bench-python", f"{plan.engine.environment}/bin/python"]
    command += map(str, _list(settings["post_check_extra_arguments"]))
    return command + (["--metrics"] if "--enable-metrics" in service.argv else [])


def _list(value: Any) -> Iterable[Any]:
    """Return a list; ``-e name=a,b`` passes a text."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


def _true(value: Any) -> bool:
    """Return a boolean; ``-e name=false`` passes a text."""
    return value.strip().lower() in {"1", "on", "true", "y", "yes"} if isinstance(value, str) else bool(value)

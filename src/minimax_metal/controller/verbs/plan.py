"""``metal plan``: show the plan of a fleet, or of a host that does not exist yet.

Exit status: 0 everything fits, 1 a host is refused, 2 wrong usage. Ansible is never imported here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minimax_metal.common.errors import UserError
from minimax_metal.controller.adapter import catalog_for, plan_host, role_values, with_hashes
from minimax_metal.controller.ansible_programs import add_options, options_of
from minimax_metal.controller.vault import masked
from minimax_metal.plan.certificates import ends_of, secrets_directory, with_notices
from minimax_metal.plan.core import plan
from minimax_metal.plan.model import Plan
from minimax_metal.plan.settings import DECLARED, Settings
from minimax_metal.plan.what_if import counted, find_platform, what_if_facts

EPILOG = """\
examples:
  metal plan --model MiniMax-M2.5 --gpu "H20 96GB" --count 4
  metal plan --model MiniMax-M3 --gpu 8xH200 --json
  metal plan --inventory inventories/my-fleet
  metal plan --model M2.5 --gpu H200 --count 8 --layout 2xtp4 --set metal_port=9000
"""

OPTIONS = (
    # option, setting, placeholder of its value
    ("--model", "metal_model", "NAME"),
    ("--format", "metal_model_format", "FORMAT"),
    ("--engine", "metal_engine_release", "RELEASE"),
    ("--profile", "metal_profile", "PROFILE"),
    ("--aim", "metal_aim", "AIM"),
    ("--layout", "metal_layout", "LAYOUT"),
    ("--tp", "metal_tp_size", "N"),
    ("--ep", "metal_ep_size", "N"),
    ("--mem-fraction", "metal_mem_fraction_static", "SHARE"),
    ("--kv-cache-dtype", "metal_kv_cache_dtype", "TYPE"),
    ("--driver-branch", "metal_driver_branch", "BRANCH"),
    ("--date", "metal_plan_date", "YYYY-MM-DD"),
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="metal plan",
        description="Show whether and how hosts can serve a model, with how much KV cache, or why not.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.add_argument(
        "--matrix", action="store_true", help="all models on all GPUs; with --model (repeatable), --markdown"
    )
    parser.add_argument("--json", action="store_true", help="a list with one object per host")
    parser.add_argument(
        "--compare", action="store_true", help="profiles default, fast and guide side by side, for each host"
    )
    return parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for :func:`make_plans`: the hosts to plan, and settings."""
    where = parser.add_argument_group("which hosts")
    where.add_argument("--gpu", metavar="GPU", help='what-if: a GPU, such as H20, "H20 96GB" or 8xH100')
    where.add_argument("--count", metavar="N", type=int, help="what-if: number of GPUs")
    where.add_argument("--platform", metavar="NAME", help="what-if: distribution (debian12)")
    where.add_argument(
        "--inventory", "-i", metavar="PATH", type=Path, action="append", help="Ansible inventory (repeatable)"
    )
    where.add_argument("--limit", "-l", metavar="PATTERN", help="hosts of the inventory")
    where.add_argument(
        "--refresh", action="store_true", help="gather facts again instead of using cached ones"
    )
    where.add_argument(
        "--max-age",
        metavar="SECONDS",
        type=float,
        default=3600.0,
        help="maximum age of cached facts in seconds (3600)",
    )
    add_options(parser)
    wanted = parser.add_argument_group("settings (each is a metal_* variable)")
    for option, variable, metavar in OPTIONS:
        meaning = DECLARED[variable].meaning.replace("`", "").replace("%", "%%")
        wanted.add_argument(option, dest=variable, metavar=metavar, help=f"{meaning} [{variable}]")
    wanted.add_argument(
        "--overlay",
        action="append",
        default=[],
        metavar="FILE",
        help="catalogue overlay [metal_catalog_overlay]",
    )
    wanted.add_argument(
        "--accept", action="append", default=[], metavar="CODE", help="lift a refusal [metal_accept_refusals]"
    )
    wanted.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any other metal_* variable, as YAML"
    )


def make_plans(arguments: argparse.Namespace) -> list[Plan]:
    """Return the plans of the hosts that the arguments name.

    Raises:
        UserError: they name none, or the inventory can't be read.
    """
    return [one for one, _ in _plans_and_secrets(arguments)]


def _plans_and_secrets(arguments: argparse.Namespace) -> list[tuple[Plan, tuple[str, ...]]]:
    """Return the plans, each with its texts from encrypted variables."""
    variables = _variables(arguments)
    if arguments.inventory:
        return _fleet(arguments, variables)
    return [(one, ()) for one in _what_if(arguments, variables)]


def _variables(arguments: argparse.Namespace) -> dict[str, Any]:
    values = {
        variable: getattr(arguments, variable)
        for _, variable, _ in OPTIONS
        if getattr(arguments, variable) is not None
    }
    if arguments.overlay:
        values["metal_catalog_overlay"] = arguments.overlay
    if arguments.accept:
        values["metal_accept_refusals"] = arguments.accept
    for pair in arguments.set:
        name, mark, value = pair.partition("=")
        if not mark or not name.startswith("metal_"):
            raise UserError(f"found --set {pair}, expected --set metal_NAME=VALUE; fix it")
        import yaml

        try:
            values[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"found --set {pair}, expected a YAML value after the equals sign") from None
    return values


def _what_if(arguments: argparse.Namespace, variables: dict[str, Any]) -> list[Plan]:
    if not arguments.gpu:
        raise UserError(
            'found neither --inventory nor --gpu; give an inventory, or GPUs to plan for: --gpu "8xH200"'
        )
    settings = Settings.from_variables("what-if", with_hashes(variables))
    catalog = catalog_for(settings)
    name, said = counted(arguments.gpu, catalog)
    count = said if arguments.count is None else arguments.count
    if count is None:
        raise UserError(f'found --gpu {name} without a number; add --count N, or write --gpu "8x{name}"')
    if said is not None and said != count:
        raise UserError(f"found --gpu {arguments.gpu} with --count {count}; give one number")
    if count < 0:
        raise UserError(f"found --count {count}, expected 0 or more")
    platform = find_platform(arguments.platform or next(iter(catalog.platforms)), catalog)
    return [plan(settings, what_if_facts(name, count, platform, catalog), catalog)]


def _fleet(arguments: argparse.Namespace, variables: dict[str, Any]) -> list[tuple[Plan, tuple[str, ...]]]:
    if arguments.gpu or arguments.count is not None or arguments.platform:
        raise UserError("found --inventory with --gpu, --count or --platform; give one or the other")
    from minimax_metal.controller.inventory import Reach, read_inventory

    with options_of(arguments) as (inventory, reach):
        hosts = read_inventory(
            arguments.inventory,
            limit=arguments.limit,
            refresh=arguments.refresh,
            max_age_seconds=arguments.max_age,
            settings=variables,
            reach=Reach(tuple(inventory), tuple(reach)),
        )
    return [
        (
            _with_ends(
                plan_host(
                    host.name,
                    {**host.variables, **variables},
                    host.facts,
                    host.names,
                    role_values(host.written),
                ),
                secrets_directory(arguments.inventory, {**host.written, **host.variables}),
            ),
            host.secrets,
        )
        for host in hosts
    ]


def _with_ends(plan: Plan, secrets: Path | None) -> Plan:
    """Return a plan with the end dates of its host's certificates, if the controller has them."""
    if plan.tls is None or secrets is None:
        return plan
    return with_notices(plan, ends_of(plan.host, secrets))


def _compare(arguments: argparse.Namespace) -> int:
    from minimax_metal.plan.compare import PROFILES, as_json

    if arguments.metal_profile:
        raise UserError("found --compare with --profile; --compare shows every profile: leave --profile out")
    hosts: dict[str, dict[str, Plan]] = {}
    for profile in PROFILES:
        arguments.metal_profile = profile
        for one, secrets in _plans_and_secrets(arguments):
            hosts.setdefault(one.host, {})[profile] = masked(one, secrets)
        # The other profiles are for the same facts.
        arguments.refresh = False
    if arguments.json:
        json.dump([as_json(host, plans) for host, plans in hosts.items()], sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        from minimax_metal.controller.plan_table import show_comparison

        show_comparison(hosts)
    return 0 if all(one.fits for plans in hosts.values() for one in plans.values()) else 1


def main(argv: Sequence[str]) -> int:
    """Run the verb with the arguments behind it."""
    if "--matrix" in argv:
        from minimax_metal.plan.matrix import main as matrix

        return matrix(argv)
    arguments = _parser().parse_args(list(argv))
    if arguments.compare:
        return _compare(arguments)
    # Values encrypted in the inventory are used for decisions, and never shown.
    plans = [masked(one, secrets) for one, secrets in _plans_and_secrets(arguments)]
    if arguments.json:
        json.dump([one.summary() for one in plans], sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
    else:
        # Tables are for people: a program that wants JSON need not wait for their import.
        from minimax_metal.controller.plan_table import show

        show(plans)
    return 0 if all(one.fits for one in plans) else 1
